//! Snapshots: all decisions as they are at one moment, to be looked up without a lock.
//!
//! ```text
//!   pagemaps    slot 0: joined 1st  │        importers   slot 0: joined 3rd  [a ─ 0, a ─ 1]
//!               slot 1: joined 2nd  │                    slot 1: joined 5th  [b ─ 0, b ─ 1, b ─ 2]
//!               slot 2: joined 4th  [2 ─ a]
//! ```
//!
//! The decision of a pair is kept by whoever of the two joined later. So who joins works out one decision for each who is there already, and
//! copies none of theirs. A snapshot never changes, except that it knows at once of who has left and of memory that has
//! been taken away: those words are shared by all snapshots.

use devpagemap_fence::sync::atomic::{AtomicU8, Ordering};
use devpagemap_fence::sync::{Arc, mutant};

use super::decide::{self, Told, Untold};
use super::decision::Decision;
use super::inputs::{Exporter, Inputs, Seeker, Setting};
use super::observe::Party;
use super::owner::PagemapSpec;
use super::profile::Profile;
use super::reason::{Explanation, Reason, Remedy};
use super::table::Table;
use super::tag::{ImporterId, PageTag, PagemapId};
use super::way::Spot;
use crate::topology::Machine;

/// What has become of a pagemap or an importer.
#[derive(Debug, Default)]
pub(super) struct Fate(AtomicU8);

const THERE: u8 = 0;
const REVOKED: u8 = 1;
const GONE: u8 = 2;

impl Fate {
    #[inline]
    pub fn is_gone(&self) -> bool {
        self.0.load(Ordering::Acquire) == GONE
    }

    pub fn is_revoked(&self) -> bool {
        self.0.load(Ordering::Acquire) == REVOKED
    }

    /// It has left, for good.
    pub fn leave(&self) {
        self.0.store(GONE, Ordering::Release);
    }

    /// Its memory is taken away, or is there again. What has left stays so.
    pub fn revoke(&self, is_revoked: bool) {
        let (from, to) = if is_revoked { (THERE, REVOKED) } else { (REVOKED, THERE) };
        // Failure: it is so already, or it has left.
        let _ = self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// A pagemap in a snapshot.
#[derive(Debug)]
pub(super) struct PagemapRow {
    pub tag: PageTag,
    /// When it joined, among all joiners of its registry.
    pub joined: u64,
    pub spec: Arc<PagemapSpec>,
    pub spot: Option<Arc<Spot>>,
    pub fate: Arc<Fate>,
    /// By slot of the importer, for those that were there before it.
    pub decisions: Box<[Decision]>,
}

/// An importer in a snapshot.
#[derive(Debug)]
pub(super) struct ImporterRow {
    pub id: ImporterId,
    /// As for pagemaps.
    pub joined: u64,
    pub profile: Arc<Profile>,
    pub party: Party,
    pub spot: Option<Arc<Spot>>,
    pub fate: Arc<Fate>,
    /// How it reaches memory of the system.
    pub system: Decision,
    /// By slot of the pagemap, for those that were there before it.
    pub decisions: Box<[Decision]>,
}

impl PagemapRow {
    pub fn exporter(&self) -> Exporter<'_> {
        Exporter { spec: &self.spec, spot: self.spot.as_deref() }
    }

    /// The same, but for the decisions.
    pub fn undecided(&self) -> PagemapRow {
        PagemapRow {
            tag: self.tag,
            joined: self.joined,
            spec: Arc::clone(&self.spec),
            spot: self.spot.clone(),
            fate: Arc::clone(&self.fate),
            decisions: Box::default(),
        }
    }
}

impl ImporterRow {
    pub fn seeker(&self) -> Seeker<'_> {
        Seeker { profile: &self.profile, party: &self.party, spot: self.spot.as_deref() }
    }

    /// The same, but for the decisions.
    pub fn undecided(&self) -> ImporterRow {
        ImporterRow {
            id: self.id,
            joined: self.joined,
            profile: Arc::clone(&self.profile),
            party: self.party.clone(),
            spot: self.spot.clone(),
            fate: Arc::clone(&self.fate),
            system: self.system,
            decisions: Box::default(),
        }
    }

    fn name(&self) -> String {
        match (&self.profile.name, self.profile.at, &self.profile.device) {
            (Some(name), ..) => name.to_string(),
            (None, Some(at), _) => at.to_string(),
            (None, None, Some(device)) => device.name().to_string(),
            (None, None, None) => format!("importer {}", self.id.slot),
        }
    }
}

/// The decision of two who are there: whoever joined later has it.
#[inline]
fn kept(pagemap: &PagemapRow, importer: &ImporterRow) -> Decision {
    if pagemap.joined > importer.joined {
        pagemap.decisions[importer.id.slot as usize]
    } else {
        importer.decisions[pagemap.tag.slot()]
    }
}

