//! hwloc's XML, versions 1 to 3, as `lstopo machine.xml` writes it.
//!
//! ```text
//!   Package ─┬─ NUMANode                                     v2, v3: memory hangs beside what it is near
//!            └─ Bridge 0-1 ─ Bridge 1-1 ─ PCIDev ─ OSDev     0-1 is a host bridge, 1-1 a PCI bridge
//!   NUMANode ── Package ...                                  v1: memory contains what it is near
//! ```
//!
//! First the whole file is read into a list of [`object::Object`]s, each with the index of what it is in: who is
//! near which memory, and what `OSDev:802` in a matrix means, is only known at its end. Then the list becomes a machine.
//!
//! It has no configuration space: ACS, BARs and atomics stay unknown. Ports do not say what they are; the model counts.
//! A device whose address is not among the buses of the bridge above it cannot be there; it keeps its names and its place
//! in the tree, and its address is unknown, which a note says.

mod matrix;
mod nearness;
mod object;

use std::collections::{HashMap, HashSet};

use super::address::PciAddress;
use super::builder::MachineBuilder;
use super::function::{Function, PciIds};
use super::machine::{Machine, NodeId, NodeKind, RootBus};
use super::source::{Place, TopologyError};
use matrix::Matrix;
use nearness::Nearness;
use object::{Buses, Kind, Object};

use crate::topology::xml::{Element, Token, Xml};

/// More than any machine has; looking for doubles among them takes time.
const MAX_OBJECTS: usize = 1 << 20;
const MAX_PCI: usize = 1 << 16;
const MAX_ROOTS: usize = 1 << 10;

impl Machine {
    /// Reads what hwloc (`lstopo --of xml`) wrote of a machine. `file` is for messages.
    ///
    /// # Errors
    /// With the line, for what is no such file, is cut off, or says what cannot be.
    ///
    /// ```
    /// use devpagemap::topology::Machine;
    ///
    /// let xml = br#"<topology version="2.0"><object type="Machine">
    ///     <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[00-01]">
    ///       <object type="PCIDev" pci_busid="0000:00:02.0" pci_type="0300 [8086:4c8a] [0000:0000] 01">
    ///         <object type="OSDev" name="card0" osdev_type="1"/>
    ///     </object></object></object></topology>"#;
    /// let machine = Machine::from_hwloc(xml, "here.xml")?;
    /// assert_eq!(machine.at("00:02.0".parse()?), machine.named("card0").next());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_hwloc(xml: &[u8], file: &str) -> Result<Machine, TopologyError> {
        Document::read(xml, file)?.into_machine()
    }
}

/// A file as it stands.
#[derive(Default)]
struct Document {
    objects: Vec<Object>,
    matrices: Vec<Matrix>,
    /// Where each id was given, to refuse it a second time.
    ids: HashSet<String>,
}

/// What an open element is part of.
#[derive(Clone, Copy, Debug)]
enum Open {
    Object(usize),
    Matrix,
    Indexes,
    Values,
    Other,
}

impl Document {
    fn read(bytes: &[u8], file: &str) -> Result<Document, TopologyError> {
        let (mut xml, root) = Xml::new(bytes, file, "topology", "hwloc's XML")?;
        let mut document = Document::default();
        let mut open = vec![Open::Other];
        while let Some(token) = xml.next()? {
            match token {
                Token::Open(element) => {
                    let inside = open.last().copied().unwrap_or(Open::Other);
                    open.push(document.element(inside, &element)?);
                }
                Token::Close => document.close(open.pop())?,
                Token::Text(text) => document.text(open.last().copied(), &text),
            }
        }
        match document.objects.is_empty() {
            true => Err(root.wrong("there is no machine in it")),
            false => Ok(document),
        }
    }

    fn element(&mut self, inside: Open, element: &Element) -> Result<Open, TopologyError> {
        match (element.name.as_str(), inside) {
            ("object", _) => {
                let parent = match inside {
                    Open::Object(index) => Some(index),
                    _ => None,
                };
                self.object(parent, element).map(Open::Object)
            }
            ("info", Open::Object(index)) => {
                self.info(index, element)?;
                Ok(Open::Other)
            }
            ("distances2" | "distances2hetero", _) => {
                self.matrices.push(Matrix::new(element)?);
                Ok(Open::Matrix)
            }
            ("indexes", Open::Matrix) => Ok(Open::Indexes),
            ("u64values", Open::Matrix) => Ok(Open::Values),
            _ => Ok(Open::Other),
        }
    }

