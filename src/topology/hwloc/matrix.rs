//! `<distances2>`: matrices of latencies and bandwidths. Those of private links become links.
//!
//! ```text
//!   <distances2hetero nbobjs="3" name="NVLinkBandwidth">      from the object of a row to that of a column, in MB/s
//!     <indexes> OSDev:802 OSDev:803 PCIDev:449 </indexes>     the device that the system calls so, a switch
//!     <u64values> 0 0 150000  0 0 150000  150000 150000 0 </u64values>
//! ```

use std::collections::HashMap;

use super::Document;
use super::object::Kind;
use crate::topology::builder::MachineBuilder;
use crate::topology::fabric::{Fabric, Width};
use crate::topology::link::LinkKind;
use crate::topology::machine::NodeId;
use crate::topology::source::{Place, TopologyError};
use crate::topology::xml::Element;

/// The most objects of one matrix. Machines have 28.
const MAX_OBJECTS: usize = 1_024;

/// A matrix as it stands.
#[derive(Debug)]
pub(super) struct Matrix {
    place: Place,
    name: String,
    /// The type of all objects, where it is not said at each.
    type_name: Option<String>,
    by_os_index: bool,
    wanted: usize,
    /// Type, where it is said, and index.
    objects: Vec<(Option<String>, u64)>,
    values: Vec<u64>,
    /// The text of the element that is open.
    text: String,
}

impl Matrix {
    pub(super) fn new(element: &Element) -> Result<Matrix, TopologyError> {
        let wanted: Option<usize> = element.number("nbobjs")?;
        let wanted = wanted.ok_or_else(|| element.wrong("a matrix without `nbobjs`"))?;
        if !(1..=MAX_OBJECTS).contains(&wanted) {
            return Err(element.wrong(format!("nbobjs=\"{wanted}\" is not from 1 to {MAX_OBJECTS}")));
        }
        Ok(Matrix {
            place: element.place.clone(),
            name: element.get("name").unwrap_or_default().to_string(),
            type_name: element.get("type").map(str::to_string),
            by_os_index: element.get("indexing") == Some("os"),
            wanted,
            objects: Vec::new(),
            values: Vec::new(),
            text: String::new(),
        })
    }

    /// Text of an element in it, which may come in pieces.
    pub(super) fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Takes the text so far as indexes of objects.
    pub(super) fn end_of_indexes(&mut self) -> Result<(), TopologyError> {
        for word in std::mem::take(&mut self.text).split_ascii_whitespace() {
            let (type_name, index) = match word.split_once(':') {
                Some((type_name, index)) => (Some(type_name.to_string()), index),
                None => (None, word),
            };
            let index = index.parse();
            let index = index.map_err(|_| self.place.error(format!("`{word}` is no index of an object")))?;
            self.objects.push((type_name, index));
        }
        self.refuse_longer("indexes", self.objects.len(), self.wanted)
    }

    /// Takes the text so far as values.
    pub(super) fn end_of_values(&mut self) -> Result<(), TopologyError> {
        for word in std::mem::take(&mut self.text).split_ascii_whitespace() {
            let value = word.parse();
            self.values
                .push(value.map_err(|_| self.place.error(format!("`{word}` is no value of a matrix")))?);
        }
        self.refuse_longer("values", self.values.len(), self.wanted * self.wanted)
    }

    fn refuse_longer(&self, what: &str, len: usize, most: usize) -> Result<(), TopologyError> {
        match len > most {
            true => Err(self
                .place
                .error(format!("a matrix of {} objects has more than {most} {what}", self.wanted))),
            false => Ok(()),
        }
    }

    /// Refuses a matrix that is not complete.
    pub(super) fn check(&self) -> Result<(), TopologyError> {
        let found = (self.objects.len(), self.values.len());
        let wanted = (self.wanted, self.wanted * self.wanted);
        match found == wanted {
            true => Ok(()),
            false => Err(self.place.error(format!(
                "a matrix of {} objects has {} indexes and {} values instead of {} and {}",
                self.wanted, found.0, found.1, wanted.0, wanted.1
            ))),
        }
    }

    fn link_kind(&self) -> Option<LinkKind> {
        match self.name.as_str() {
            "NVLinkBandwidth" => Some(LinkKind::NvLink),
            "XGMIBandwidth" => Some(LinkKind::Xgmi),
            _ => None,
        }
    }

