//! NCCL's XML, as `NCCL_TOPO_DUMP_FILE` writes and `NCCL_TOPO_FILE` reads it, and RCCL's.
//!
//! ```text
//!   system ─ cpu ─ pci ─ pci ─┬─ pci ─ gpu ─ nvlink, xgmi, c2c      a cpu is a NUMA node, with what is known of its package
//!                             └─ pci ─ nic ─ net                    a pci with others below it is a whole switch
//! ```
//!
//! What follows from how NCCL makes these files:
//! - It walks up two levels of the PCI tree at a time, so of a switch it lists the upstream port alone, and no root port.
//!   Host bridges are not in it: all of a NUMA node's devices go below one. ACS, BARs and ids of the root stay unknown.
//! - People write such files for clouds, and make up switches: domain and bus `ffff:ff`, ids `0xffff`. Those have neither
//!   address nor ids.
//! - `familyid` is the base family plus the extended one shifted by four: 143 (0x8f) is 0xf + 0x8, Zen 2. People who write
//!   files by hand put the family itself there: 23 is 0x17, as no CPU has an extended family without the base family 0xf.
//! - An `nvlink` whose class is that of a bridge (0x0680) leads to an NVSwitch, which is not listed. 0x068001 is the CPU.
//! - The speed of a link is what both its ends could do at best; it is taken for what they do.

use std::collections::{HashMap, HashSet};

use super::address::PciAddress;
use super::builder::MachineBuilder;
use super::fabric::{Fabric, Width};
use super::function::{Function, PciIds, PortKind};
use super::link::{LinkKind, PciLink, parse_pci_speed, pci_bytes_per_s};
use super::machine::{CpuInfo, CpuVendor, Machine, NodeId, NodeKind};
use super::source::{Place, TopologyError};
use super::xml::{Element, Token, Xml};

/// More than any machine has; looking for doubles among them takes time.
const MAX_PCI: usize = 1 << 16;
const MAX_CPUS: usize = 1 << 10;

impl Machine {
    /// Reads a topology file of NCCL or RCCL. `file` is for messages.
    ///
    /// # Errors
    /// With the line, for what is no such file, is cut off, or says what cannot be.
    ///
    /// ```
    /// use devpagemap::topology::Machine;
    ///
    /// let xml = br#"<system version="1"><cpu numaid="0" vendor="AuthenticAMD" familyid="143">
    ///     <pci busid="0000:03:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>
    ///   </cpu></system>"#;
    /// let machine = Machine::from_nccl(xml, "here.xml")?;
    /// let gpu = machine.at("03:00.0".parse()?).expect("it is listed");
    /// assert_eq!(machine.cpu_of(gpu).and_then(|cpu| cpu.family), Some(0x17));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_nccl(xml: &[u8], file: &str) -> Result<Machine, TopologyError> {
        Document::read(xml, file)?.into_machine()
    }
}

/// A `<cpu>`.
struct Cpu {
    numa: Option<u32>,
    info: CpuInfo,
    place: Place,
}

/// A `<pci>`.
struct Pci {
    cpu: usize,
    above: Option<usize>,
    function: Function,
    has_pci_below: bool,
    names: Vec<String>,
    lanes: LaneRates,
    place: Place,
}

/// What one lane of a GPU's links carries.
#[derive(Clone, Copy, Default)]
struct LaneRates {
    nvlink_bytes_per_s: Option<u64>,
    xgmi_bytes_per_s: Option<u64>,
}

/// Where a link leads.
enum Target {
    /// To what has this address.
    Pci(PciAddress),
    /// To an NVSwitch of this name.
    LinkSwitch(String),
    /// To the CPU that the GPU is below.
    Cpu,
}

/// An `<nvlink>`, `<xgmi>` or `<c2c>`.
struct PrivateLink {
    kind: LinkKind,
    from: usize,
    target: Target,
    count: u32,
    /// What one lane carries, where the link says so itself.
    lane_bytes_per_s: Option<u64>,
    place: Place,
}

