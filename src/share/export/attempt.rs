//! One way, tried: the dma-buf is made, and the buffer comes to its pages.
//!
//! ```text
//!   in place     reservation { pages found ─► dma-buf of them ─► fences cross ─► │ move queued ─► held ─► table }
//!   elsewhere    dma-buf, mapped ─► reservation { fences cross ─►                │ move queued ─► held ─► table }
//!                      what fails up to here is undone                           │
//! ```
//!
//! Descriptors are made before the buffer moves, so a full table of them changes nothing.

use std::sync::{Arc, Weak};

use devpagemap_fence::Slot;
use devpagemap_fence::sync::atomic::Ordering;

use super::export::Failed;
use super::exports::Exported;
use super::via::{ExportRequest, Layout, Via, WhyNot};
use crate::backend::exporter::{Exporter, Made, Source, Wanted};
use crate::backend::{DmaBuf, OutsideFile, OutsideMemory, OutsidePages, OutsideRole};
use crate::bo::{Buffer, Found, Transaction};
use crate::error::{Error, Result};
use crate::region::{Resource, push_run};
use crate::share::Attachment;
use crate::share::importer::Joined;
use crate::sync_file::Across;

/// The dma-buf that a buffer is, or was last: part of the buffer's state.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    via: Via,
    writable: bool,
    layout: Option<Layout>,
    /// How many references to it are our own.
    own_references: u64,
    /// As in [`Given`].
    shows_others: bool,
    /// Whoever has the pages has it, and the table as long as anybody else has it.
    dma_buf: Weak<DmaBuf>,
}

impl Known {
    fn fits(&self, request: &ExportRequest) -> bool {
        (request.via == Via::Auto || request.via == self.via) && request.read_only != self.writable
    }

    fn as_reason(&self) -> WhyNot {
        WhyNot::ExportedAs { via: self.via.clone(), read_only: !self.writable }
    }
}

/// What a caller is given.
pub(super) struct Given {
    pub(super) dma_buf: DmaBuf,
    pub(super) via: Via,
    pub(super) layout: Option<Layout>,
    /// Whether its pages may show what other buffers had in them, until this one has arrived.
    pub(super) shows_others: bool,
}

/// A dma-buf to be given out, and what could still have failed.
struct Ready {
    dma_buf: Arc<DmaBuf>,
    layout: Option<Layout>,
    own_references: u64,
    /// As in [`Given`].
    shows_others: bool,
    /// The caller's.
    copy: DmaBuf,
}

impl Ready {
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], [`Error::Io`] without `/proc`, [`Error::Unsupported`] when the kernel does not count.
    fn new(dma_buf: Arc<DmaBuf>, layout: Option<Layout>, buffer: &Buffer) -> Result<Ready> {
        match buffer.name() {
            Some(name) => dma_buf.set_name(name)?,
            None => dma_buf.set_name(&format!("devpagemap:{}", buffer.id()))?,
        }
        let own_references = dma_buf.info()?.references;
        if own_references == 0 {
            return Err(Error::Unsupported {
                what: "the kernel does not say how many references a dma-buf has",
            });
        }
        let copy = dma_buf.try_clone()?;
        Ok(Ready { dma_buf, layout, own_references, shows_others: false, copy })
    }
}

/// One of which the kernel hears the buffer's fences.
struct Crossed {
    ready: Ready,
    across: Arc<Across>,
}

/// A way that is tried for a buffer.
pub(super) struct Attempt<'a> {
    buffer: &'a Buffer,
    outsiders: &'a Arc<Joined>,
    pub(super) request: &'a ExportRequest,
    pub(super) via: Via,
}

/// What an attempt comes to, or why this way does not do.
type Outcome = Result<Given, WhyNot>;

impl<'a> Attempt<'a> {
    pub(super) fn new(
        buffer: &'a Buffer,
        outsiders: &'a Arc<Joined>,
        request: &'a ExportRequest,
        via: Via,
    ) -> Attempt<'a> {
        Attempt { buffer, outsiders, request, via }
    }

    fn wanted(&self) -> Wanted {
        Wanted { len_bytes: self.buffer.0.footprint_bytes, writable: !self.request.read_only }
    }

    /// One more descriptor, for a buffer that is exported.
    ///
    /// # Errors
    /// That it is exported in another way, or what is wrong with the buffer.
    pub(super) fn again(&self) -> Result<Option<Given>, Failed> {
        let there = self.buffer.transact(|transaction, slot| transaction.export_again(slot, self))?;
        Ok(there.transpose()?)
    }

    /// Of the pages that the buffer has, or gets, in system memory.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn in_place(&self, exporter: &dyn Exporter) -> Result<Given, Failed> {
        let outcome =
            self.buffer.transact(|transaction, slot| transaction.export_in_place(slot, self, exporter))?;
        Ok(outcome?)
    }

    /// Of the exporter's own pages.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn elsewhere(&self, exporter: &dyn Exporter) -> Result<Given, Failed> {
        let (pages, ready) = self.map(exporter.make(self.wanted(), Source::Own)?)?;
        let mut ready = Some(ready);
        let outcome = self
            .buffer
            .transact(|transaction, slot| transaction.export_elsewhere(slot, self, &pages, &mut ready))?;
        Ok(outcome?)
    }

    /// Maps new pages into this process.
    fn map(&self, made: Made) -> Result<(Arc<OutsidePages>, Ready)> {
        let Made { dma_buf, window, layout, keep } = made;
        let (len_bytes, dma_buf) = (dma_buf.len_bytes(), Arc::new(dma_buf));
        let file = match window {
            None => OutsideFile::DmaBuf(dma_buf.clone()),
            Some(window) => OutsideFile::Window(window, dma_buf.clone()),
        };
        let memory = OutsideMemory { file, len_bytes, writable: true, role: OutsideRole::Exported, keep };
        let pages = self.buffer.0.manager.cpu.map_outside(memory)?;
        let ready = Ready::new(dma_buf, layout, self.buffer)?;
        Ok((pages, ready))
    }
}

