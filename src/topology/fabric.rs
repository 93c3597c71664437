//! Private links as files list them, put together: pair by pair, and through switches.
//!
//! ```text
//!   GPU 0 ══╦══ switch 0 ══╦══ GPU 1        files list GPU to switch; who uses the link sees GPU to GPU:
//!           ╚══ switch 1 ══╝                for each switch the narrower of the two sides, all switches together
//! ```

use std::collections::BTreeMap;

use super::builder::MachineBuilder;
use super::link::{Link, LinkKind};
use super::machine::NodeId;
use super::source::{Place, TopologyError};

/// The most pairs of ends that are put together through switches, counted for each switch. NVL72 has 93,312 of them.
const MAX_PAIRS: usize = 1 << 23;
/// The most links that a machine may have. NVL72 has 5,112.
const MAX_LINKS: usize = 1 << 14;

/// How wide a private link is in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width {
    /// Lanes or bricks.
    pub(super) lanes: u32,
    /// All of them together; `None` when it is not known how fast one is.
    pub(super) bytes_per_s: Option<u64>,
}

impl Width {
    fn plus(self, other: Width, place: &Place) -> Result<Width, TopologyError> {
        let too_wide = || place.error("the links between two devices are wider than can be counted");
        let lanes = self.lanes.checked_add(other.lanes).ok_or_else(too_wide)?;
        let bytes_per_s = match (self.bytes_per_s, other.bytes_per_s) {
            (Some(one), Some(two)) => Some(one.checked_add(two).ok_or_else(too_wide)?),
            _ => None,
        };
        Ok(Width { lanes, bytes_per_s })
    }

    /// Together with those that were known before.
    fn beside(self, known: Option<Width>, place: &Place) -> Result<Width, TopologyError> {
        known.map_or(Ok(self), |known| known.plus(self, place))
    }

    fn narrower(self, other: Width) -> Width {
        let bytes_per_s = self.bytes_per_s.zip(other.bytes_per_s).map(|(one, two)| one.min(two));
        Width { lanes: self.lanes.min(other.lanes), bytes_per_s }
    }
}

/// One device's links with one switch.
#[derive(Debug)]
struct Port {
    device: NodeId,
    to_switch: Option<Width>,
    from_switch: Option<Width>,
    place: Place,
}

/// Links as they are found; `S` names a switch.
#[derive(Debug)]
pub(super) struct Fabric<S> {
    kind: LinkKind,
    /// From, to, how wide, and where that was said first.
    links: BTreeMap<(NodeId, NodeId), (Width, Place)>,
    ports: BTreeMap<S, BTreeMap<NodeId, Port>>,
}

impl<S: Ord> Fabric<S> {
    /// Links of one kind.
    pub(super) fn new(kind: LinkKind) -> Fabric<S> {
        Fabric { kind, links: BTreeMap::new(), ports: BTreeMap::new() }
    }

    /// A link from one device to another.
    pub(super) fn direct(
        &mut self,
        ends: (NodeId, NodeId),
        width: Width,
        place: &Place,
    ) -> Result<(), TopologyError> {
        if let Some((known, first)) = self.links.get_mut(&ends) {
            *known = known.plus(width, first)?;
        } else {
            self.links.insert(ends, (width, place.clone()));
        }
        Ok(())
    }

    /// A link from a device to a switch.
    pub(super) fn uplink(
        &mut self,
        device: NodeId,
        switch: S,
        width: Width,
        place: &Place,
    ) -> Result<(), TopologyError> {
        let port = self.port(device, switch, place);
        port.to_switch = Some(width.beside(port.to_switch, place)?);
        Ok(())
    }

    /// A link from a switch to a device.
    pub(super) fn downlink(
        &mut self,
        device: NodeId,
        switch: S,
        width: Width,
        place: &Place,
    ) -> Result<(), TopologyError> {
        let port = self.port(device, switch, place);
        port.from_switch = Some(width.beside(port.from_switch, place)?);
        Ok(())
    }