/// A file as it stands.
#[derive(Default)]
struct Document {
    cpus: Vec<Cpu>,
    pcis: Vec<Pci>,
    links: Vec<PrivateLink>,
    /// Who has which address.
    by_address: HashMap<PciAddress, usize>,
    invented: HashSet<PciAddress>,
    gpu_numbers: HashSet<i64>,
    /// Switches whose address a device has, and that address.
    slips: Vec<(usize, PciAddress)>,
}

/// What an open element is.
#[derive(Clone, Copy)]
enum Open {
    System,
    Cpu(usize),
    Pci(usize),
    Gpu(usize),
    Nic(usize),
    Other,
}

impl Document {
    fn read(bytes: &[u8], file: &str) -> Result<Document, TopologyError> {
        let (mut xml, root) = Xml::new(bytes, file, "system", "NCCL's XML")?;
        let mut document = Document::default();
        let mut open = vec![Open::System];
        while let Some(token) = xml.next()? {
            match token {
                Token::Open(element) => {
                    let inside = open.last().copied().unwrap_or(Open::Other);
                    open.push(document.element(inside, &element)?);
                }
                Token::Close => _ = open.pop(),
                Token::Text(_) => {}
            }
        }
        match document.cpus.is_empty() {
            true => Err(root.wrong("there is no cpu in it")),
            false => Ok(document),
        }
    }

    fn element(&mut self, inside: Open, element: &Element) -> Result<Open, TopologyError> {
        match (element.name.as_str(), inside) {
            ("cpu", Open::System) => self.cpu(element),
            ("pci", Open::Cpu(cpu)) => self.pci(cpu, None, element),
            ("pci", Open::Pci(above)) => self.pci(self.pcis[above].cpu, Some(above), element),
            ("cpu" | "pci", _) => Err(element.wrong(format!("a <{}> where none can be", element.name))),
            ("gpu", Open::Pci(pci)) => self.gpu(pci, element),
            ("nic", Open::Pci(pci)) => Ok(Open::Nic(pci)),
            ("net", Open::Nic(pci)) => {
                self.pcis[pci]
                    .names
                    .extend(element.get("name").filter(|name| !name.is_empty()).map(str::to_string));
                Ok(Open::Other)
            }
            ("nvlink", Open::Gpu(pci)) => self.link(LinkKind::NvLink, pci, element),
            ("xgmi", Open::Gpu(pci)) => self.link(LinkKind::Xgmi, pci, element),
            ("c2c", Open::Gpu(pci)) => self.chip_to_chip(pci, element),
            _ => Ok(Open::Other),
        }
    }

    fn cpu(&mut self, element: &Element) -> Result<Open, TopologyError> {
        if self.cpus.len() == MAX_CPUS {
            return Err(element.wrong(format!("there are more than {MAX_CPUS} cpus")));
        }
        let numa: Option<i64> = element.number("numaid")?;
        // -1 stands for a machine without NUMA nodes.
        let numa = numa.filter(|numa| *numa != -1).map(u32::try_from).transpose();
        let positive = |text: &str| text.parse::<i64>().ok().map(|number| u32::try_from(number).ok());
        let info = CpuInfo {
            vendor: element.get("vendor").filter(|name| !name.is_empty()).map(CpuVendor::from_name),
            family: element.parsed("familyid", "CPU family", positive)?.flatten().map(family),
            model: element.parsed("modelid", "CPU model", positive)?.flatten(),
        };
        let numa = numa.map_err(|_| element.wrong("`numaid` is neither a number of a NUMA node nor -1"))?;
        self.cpus.push(Cpu { numa, info, place: element.place.clone() });
        Ok(Open::Cpu(self.cpus.len() - 1))
    }