    fn object(&mut self, parent: Option<usize>, element: &Element) -> Result<usize, TopologyError> {
        if parent.is_none() && !self.objects.is_empty() {
            return Err(element.wrong("there is a second machine"));
        }
        if self.objects.len() == MAX_OBJECTS {
            return Err(element.wrong(format!("there are more than {MAX_OBJECTS} objects")));
        }
        let object = Object::new(parent, element)?;
        let ids = [("gp_index", element.get("gp_index")), ("id", element.get("id"))];
        for (key, id) in ids.into_iter().filter_map(|(key, id)| Some((key, id?))) {
            if !self.ids.insert(format!("{key}=\"{id}\"")) {
                return Err(element.wrong(format!("{key}=\"{id}\" is there twice")));
            }
        }
        self.objects.push(object);
        Ok(self.objects.len() - 1)
    }

    /// What an `<info>` says goes to the package, or to the PCI device, that it is about.
    fn info(&mut self, index: usize, element: &Element) -> Result<(), TopologyError> {
        let about = match self.objects[index].kind {
            Kind::OsDev => {
                self.upwards(index).find(|above| matches!(self.objects[*above].kind, Kind::Device { .. }))
            }
            _ => Some(index),
        };
        match about {
            Some(about) => self.objects[about].info(element),
            None => Ok(()),
        }
    }

    fn text(&mut self, inside: Option<Open>, text: &str) {
        if let (Some(Open::Indexes | Open::Values), Some(matrix)) = (inside, self.matrices.last_mut()) {
            matrix.text(text);
        }
    }

    fn close(&mut self, what: Option<Open>) -> Result<(), TopologyError> {
        match (what, self.matrices.last_mut()) {
            (Some(Open::Indexes), Some(matrix)) => matrix.end_of_indexes(),
            (Some(Open::Values), Some(matrix)) => matrix.end_of_values(),
            (Some(Open::Matrix), Some(matrix)) => matrix.check(),
            _ => Ok(()),
        }
    }

