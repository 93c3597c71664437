//! Deciding many pairs: of a newcomer with all who are there, and of all who are there when what they depend on has changed.

use devpagemap_fence::sync::Arc;

use super::decide::{Untold, decide};
use super::decision::Decision;
use super::inputs::{Exporter, Inputs, Seeker, Setting};
use super::observe::{Party, Sightings};
use super::snapshot::{ImporterRow, PagemapRow, Snapshot};
use super::table::Table;

/// Decisions by slot of the other; with those of whom there is none, nothing is reached.
pub(super) fn by_slot<R>(
    others: &Table<R>,
    mut decide: impl FnMut(&R) -> Option<Decision>,
) -> Box<[Decision]> {
    let mut decisions = vec![Decision::GONE; others.len()];
    for (slot, other) in others.rows() {
        decisions[slot] = decide(other).unwrap_or(Decision::GONE);
    }
    decisions.into()
}

pub(super) fn decide_for(setting: &Setting, exporter: Exporter<'_>, importer: Seeker<'_>) -> Decision {
    decide(&Inputs::of(setting, exporter, importer), &mut Untold)
}

impl Snapshot {
    /// Decides every pair anew.
    pub fn decide_all(&mut self) {
        let setting = self.setting.clone();
        let pagemaps = self.pagemaps.map(|row| {
            let spot = setting.spot(row.spec.owner.place()).map(Arc::new);
            Arc::new(PagemapRow { spot, ..row.undecided() })
        });
        let importers = self.importers.map(|row| {
            let spot = setting.spot(row.profile.at).map(Arc::new);
            let system = Decision::system(spot.as_ref().and_then(|spot| spot.up_bytes_per_s()));
            Arc::new(ImporterRow { spot, system, ..row.undecided() })
        });
        // Only now are all of them where they are.
        self.pagemaps = pagemaps.map(|row| {
            let decisions = by_slot(&importers, |importer| {
                let is_earlier = importer.joined < row.joined;
                is_earlier.then(|| decide_for(&setting, row.exporter(), importer.seeker()))
            });
            Arc::new(PagemapRow { decisions, ..row.undecided() })
        });
        self.importers = importers.map(|row| {
            let decisions = by_slot(&pagemaps, |pagemap| {
                let is_earlier = pagemap.joined < row.joined;
                is_earlier.then(|| decide_for(&setting, pagemap.exporter(), row.seeker()))
            });
            Arc::new(ImporterRow { decisions, ..row.undecided() })
        });
    }

    /// Decides anew for those who go by these names.
    pub fn decide_pair(&mut self, exporter: &Party, importer: &Party) {
        let setting = self.setting.clone();
        let pagemaps: Vec<Arc<PagemapRow>> = self
            .pagemaps
            .rows()
            .filter(|(_, row)| Party::from(&row.spec.owner) == *exporter)
            .map(|(_, row)| Arc::clone(row))
            .collect();
        let importers: Vec<Arc<ImporterRow>> = self
            .importers
            .rows()
            .filter(|(_, row)| row.party == *importer)
            .map(|(_, row)| Arc::clone(row))
            .collect();
        for pagemap in &pagemaps {
            let mut decisions = pagemap.decisions.clone();
            for importer in importers.iter().filter(|importer| importer.joined < pagemap.joined) {
                let slot = importer.id.slot as usize;
                decisions[slot] = decide_for(&setting, pagemap.exporter(), importer.seeker());
            }
            let row = PagemapRow { decisions, ..pagemap.undecided() };
            self.pagemaps.set(pagemap.tag.slot(), Some(Arc::new(row)));
        }
        for importer in &importers {
            let mut decisions = importer.decisions.clone();
            for pagemap in pagemaps.iter().filter(|pagemap| pagemap.joined < importer.joined) {
                decisions[pagemap.tag.slot()] = decide_for(&setting, pagemap.exporter(), importer.seeker());
            }
            let row = ImporterRow { decisions, ..importer.undecided() };
            self.importers.set(importer.id.slot as usize, Some(Arc::new(row)));
        }
    }

    /// Forgets what was seen of those who go by no address, and have left.
    pub fn forget_the_gone(&mut self) {
        if self.setting.sightings.is_empty() {
            return;
        }
        let exports =
            |party: &Party| self.pagemaps.rows().any(|(_, row)| Party::from(&row.spec.owner) == *party);
        let imports = |party: &Party| self.importers.rows().any(|(_, row)| row.party == *party);
        let is_placed = |party: &Party| matches!(party, Party::At(_));
        let mut sightings = Sightings::clone(&self.setting.sightings);
        sightings.retain(|exporter, importer| {
            (is_placed(exporter) || exports(exporter)) && (is_placed(importer) || imports(importer))
        });
        self.setting.sightings = Arc::new(sightings);
    }
}