    fn pci(&mut self, cpu: usize, above: Option<usize>, element: &Element) -> Result<Open, TopologyError> {
        if self.pcis.len() == MAX_PCI {
            return Err(element.wrong(format!("there are more than {MAX_PCI} PCI devices")));
        }
        let address = element.parsed("busid", "PCI address", |text| text.parse::<PciAddress>().ok())?;
        let address = address.ok_or_else(|| element.wrong("<pci> has no `busid`"))?;
        let class =
            element.parsed("class", "PCI class, which is written 0x030200", |text| hex(text, 0xff_ffff))?;
        let index = self.pcis.len();
        let link = pci_link(element)?;
        let function =
            Function { class, ids: ids(element)?, link, numa: self.cpus[cpu].numa, ..Function::default() };
        let place = element.place.clone();
        let (names, lanes) = (Vec::new(), LaneRates::default());
        self.pcis.push(Pci { cpu, above, function, has_pci_below: false, names, lanes, place });
        self.take_address(index, address)?;
        if let Some(above) = above {
            let above = &mut self.pcis[above];
            if above.function.class.is_some_and(|class| class >> 16 != 0x06) {
                return Err(element.wrong("it is below a device that is no bridge"));
            }
            above.has_pci_below = true;
        }
        Ok(Open::Pci(index))
    }

    /// Gives an address to who claims it. Real dumps name a switch and a network adapter alike; the end point keeps the
    /// address, and the switch has none. All else that claims one address twice is wrong.
    fn take_address(&mut self, index: usize, address: PciAddress) -> Result<(), TopologyError> {
        let twice = || self.pcis[index].place.error(format!("{address} is there twice"));
        if (address.domain, address.bus) == (0xffff, 0xff) {
            return if self.invented.insert(address) { Ok(()) } else { Err(twice()) };
        }
        let Some(other) = self.by_address.get(&address).copied() else {
            self.pcis[index].function.address = Some(address);
            self.by_address.insert(address, index);
            return Ok(());
        };
        let is_above_itself = self.upwards(index).any(|above| above == other);
        let is_bridge = |index: usize| self.pcis[index].function.class.map(|class| class >> 16 == 0x06);
        match (is_bridge(other), is_bridge(index)) {
            _ if is_above_itself => Err(twice()),
            (Some(true), Some(false)) => {
                self.pcis[other].function.address = None;
                self.pcis[index].function.address = Some(address);
                self.by_address.insert(address, index);
                self.slips.push((other, address));
                Ok(())
            }
            (Some(false), Some(true)) => {
                self.slips.push((index, address));
                Ok(())
            }
            _ => Err(twice()),
        }
    }