    /// An object and everything that it is in, innermost first.
    fn upwards(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(index), |index| self.objects[*index].parent)
    }

    fn into_machine(self) -> Result<Machine, TopologyError> {
        let nearness = Nearness::new(&self);
        let mut builder = Machine::builder();
        let mut nodes = vec![None; self.objects.len()];
        self.add_packages(&nearness, &mut builder, &mut nodes)?;
        self.add_memory(&nearness, &mut builder, &mut nodes)?;
        self.add_pci(&nearness, &mut builder, &mut nodes)?;
        matrix::add_links(&self, &nodes, &mut builder)?;
        Ok(builder.build())
    }

    fn indexes_of(&self, wanted: impl Fn(&Kind) -> bool) -> Vec<usize> {
        let all = self.objects.iter().enumerate();
        all.filter(|(_, object)| wanted(&object.kind)).map(|(index, _)| index).collect()
    }

    fn add_packages(
        &self,
        nearness: &Nearness,
        builder: &mut MachineBuilder,
        nodes: &mut [Option<NodeId>],
    ) -> Result<(), TopologyError> {
        for index in nearness.packages.iter().copied() {
            let object = &self.objects[index];
            if let Kind::Package(info) = &object.kind {
                let kind = NodeKind::Package(info.clone());
                nodes[index] = Some(builder.add(builder.root(), kind, Vec::new(), &object.place)?);
            }
        }
        Ok(())
    }

    fn add_memory(
        &self,
        nearness: &Nearness,
        builder: &mut MachineBuilder,
        nodes: &mut [Option<NodeId>],
    ) -> Result<(), TopologyError> {
        for index in self.indexes_of(|kind| matches!(kind, Kind::Memory(_))) {
            let object = &self.objects[index];
            let Kind::Memory(number) = object.kind else { continue };
            if builder.so_far().nodes().count() > MAX_ROOTS {
                return Err(object
                    .place
                    .error(format!("there are more than {MAX_ROOTS} packages and NUMA nodes")));
            }
            let package = nearness.package_of(self, index).and_then(|package| nodes[package]);
            let parent = package.unwrap_or(builder.root());
            nodes[index] = Some(builder.add(parent, NodeKind::Numa(number), Vec::new(), &object.place)?);
        }
        Ok(())
    }

    fn add_pci(
        &self,
        nearness: &Nearness,
        builder: &mut MachineBuilder,
        nodes: &mut [Option<NodeId>],
    ) -> Result<(), TopologyError> {
        self.add_roots(nearness, builder, nodes)?;
        let indexes = self.indexes_of(|kind| matches!(kind, Kind::Bridge { .. } | Kind::Device { .. }));
        if let Some(index) = indexes.get(MAX_PCI) {
            let place = &self.objects[*index].place;
            return Err(place.error(format!("there are more than {MAX_PCI} PCI devices")));
        }
        let mut names = self.names();
        let mut misplaced = Vec::new();
        for index in indexes {
            let object = &self.objects[index];
            let Some(mut function) = object.function().cloned() else { continue };
            let above = self.upwards(index).skip(1).find(|above| self.objects[*above].is_pci());
            let parent = match above {
                Some(above) => {
                    self.check_below(above, object)?;
                    nodes[above].unwrap_or(builder.root())
                }
                None => {
                    let near = nearness.node_near(self, index, nodes).unwrap_or(builder.root());
                    unknown_root(object, near, builder)?
                }
            };
            function.numa = nearness.memory_of(self, index).map(|(_, number)| number);
            if let Some((address, buses)) = self.misplacement(above, &function) {
                function.address = None;
                misplaced.push((address, function.ids, &object.place));
                let why = "the buses of the bridge above it: its address is unknown";
                builder.note(&object.place, format!("{address} is not on {buses}, {why}"));
            }
            let kind = match object.kind {
                Kind::Bridge { .. } => NodeKind::Bridge(function),
                _ => NodeKind::Function(function),
            };
            let names = names.remove(&index).unwrap_or_default();
            nodes[index] = Some(builder.add(parent, kind, names, &object.place)?);
        }
        refuse_listed_twice(&misplaced, builder.so_far())
    }

    fn add_roots(
        &self,
        nearness: &Nearness,
        builder: &mut MachineBuilder,
        nodes: &mut [Option<NodeId>],
    ) -> Result<(), TopologyError> {
        let indexes = self.indexes_of(|kind| matches!(kind, Kind::HostBridge { .. }));
        if let Some(index) = indexes.get(MAX_ROOTS) {
            let place = &self.objects[*index].place;
            return Err(place.error(format!("there are more than {MAX_ROOTS} host bridges")));
        }
        for index in indexes {
            let object = &self.objects[index];
            let near = nearness.node_near(self, index, nodes).unwrap_or(builder.root());
            let bus = object.buses().map(|Buses { domain, first, .. }| RootBus { domain, bus: first });
            let kind = NodeKind::HostBridge { bus, ids: None };
            nodes[index] = Some(builder.add(near, kind, Vec::new(), &object.place)?);
        }
        Ok(())
    }

    /// The address of a function that cannot be where it is said to be, and the buses that it would have to be on.
    fn misplacement(&self, above: Option<usize>, function: &Function) -> Option<(PciAddress, Buses)> {
        let buses = self.objects[above?].buses()?;
        function.address.filter(|address| !buses.contain(*address)).map(|address| (address, buses))
    }

    fn check_below(&self, above: usize, object: &Object) -> Result<(), TopologyError> {
        match self.objects[above].kind {
            Kind::Device { .. } => Err(object.place.error("a PCI device or bridge in a PCI device")),
            _ => Ok(()),
        }
    }

    /// What the system calls the PCI devices.
    fn names(&self) -> HashMap<usize, Vec<String>> {
        let mut names: HashMap<usize, Vec<String>> = HashMap::new();
        for (index, object) in self.objects.iter().enumerate() {
            let Some(name) = object.name.clone().filter(|_| matches!(object.kind, Kind::OsDev)) else {
                continue;
            };
            let device =
                self.upwards(index).find(|above| matches!(self.objects[*above].kind, Kind::Device { .. }));
            if let Some(device) = device {
                names.entry(device).or_default().push(name);
            }
        }
        names
    }
}

/// The root of a device whose bridges were left out of the file: one of its own, as nothing says whose it shares.
fn unknown_root(
    object: &Object,
    near: NodeId,
    builder: &mut MachineBuilder,
) -> Result<NodeId, TopologyError> {
    builder.note(&object.place, "no bridge is above it in the file: how it is connected is unknown");
    builder.add(near, NodeKind::HostBridge { bus: None, ids: None }, Vec::new(), &object.place)
}

/// An address in the wrong place is a slip when another chip has it. The same chip twice is a device that is listed twice.
fn refuse_listed_twice(
    misplaced: &[(PciAddress, Option<PciIds>, &Place)],
    machine: &Machine,
) -> Result<(), TopologyError> {
    for (address, ids, place) in misplaced {
        let there = machine.at(*address).and_then(|id| machine.node(id).function());
        if there.is_some_and(|there: &Function| there.ids == *ids) {
            return Err(place.error(format!("{address} is there twice")));
        }
    }
    Ok(())
}