/// All decisions at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) setting: Setting,
    pub(super) pagemaps: Table<PagemapRow>,
    pub(super) importers: Table<ImporterRow>,
}

impl Snapshot {
    /// Counts the snapshots of a registry.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The machine, as far as it is known.
    pub fn machine(&self) -> Option<&Arc<Machine>> {
        self.setting.world.as_ref().map(|world| world.machine())
    }

    /// How an importer reaches a pagemap. For one that has left, that nothing is reached.
    #[inline]
    pub fn decision(&self, pagemap: PagemapId, importer: ImporterId) -> Decision {
        self.importer(importer).map_or(Decision::GONE, |importer| self.decide(pagemap.tag(), importer))
    }

    /// How an importer reaches a page.
    #[inline]
    pub(super) fn decide(&self, tag: PageTag, importer: &ImporterRow) -> Decision {
        if tag == PageTag::SYSTEM {
            return importer.system;
        }
        let Some(pagemap) = self.pagemap(tag) else { return Decision::GONE };
        if pagemap.fate.0.load(Ordering::Acquire) != THERE {
            return if pagemap.fate.is_gone() { Decision::GONE } else { Decision::system(None) };
        }
        kept(pagemap, importer)
    }

    /// The row of a pagemap that has not left when this snapshot was made.
    #[inline]
    fn pagemap(&self, tag: PageTag) -> Option<&PagemapRow> {
        let row = self.pagemaps.get(tag.slot())?;
        (row.tag == tag || mutant!("a_slot_is_taken_for_its_tenant")).then_some(row)
    }

    /// The row of an importer that is there.
    #[inline]
    pub(super) fn importer(&self, id: ImporterId) -> Option<&ImporterRow> {
        let row = self.importers.get(id.slot as usize)?;
        (row.id == id && !row.fate.is_gone()).then_some(row)
    }

    /// A decision with all its reasons, worked out anew from what it was made of.
    pub fn explain(&self, pagemap: PagemapId, importer: ImporterId) -> Explanation {
        let (exporter, seeker) = (self.pagemap(pagemap.tag()), self.importer(importer));
        let Some((exporter, seeker)) = exporter.zip(seeker).filter(|(row, _)| !row.fate.is_gone()) else {
            return Explanation {
                exporter: exporter.map_or("a pagemap".to_string(), |row| row.spec.owner.name().to_string()),
                importer: seeker.map_or("an importer".to_string(), ImporterRow::name),
                decision: Decision::GONE,
                reasons: vec![Reason::Gone],
            };
        };
        let names = (exporter.spec.owner.name().to_string(), seeker.name());
        let (decision, reasons) = if exporter.fate.is_revoked() {
            (Decision::system(None), vec![Reason::Revoked])
        } else {
            self.reasons(exporter, seeker)
        };
        Explanation { exporter: names.0, importer: names.1, decision, reasons }
    }

    fn reasons(&self, pagemap: &PagemapRow, importer: &ImporterRow) -> (Decision, Vec<Reason>) {
        let inputs = Inputs::of(&self.setting, pagemap.exporter(), importer.seeker());
        let Told { mut reasons, mut remedies, decision } = decide::tell(&inputs);
        debug_assert_eq!(decision, kept(pagemap, importer), "explained as it was decided");
        if !decision.route.is_p2p() {
            let mut changed = inputs;
            let mut all: Vec<Remedy> = Vec::new();
            // What stands behind the first things in the way shows only when those are gone.
            while !remedies.is_empty() {
                changed = remedies.iter().fold(changed, Inputs::with);
                all.append(&mut remedies);
                remedies = decide::tell(&changed).remedies;
                remedies.retain(|remedy| !all.contains(remedy));
            }
            let then = decide::decide(&changed, &mut Untold);
            if then.route.is_p2p() && !all.is_empty() {
                let bandwidth_bytes_per_s = then.bandwidth_bytes_per_s;
                reasons.push(Reason::Would { remedies: all, route: then.route, bandwidth_bytes_per_s });
            }
        }
        (decision, reasons)
    }

    /// The pagemaps that were there when this snapshot was made.
    pub fn pagemaps(&self) -> impl Iterator<Item = (PagemapId, &PagemapSpec)> {
        let there = self.pagemaps.rows().filter(|(_, row)| !row.fate.is_gone());
        there.map(|(_, row)| (PagemapId(row.tag), &*row.spec))
    }

    /// The importers that were there when this snapshot was made.
    pub fn importers(&self) -> impl Iterator<Item = (ImporterId, &Profile)> {
        let there = self.importers.rows().filter(|(_, row)| !row.fate.is_gone());
        there.map(|(_, row)| (row.id, &*row.profile))
    }
}