impl Transaction<'_, '_, '_> {
    /// One more descriptor of the dma-buf that the buffer is; `None` when it is none, or none that anybody has any more.
    fn export_again(&mut self, slot: Slot, attempt: &Attempt<'_>) -> Result<Option<Outcome>> {
        if attempt.buffer.0.imported.is_some() {
            return self.export_import(slot, attempt).map(Some);
        }
        let Some(known) = self.exec.set().state(slot).exported.clone() else { return Ok(None) };
        let (id, table) = (attempt.buffer.id(), &self.manager.exports.table);
        if !known.fits(attempt.request) {
            drop(table.let_go_of(id).map(Exported::let_go));
            return Ok(table.keeps(id).then(|| Err(known.as_reason())));
        }
        if let Some(copy) = table.hand_out(id, |exported| exported.dma_buf.try_clone()) {
            let Known { via, layout, shows_others, .. } = known;
            return Ok(Some(Ok(Given { dma_buf: copy?, via, layout, shows_others })));
        }
        // Nobody outside had it any more, but the buffer is still in its pages.
        let pages = self.resource(slot).and_then(|resource| resource.outside.clone());
        let here = pages.as_ref().and_then(|pages| pages.dma_buf());
        let Some(dma_buf) = here.filter(|here| Arc::as_ptr(here) == known.dma_buf.as_ptr()) else {
            return Ok(None);
        };
        let ready = Ready {
            copy: dma_buf.try_clone()?,
            dma_buf: dma_buf.clone(),
            layout: known.layout,
            own_references: known.own_references,
            shows_others: known.shows_others,
        };
        let crossed = self.let_cross(slot, ready)?;
        self.publish(slot, attempt, crossed, known.via).map(|there| Some(Ok(there)))
    }

    fn export_in_place(
        &mut self,
        slot: Slot,
        attempt: &Attempt<'_>,
        exporter: &dyn Exporter,
    ) -> Result<Outcome> {
        if let Some(there) = self.export_again(slot, attempt)? {
            return Ok(there);
        }
        let probe = Attachment::new(attempt.buffer, attempt.outsiders);
        self.check_may_be_held_in_system(slot, &probe.attached)?;
        let found = self.find_in_arena(slot)?;
        let made = self.make_in_place(slot, attempt, exporter, found.as_ref()).and_then(|ready| {
            let crossed = self.let_cross(slot, ready)?;
            match &found {
                Some(Found::Memory(..)) => {
                    self.undo_on_error(slot, |transaction| transaction.announce_move(slot))?
                }
                Some(Found::SamePages(_)) | None => {}
            }
            Ok(crossed)
        });
        match made {
            Ok(crossed) => {
                self.settle(slot, found);
                self.publish(slot, attempt, crossed, attempt.via.clone()).map(Ok)
            }
            Err(failed) => {
                self.give_back(slot, found);
                match failed {
                    Failed::Passed(why) => Ok(Err(why)),
                    Failed::All(error) => Err(error),
                }
            }
        }
    }

    /// Whether the pages that a buffer will be shown in may hold bytes of other buffers until its own are there. New pages that nobody uses
    /// any more are emptied; those that others still copy from cannot be, and those that it has are what they are.
    fn shows_others(&self, slot: Slot, found: Option<&Found>) -> bool {
        match found {
            Some(Found::Memory(resource, after)) => {
                let arena = &self.manager.system.arena;
                let mut spans = resource.spans.iter();
                !after.is_signaled() || !spans.all(|span| arena.discard(span.start_bytes, span.len_bytes))
            }
            Some(Found::SamePages(_)) | None => !self.exec.set().state(slot).arrival.is_signaled(),
        }
    }

    /// From now on the kernel hears of the buffer's fences, and the buffer of the kernel's.
    ///
    /// # Errors
    /// What the kernel says. Nothing has changed then.
    fn let_cross(&mut self, slot: Slot, ready: Ready) -> Result<Crossed> {
        let across = Across::new(ready.dma_buf.clone(), self.manager);
        self.cross_over(slot, &across)?;
        Ok(Crossed { ready, across })
    }

    /// Runs `body`; when that fails, the kernel hears of the buffer no more.
    fn undo_on_error<O>(&mut self, slot: Slot, body: impl FnOnce(&mut Self) -> Result<O>) -> Result<O> {
        body(self).inspect_err(|_| self.exec.set_mut().state_mut(slot).across = None)
    }

    /// A dma-buf of the pages that the buffer will have with what was found.
    fn make_in_place(
        &self,
        slot: Slot,
        attempt: &Attempt<'_>,
        exporter: &dyn Exporter,
        found: Option<&Found>,
    ) -> Result<Ready, Failed> {
        let mut runs = Vec::new();
        for span in self.spans_with(slot, found) {
            push_run(&mut runs, span.start_bytes..span.end_bytes());
        }
        let limit = exporter.abilities().max_runs;
        if runs.len() > limit {
            return Err(WhyNot::TooManyRuns { runs: runs.len(), limit }.into());
        }
        let runs: Vec<(u64, u64)> = runs.iter().map(|run| (run.start, run.end - run.start)).collect();
        let source = Source::InPlace { memfd: self.manager.system.arena.memfd(), runs: &runs };
        // Before the kernel takes the pages: a dma-buf keeps those that it was made of.
        let shows_others = self.shows_others(slot, found);
        let made = exporter.make(attempt.wanted(), source)?;
        Ok(Ready { shows_others, ..Ready::new(Arc::new(made.dma_buf), made.layout, attempt.buffer)? })
    }

    fn export_elsewhere(
        &mut self,
        slot: Slot,
        attempt: &Attempt<'_>,
        pages: &Arc<OutsidePages>,
        ready: &mut Option<Ready>,
    ) -> Result<Outcome> {
        if let Some(there) = self.export_again(slot, attempt)? {
            return Ok(there);
        }
        let probe = Attachment::new(attempt.buffer, attempt.outsiders);
        self.check_may_be_held_in_system(slot, &probe.attached)?;
        let ready = ready.take().expect("nothing of this restarts");
        let crossed = self.let_cross(slot, ready)?;
        self.undo_on_error(slot, |transaction| transaction.bring_outside(slot, pages))?;
        self.publish(slot, attempt, crossed, attempt.via.clone()).map(Ok)
    }

    /// The buffer is in the dma-buf's pages, or on its way: it stays there, and others may have it.
    fn publish(&mut self, slot: Slot, attempt: &Attempt<'_>, crossed: Crossed, via: Via) -> Result<Given> {
        let Crossed { ready, across } = crossed;
        let Ready { dma_buf, layout, own_references, shows_others, copy } = ready;
        let attachment = Attachment::new(attempt.buffer, attempt.outsiders);
        self.undo_on_error(slot, |transaction| transaction.enter_peer(slot, &attachment.attached))?;
        let (writable, weak) = (dma_buf.is_writable(), Arc::downgrade(&dma_buf));
        let known = Known {
            via: via.clone(),
            writable,
            layout: layout.clone(),
            own_references,
            shows_others,
            dma_buf: weak,
        };
        self.exec.set_mut().state_mut(slot).exported = Some(known);
        attempt.buffer.0.exports.fetch_add(1, Ordering::AcqRel);
        self.manager.known_dma_bufs.enter_export(dma_buf.inode(), attempt.buffer);
        let exported = Exported { dma_buf, own_references, across, attachment };
        self.manager.exports.table.keep(attempt.buffer.id(), exported);
        Ok(Given { dma_buf: copy, via, layout, shows_others })
    }

    /// A buffer that came in as a dma-buf goes out as that. The kernel keeps its pages, so nothing else has to.
    fn export_import(&self, slot: Slot, attempt: &Attempt<'_>) -> Result<Outcome> {
        let pages = self.resource(slot).and_then(|resource| resource.outside.as_ref());
        let Some(dma_buf) = pages.and_then(|pages| pages.dma_buf()) else {
            return Err(Error::Unsupported {
                what: "the buffer was imported as something else than a dma-buf",
            });
        };
        let fits = matches!(attempt.request.via, Via::Auto | Via::Imported)
            && attempt.request.read_only != dma_buf.is_writable();
        if !fits {
            return Ok(Err(WhyNot::ExportedAs { via: Via::Imported, read_only: !dma_buf.is_writable() }));
        }
        let dma_buf = dma_buf.try_clone()?;
        Ok(Ok(Given { dma_buf, via: Via::Imported, layout: None, shows_others: false }))
    }

    /// Nobody outside has the buffer's dma-buf. Says whether the buffer is in the exporter's own pages: there it can be given out again.
    pub(super) fn forget_export(&mut self, slot: Slot) -> bool {
        self.end_crossing(slot);
        let state = self.exec.set_mut().state_mut(slot);
        let is_stray = state.resource.as_ref().is_some_and(Resource::is_outside);
        if !is_stray {
            state.exported = None;
        }
        is_stray
    }
}