    fn upwards(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.pcis[index].above, |index| self.pcis[*index].above)
    }

    fn gpu(&mut self, pci: usize, element: &Element) -> Result<Open, TopologyError> {
        let number: Option<i64> = element.number("dev")?;
        let architecture: Option<u32> = element.number("sm")?;
        let (number, architecture) = (number.filter(|number| *number >= 0), architecture.unwrap_or_default());
        if let Some(number) = number.filter(|number| !self.gpu_numbers.insert(*number)) {
            return Err(element.wrong(format!("gpu {number} is there twice")));
        }
        let own = &mut self.pcis[pci];
        own.names.extend(number.map(|number| format!("gpu{number}")));
        own.lanes = LaneRates {
            nvlink_bytes_per_s: nvlink_lane(architecture),
            xgmi_bytes_per_s: element.get("gcn").and_then(xgmi_lane),
        };
        Ok(Open::Gpu(pci))
    }

    fn link(&mut self, kind: LinkKind, from: usize, element: &Element) -> Result<Open, TopologyError> {
        let class =
            element.parsed("tclass", "PCI class, which is written 0x068000", |text| hex(text, 0xff_ffff))?;
        let target = element.require("target")?;
        let target = match class {
            Some(0x068001) => Target::Cpu,
            Some(class) if class >> 8 == 0x0680 => Target::LinkSwitch(target.to_string()),
            _ => Target::Pci(target.parse().map_err(|error| element.wrong(format!("target: {error}")))?),
        };
        let count = element.number("count")?.unwrap_or(1);
        self.push_link(PrivateLink {
            kind,
            from,
            target,
            count,
            lane_bytes_per_s: None,
            place: element.place.clone(),
        })
    }

    /// A GPU and a CPU in one package; `bw` is in MB/s and of one lane.
    fn chip_to_chip(&mut self, from: usize, element: &Element) -> Result<Open, TopologyError> {
        let rate: Option<u32> = element.number("bw")?;
        self.push_link(PrivateLink {
            kind: LinkKind::Other,
            from,
            target: Target::Cpu,
            count: element.number("count")?.unwrap_or(1),
            lane_bytes_per_s: rate.map(|rate| u64::from(rate) * 1_000_000),
            place: element.place.clone(),
        })
    }

    fn push_link(&mut self, link: PrivateLink) -> Result<Open, TopologyError> {
        if link.count == 0 {
            return Err(link.place.error("a link of 0 lanes"));
        }
        self.links.push(link);
        Ok(Open::Other)
    }

    fn into_machine(mut self) -> Result<Machine, TopologyError> {
        let mut builder = Machine::builder();
        let (near, roots) = self.add_cpus(&mut builder)?;
        let mut nodes: Vec<NodeId> = Vec::with_capacity(self.pcis.len());
        for pci in &mut self.pcis {
            let parent = pci.above.map_or(roots[pci.cpu], |above| nodes[above]);
            let mut function = std::mem::take(&mut pci.function);
            let is_bridge = pci.has_pci_below || function.class.is_some_and(|class| class >> 8 == 0x0604);
            function.port = is_bridge.then_some(PortKind::Switch);
            let kind = if is_bridge { NodeKind::Bridge(function) } else { NodeKind::Function(function) };
            nodes.push(builder.add(parent, kind, std::mem::take(&mut pci.names), &pci.place)?);
        }
        for (switch, address) in &self.slips {
            let why = "a device is there too, and has it: the address of the switch is unknown";
            builder.note(&self.pcis[*switch].place, format!("{address}: {why}"));
        }
        self.add_links(&near, &nodes, &mut builder)?;
        Ok(builder.build())
    }

    /// Of each CPU, its innermost node and its host bridge.
    fn add_cpus(&self, builder: &mut MachineBuilder) -> Result<(Vec<NodeId>, Vec<NodeId>), TopologyError> {
        let (mut near, mut roots) = (Vec::new(), Vec::new());
        for cpu in &self.cpus {
            let package =
                builder.add(builder.root(), NodeKind::Package(cpu.info.clone()), Vec::new(), &cpu.place)?;
            let innermost = match cpu.numa {
                Some(number) => builder.add(package, NodeKind::Numa(number), Vec::new(), &cpu.place)?,
                None => package,
            };
            near.push(innermost);
            let root = NodeKind::HostBridge { bus: None, ids: None };
            roots.push(builder.add(innermost, root, Vec::new(), &cpu.place)?);
        }
        Ok((near, roots))
    }

    fn add_links(
        &self,
        near: &[NodeId],
        nodes: &[NodeId],
        builder: &mut MachineBuilder,
    ) -> Result<(), TopologyError> {
        for kind in [LinkKind::NvLink, LinkKind::Xgmi, LinkKind::Other] {
            let mut fabric = Fabric::new(kind);
            for link in self.links.iter().filter(|link| link.kind == kind) {
                self.add_link(link, near, nodes, &mut fabric)?;
            }
            fabric.finish(builder)?;
        }
        Ok(())
    }

    fn add_link<'a>(
        &'a self,
        link: &'a PrivateLink,
        near: &[NodeId],
        nodes: &[NodeId],
        fabric: &mut Fabric<&'a str>,
    ) -> Result<(), TopologyError> {
        let (from, place) = (nodes[link.from], &link.place);
        let lanes = self.pcis[link.from].lanes;
        let lane_bytes_per_s = link.lane_bytes_per_s.or(match link.kind {
            LinkKind::NvLink => lanes.nvlink_bytes_per_s,
            LinkKind::Xgmi => lanes.xgmi_bytes_per_s,
            LinkKind::Other => None,
        });
        let all_lanes = lane_bytes_per_s.map(|rate| rate.checked_mul(u64::from(link.count)));
        let too_many = || place.error(format!("a link of {} lanes", link.count));
        let bytes_per_s = all_lanes.map(|all| all.ok_or_else(too_many)).transpose()?;
        let width = Width { lanes: link.count, bytes_per_s };
        match &link.target {
            Target::Pci(address) => {
                let to = self.by_address.get(address);
                let to =
                    *to.ok_or_else(|| place.error(format!("a link to {address}, which is not in the file")))?;
                fabric.direct((from, nodes[to]), width, place)
            }
            Target::LinkSwitch(name) => {
                fabric.uplink(from, name, width, place)?;
                fabric.downlink(from, name, width, place)
            }
            Target::Cpu => {
                let cpu = near[self.pcis[link.from].cpu];
                fabric.direct((from, cpu), width, place)?;
                fabric.direct((cpu, from), width, place)
            }
        }
    }
}