    fn port(&mut self, device: NodeId, switch: S, place: &Place) -> &mut Port {
        let ports = self.ports.entry(switch).or_default();
        ports.entry(device).or_insert_with(|| Port {
            device,
            to_switch: None,
            from_switch: None,
            place: place.clone(),
        })
    }

    /// Adds all links to a machine.
    ///
    /// # Errors
    /// What the builder refuses, where it was said; and more pairs than a real machine has.
    pub(super) fn finish(mut self, builder: &mut MachineBuilder) -> Result<(), TopologyError> {
        let ports = std::mem::take(&mut self.ports);
        let mut pairs = 0;
        for ports in ports.into_values() {
            let ports: Vec<Port> = ports.into_values().collect();
            pairs += ports.len() * ports.len();
            if pairs > MAX_PAIRS {
                let reason = format!("more than {MAX_PAIRS} pairs of devices are linked by switches");
                return Err(ports[0].place.error(reason));
            }
            self.join(&ports)?;
        }
        if let Some((_, place)) = self.links.values().nth(MAX_LINKS) {
            return Err(place.error(format!("there are more than {MAX_LINKS} links between devices")));
        }
        for ((from, to), (width, place)) in self.links {
            let Width { lanes, bytes_per_s } = width;
            let link = Link { from, to, kind: self.kind, count: lanes, bytes_per_s, atomics: None };
            builder.link(link, &place)?;
        }
        Ok(())
    }

    /// All pairs of one switch.
    fn join(&mut self, ports: &[Port]) -> Result<(), TopologyError> {
        for from in ports {
            for to in ports.iter().filter(|to| to.device != from.device) {
                if let (Some(up), Some(down)) = (from.to_switch, to.from_switch) {
                    self.direct((from.device, to.device), up.narrower(down), &from.place)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::function::Function;
    use super::super::machine::{Machine, NodeKind};
    use super::*;

    fn place() -> Place {
        Place { file: "x.xml".into(), line: Some(7) }
    }

    fn two_gpus() -> (MachineBuilder, NodeId, NodeId) {
        let mut builder = Machine::builder();
        let root = NodeKind::HostBridge { bus: None, ids: None };
        let root = builder.add(builder.root(), root, Vec::new(), &place()).unwrap();
        let function = || NodeKind::Function(Function::default());
        let mut add = || builder.add(root, function(), Vec::new(), &place()).unwrap();
        let (one, two) = (add(), add());
        (builder, one, two)
    }

    fn width(lanes: u32) -> Width {
        Width { lanes, bytes_per_s: Some(u64::from(lanes) * 25_000_000_000) }
    }

    #[test]
    fn a_link_through_switches_is_as_wide_as_the_narrower_sides_together() {
        let (mut builder, one, two) = two_gpus();
        let mut fabric = Fabric::new(LinkKind::NvLink);
        for (switch, up, down) in [(0, 2, 1), (1, 1, 2), (2, 3, 3)] {
            fabric.uplink(one, switch, width(up), &place()).unwrap();
            fabric.downlink(two, switch, width(down), &place()).unwrap();
        }
        fabric.finish(&mut builder).unwrap();
        let machine = builder.build();
        let [link] = machine.links() else { panic!("one direction was said: {:?}", machine.links()) };
        assert_eq!((link.from, link.to, link.count, link.bytes_per_s), (one, two, 5, Some(125_000_000_000)));
    }

    #[test]
    fn links_that_cannot_be_counted_are_refused_where_they_stand() {
        let (_, one, two) = two_gpus();
        let mut fabric = Fabric::<()>::new(LinkKind::Xgmi);
        fabric.direct((one, two), width(1), &place()).unwrap();
        let error =
            fabric.direct((one, two), Width { lanes: u32::MAX, bytes_per_s: None }, &place()).unwrap_err();
        assert_eq!(error.to_string(), "x.xml:7: the links between two devices are wider than can be counted");
    }
}
