//! The kernel's view, for comparison: devices in groups that trust each other, as `drm_pagemap_util` forms them.
//!
//! There, whoever joins goes through the groups in the order in which they began, asks each member in one direction only whether the two are connected, and
//! stays in the first group where all said yes; else it begins one of its own. It is never asked again. So groups are disjoint, depend on the order
//! of joining, and cannot say that A reaches B and B does not reach A:
//!
//! ```text
//!   A ─── B ─── C        joined A, B, C:  {A, B} {C}     B and C are connected and do not know it
//!                        joined B, C, A:  {B, C} {A}     now it is A and B
//!                        joined A, C, B:  {A, B} {C}
//! ```

use super::snapshot::Snapshot;
use super::tag::{ImporterId, PagemapId};

/// A device that has memory and reaches for that of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelPeer {
    /// Its memory.
    pub pagemap: PagemapId,
    /// Itself.
    pub importer: ImporterId,
}

impl Snapshot {
    /// The groups that the kernel's registry would form of `peers`, joining in that order, if it asked this one who is connected. Groups are of
    /// indices into `peers`.
    pub fn kernel_groups(&self, peers: &[KernelPeer]) -> Vec<Vec<usize>> {
        let connected = |newcomer: usize, member: usize| {
            self.decision(peers[member].pagemap, peers[newcomer].importer).p2p == Some(true)
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for newcomer in 0..peers.len() {
            let fits = |group: &&mut Vec<usize>| group.iter().all(|member| connected(newcomer, *member));
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(newcomer),
                None => groups.push(vec![newcomer]),
            }
        }
        groups
    }
}