/// Reads `0x030200`, or the same without `0x`.
fn hex(text: &str, most: u32) -> Option<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|value| is_hex && *value <= most)
}

/// Which chip it is; what is made up has 0xffff, and some have 0.
fn ids(element: &Element) -> Result<Option<PciIds>, TopologyError> {
    let id = |key| element.parsed(key, "PCI id, which is written 0x10de", |text| hex(text, 0xffff));
    let (vendor, device) = (id("vendor")?, id("device")?);
    Ok(vendor
        .zip(device)
        .filter(|(vendor, _)| !matches!(vendor, 0 | 0xffff))
        .map(|(vendor, device)| PciIds { vendor: vendor as u16, device: device as u16 }))
}

fn pci_link(element: &Element) -> Result<PciLink, TopologyError> {
    let width = element.parsed("link_width", "width of a link, which is 1 to 32", |text| match text {
        "" => Some(None),
        _ => text.parse::<u32>().ok().filter(|width| (1..=32).contains(width)).map(Some),
    })?;
    // Speeds that cannot be read are written in words.
    let speed = element.get("link_speed").and_then(parse_pci_speed);
    let bytes_per_s = speed.zip(width.flatten()).and_then(|(speed, width)| pci_bytes_per_s(speed, width));
    Ok(PciLink { bytes_per_s, max_bytes_per_s: bytes_per_s })
}

/// The family that a CPU counts itself, from what a file has.
fn family(written: u32) -> u32 {
    match (written & 0xf, written >> 4) {
        (0xf, extended) => 0xf + extended,
        _ => written,
    }
}

/// What a lane of NVLink carries in one direction, by the architecture of the GPU. From NVIDIA's data sheets.
fn nvlink_lane(architecture: u32) -> Option<u64> {
    let mega_bytes_per_s = match architecture {
        60 => 20_000,
        70 | 75 | 80 | 90 => 25_000,
        86 => 14_062,
        100 | 103 => 50_000,
        _ => return None,
    };
    Some(mega_bytes_per_s * 1_000_000)
}

/// What a lane of xGMI carries in one direction, by the architecture of the GPU. From AMD's data sheets.
fn xgmi_lane(architecture: &str) -> Option<u64> {
    let mega_bytes_per_s = match architecture.trim_start_matches("gfx") {
        "906" | "908" => 46_000,
        "910" | "90a" => 50_000,
        "940" | "941" | "942" => 64_000,
        "950" => 76_800,
        _ => return None,
    };
    Some(mega_bytes_per_s * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_read_as_nccl_writes_them_and_as_people_do() {
        assert_eq!([6, 15, 23, 25, 143, 175, 191].map(family), [6, 0xf, 0x17, 0x19, 0x17, 0x19, 0x1a]);
    }

    #[test]
    fn hexadecimal_figures_are_read_with_and_without_their_mark() {
        assert_eq!(hex("0x030200", 0xff_ffff), Some(0x030200));
        assert_eq!(hex("10de", 0xffff), Some(0x10de));
        for wrong in ["", "0x", "0x10000", "+1", "0x-1", "12 3"] {
            assert_eq!(hex(wrong, 0xffff), None, "{wrong:?}");
        }
    }
}
