//! The devices of a machine that share memory: GPUs, network adapters, NVMe disks.

use devpagemap::topology::{Function, Machine, NodeId, NodeKind, PciAddress};

/// What a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// It has memory of its own, which others reach.
    Gpu,
    /// A network adapter.
    Nic,
    /// A disk.
    Nvme,
    /// Something else; it is in no matrix.
    Other,
}

impl Purpose {
    fn of(function: &Function) -> Purpose {
        match function {
            _ if function.is_gpu() => Purpose::Gpu,
            _ if function.is_nic() => Purpose::Nic,
            _ if function.is_nvme() => Purpose::Nvme,
            _ => Purpose::Other,
        }
    }

    /// As it is printed, and in JSON in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Gpu => "GPU",
            Purpose::Nic => "NIC",
            Purpose::Nvme => "NVME",
            Purpose::Other => "other",
        }
    }
}

/// A device.
#[derive(Clone, Debug)]
pub struct Device {
    /// What it is in the machine.
    pub node: NodeId,
    /// What it is for.
    pub purpose: Purpose,
    /// Its number among those of its purpose.
    pub number: usize,
    /// Where it is; `None` when its source does not say that, and then nothing can be decided.
    pub address: Option<PciAddress>,
    /// What it is called in results: its address, else the name that the system has for it.
    pub name: String,
    /// What the system calls it.
    pub names: Vec<String>,
}

impl Device {
    /// As the matrix calls it: `GPU0`.
    pub fn short_name(&self) -> String {
        match self.purpose {
            Purpose::Other => self.name.clone(),
            purpose => format!("{}{}", purpose.name(), self.number),
        }
    }
}

/// All end points, those of a matrix first, then in the machine's order.
pub fn all(machine: &Machine) -> Vec<Device> {
    let mut devices: Vec<Device> = machine.nodes().filter_map(|(id, _)| device(machine, id)).collect();
    devices.sort_by_key(|device| device.purpose);
    for index in 1..devices.len() {
        if devices[index].purpose == devices[index - 1].purpose {
            devices[index].number = devices[index - 1].number + 1;
        }
    }
    devices
}

fn device(machine: &Machine, id: NodeId) -> Option<Device> {
    let node = machine.node(id);
    let NodeKind::Function(function) = &node.kind else { return None };
    Some(Device {
        node: id,
        purpose: Purpose::of(function),
        number: 0,
        address: function.address,
        name: machine.name(id).to_string(),
        names: node.names.clone(),
    })
}