    /// What its objects are, in order. `None` for what is no part of the machine's model.
    fn ends(&self, document: &Document, nodes: &[Option<NodeId>]) -> Result<Vec<Option<End>>, TopologyError> {
        let by_key: HashMap<(&str, u64), usize> = document
            .objects
            .iter()
            .enumerate()
            .filter_map(|(index, object)| {
                let number = if self.by_os_index { object.os_index } else { object.gp_index };
                Some(((object.type_name.as_str(), number?), index))
            })
            .collect();
        let end = |(own_type, number): &(Option<String>, u64)| {
            let type_name = own_type.as_deref().or(self.type_name.as_deref()).unwrap_or_default();
            let index = by_key.get(&(type_name, *number));
            let unknown = || self.place.error(format!("{type_name}:{number} is not in the file"));
            let index = *index.ok_or_else(unknown)?;
            Ok(End::of(document, index, nodes))
        };
        self.objects.iter().map(end).collect()
    }

    fn add_to(&self, fabric: &mut Fabric<NodeId>, ends: &[Option<End>]) -> Result<(), TopologyError> {
        for (row, from) in ends.iter().enumerate() {
            for (column, to) in ends.iter().enumerate() {
                let value = self.values[row * self.wanted + column];
                let (Some(from), Some(to)) = (from, to) else { continue };
                if value == 0 || row == column || from == to {
                    continue;
                }
                let width = width(self.link_kind(), value)
                    .ok_or_else(|| self.place.error(format!("a link of {value} MB/s")))?;
                match (*from, *to) {
                    (End::Device(from), End::Device(to)) => fabric.direct((from, to), width, &self.place)?,
                    (End::Device(from), End::Switch(to)) => fabric.uplink(from, to, width, &self.place)?,
                    (End::Switch(from), End::Device(to)) => fabric.downlink(to, from, width, &self.place)?,
                    // hwloc asks devices for their links, never switches for those among them.
                    (End::Switch(_), End::Switch(_)) => {}
                }
            }
        }
        Ok(())
    }
}

/// One end of a private link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Device(NodeId),
    Switch(NodeId),
}

impl End {
    /// The device that an object is or names. CPUs have links too.
    fn of(document: &Document, index: usize, nodes: &[Option<NodeId>]) -> Option<End> {
        document.upwards(index).find_map(|above| match document.objects[above].kind {
            Kind::Device { is_link_switch: true, .. } => nodes[above].map(End::Switch),
            Kind::Device { .. } => nodes[above].map(End::Device),
            Kind::Package(_) | Kind::Memory(_) if above == index => nodes[above].map(End::Device),
            _ => None,
        })
    }
}

/// Lanes are not in a file; they follow from the rate where it is a multiple of what one lane carries, in MB/s. The first
/// NVLink had 20 GB/s and four of them at most; xGMI has 64 (MI300), 50 (MI200) or 46 (MI50, MI100).
fn width(kind: Option<LinkKind>, mega_bytes_per_s: u64) -> Option<Width> {
    let lane_rates: &[u64] = match kind {
        Some(LinkKind::NvLink) => &[25_000, 20_000, 26_562],
        _ => &[64_000, 50_000, 46_000],
    };
    let rate = lane_rates.iter().find(|rate| mega_bytes_per_s.is_multiple_of(**rate));
    let lanes = u32::try_from(rate.map_or(1, |rate| mega_bytes_per_s / rate)).ok()?;
    Some(Width { lanes, bytes_per_s: Some(mega_bytes_per_s.checked_mul(1_000_000)?) })
}

/// Adds the private links of all matrices.
pub(super) fn add_links(
    document: &Document,
    nodes: &[Option<NodeId>],
    builder: &mut MachineBuilder,
) -> Result<(), TopologyError> {
    for matrix in &document.matrices {
        if let Some(kind) = matrix.link_kind() {
            let ends = matrix.ends(document, nodes)?;
            let mut fabric = Fabric::new(kind);
            matrix.add_to(&mut fabric, &ends)?;
            fabric.finish(builder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_follow_from_rates() {
        let lanes = |kind, rate| width(Some(kind), rate).unwrap().lanes;
        assert_eq!(lanes(LinkKind::NvLink, 150_000), 6);
        assert_eq!(lanes(LinkKind::NvLink, 40_000), 2);
        assert_eq!(lanes(LinkKind::Xgmi, 200_000), 4);
        assert_eq!(lanes(LinkKind::Xgmi, 92_000), 2);
        assert_eq!(lanes(LinkKind::Xgmi, 12_345), 1);
        assert_eq!(width(Some(LinkKind::NvLink), u64::MAX), None);
    }
}
