//! A machine with everybody who shares memory there, and all decisions.

use super::devices::{self, Device, Purpose};
use super::names;
use super::source::{self, Origin};
use crate::error::{Error, Result};
use crate::options::MachineSource;
use devpagemap::Size;
use devpagemap::pagemap::{
    BusWindow, Decision, Explanation, JoinedImporter, Owner, Pagemap, PagemapSpec, Profile, Registry,
};
use devpagemap::topology::{Label, Machine, NodeKind, Path, Vram};

/// The most devices whose decisions are worked out; a matrix of more is of use to nobody.
const MAX_DEVICES: usize = 1_024;

/// A machine, its devices, and the registry that decides.
pub struct Survey {
    /// What it was read from.
    pub origin: Origin,
    /// What was read.
    pub machine: Machine,
    /// GPUs, network adapters and disks first, then all else.
    pub devices: Vec<Device>,
    registry: Registry,
    /// Of each device, the pagemaps of its memory: none, one, or the visible and the hidden one.
    pagemaps: Vec<Vec<Pagemap>>,
    /// Of each device; `None` for those in no matrix, and without an address.
    importers: Vec<Option<JoinedImporter>>,
}

/// Which part of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// What the bus sees.
    Visible,
    /// What it does not see.
    Hidden,
}

/// Two devices that somebody asks about, by their places among the devices.
pub struct Question {
    /// Whose memory it is.
    pub exporter: usize,
    /// Who reaches it.
    pub importer: usize,
    /// Each part of the memory with its decision.
    pub answers: Vec<(Part, Explanation)>,
}

impl Survey {
    /// Reads a machine and decides.
    pub fn of(source: &MachineSource) -> Result<Survey> {
        let (origin, machine) = source::read(source)?;
        let devices = devices::all(&machine);
        let shown = devices.iter().filter(|device| device.purpose != Purpose::Other).count();
        if shown > MAX_DEVICES {
            let reason = format!("{shown} devices that share memory; the limit is {MAX_DEVICES}");
            return Err(Error::input(origin.path.display().to_string(), None, reason));
        }
        let registry = Registry::new(machine.clone());
        let mut survey =
            Survey { origin, machine, devices, registry, pagemaps: Vec::new(), importers: Vec::new() };
        for index in 0..survey.devices.len() {
            survey.join(index)?;
        }
        Ok(survey)
    }

    fn join(&mut self, index: usize) -> Result<()> {
        let refused = |source| Error::Device { source };
        let device = &self.devices[index];
        let (mut pagemaps, mut importer) = (Vec::new(), None);
        if let Some(address) = device.address.filter(|_| device.purpose != Purpose::Other) {
            let owner = Owner::at(address);
            if device.purpose == Purpose::Gpu {
                for spec in self.specs(device, &owner) {
                    pagemaps.push(self.registry.join_pagemap(spec).map_err(refused)?);
                }
            }
            importer = Some(self.registry.join(Profile::dynamic().at(address)).map_err(refused)?);
        }
        self.pagemaps.push(pagemaps);
        self.importers.push(importer);
        Ok(())
    }

    /// A GPU's memory as its driver would register it. Of what is not known to be hidden, all is taken to be visible.
    fn specs(&self, device: &Device, owner: &Owner) -> Vec<PagemapSpec> {
        let function = self.machine.node(device.node).function();
        match function.and_then(|function| function.vram) {
            Some(Vram { total_bytes, visible_bytes: Some(visible) }) if visible < total_bytes => {
                PagemapSpec::of_vram(owner, Size::bytes(total_bytes), Size::bytes(visible))
            }
            _ => vec![PagemapSpec::visible(owner)],
        }
    }

    /// Those whose memory others reach, in order.
    pub fn exporters(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.devices.len()).filter(|index| !self.pagemaps[*index].is_empty())
    }

    /// Those who reach it, in order.
    pub fn importers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.devices.len()).filter(|index| self.importers[*index].is_some())
    }

    /// The devices of the matrix, and those that would be in it if their place were known.
    pub fn shown(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|device| device.purpose != Purpose::Other)
    }

    /// How an importer reaches each part of an exporter's memory.
    pub fn decisions(&self, exporter: usize, importer: usize) -> Vec<(Part, Decision)> {
        let Some(joined) = &self.importers[importer] else { return Vec::new() };
        let decision = |pagemap: &Pagemap| self.registry.decision(pagemap.id(), joined.id());
        self.parts(exporter).map(|(part, pagemap)| (part, decision(pagemap))).collect()
    }

    /// The same with all reasons.
    pub fn explanations(&self, exporter: usize, importer: usize) -> Vec<(Part, Explanation)> {
        self.importers[importer].as_ref().map_or_else(Vec::new, |joined| self.explained(exporter, joined))
    }

    fn explained(&self, exporter: usize, importer: &JoinedImporter) -> Vec<(Part, Explanation)> {
        let explain = |pagemap: &Pagemap| self.registry.explain(pagemap.id(), importer.id());
        self.parts(exporter).map(|(part, pagemap)| (part, explain(pagemap))).collect()
    }

    fn parts(&self, exporter: usize) -> impl Iterator<Item = (Part, &Pagemap)> {
        let pagemaps = &self.pagemaps[exporter];
        pagemaps.iter().map(|pagemap| match pagemap.spec().bus {
            _ if pagemaps.len() == 1 => (Part::All, pagemap),
            BusWindow::Visible { .. } => (Part::Visible, pagemap),
            BusWindow::Hidden => (Part::Hidden, pagemap),
        })
    }

    /// The way that an importer's requests take.
    pub fn path(&self, exporter: usize, importer: usize) -> Path {
        self.machine.path(self.devices[importer].node, self.devices[exporter].node)
    }

    /// Its label.
    pub fn label(&self, exporter: usize, importer: usize) -> Label {
        self.path(exporter, importer).label()
    }

    /// How many packages or NUMA nodes the machine is known to have.
    pub fn count(&self, wanted: fn(&NodeKind) -> bool) -> usize {
        self.machine.nodes().filter(|(_, node)| wanted(&node.kind)).count()
    }

    /// What is asked about two devices, by any of their names.
    ///
    /// # Errors
    /// For names that stand for none or for several, for exporters without memory of their own, and for devices whose
    /// place in the machine is not known.
    pub fn question(&self, exporter: &str, importer: &str) -> Result<Question> {
        let exporter = self.placed("EXPORTER", exporter)?;
        let importer = self.placed("IMPORTER", importer)?;
        if self.pagemaps[exporter].is_empty() {
            let device = &self.devices[exporter];
            let reason = format!("{} is no GPU, and has no memory that others reach", device.short_name());
            return Err(Error::usage("EXPORTER", reason));
        }
        let answers = match &self.devices[importer] {
            Device { purpose: Purpose::Other, address: Some(address), .. } => {
                let profile = Profile::dynamic().at(*address);
                let joined = self.registry.join(profile).map_err(|source| Error::Device { source })?;
                self.explained(exporter, &joined)
            }
            _ => self.explanations(exporter, importer),
        };
        Ok(Question { exporter, importer, answers })
    }

    fn placed(&self, which: &str, name: &str) -> Result<usize> {
        let device = names::find(&self.devices, name).map_err(|reason| Error::usage(which, reason))?;
        if device.address.is_none() {
            let reason = format!("where {} is is not known, so nothing can be decided", device.short_name());
            return Err(Error::usage(which, reason));
        }
        Ok(self.devices.iter().position(|other| other.node == device.node).unwrap_or_default())
    }
}
