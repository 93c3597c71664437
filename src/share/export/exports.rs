//! What a device has exported, and the thread that finds out when nobody outside has it any more.
//!
//! The thread exists while something is exported. It looks soon after a change, ever less often while nothing changes, and at once when
//! it is poked: when a handle of an exported buffer, or of the device, is dropped. Whoever lacks system memory looks himself, and
//! leaves the tidying up to the thread, as he holds reservations.
//!
//! A buffer that was let go of in an exporter's own pages is a *stray*: it is in no budget. It may be exported again in a moment, by which
//! nothing would have to be copied, so it is left alone for a while; then the thread brings it back to the arena.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devpagemap_fence::sync::Condvar;
use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::sync::thread::Builder;
use devpagemap_fence::{Fence, Outside};

use super::policy;
use super::via::{Via, WhyNot};
use super::watch::{ExportTable, Kept};
use crate::backend::DmaBuf;
use crate::backend::exporter::Exporter;
use crate::bo::WeakBuffer;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::pagemap::Profile;
use crate::share::Attachment;
use crate::share::importer::{Importer, Invalidated, Joined, Peer};
use crate::sync_file::Across;

/// How long after a change the thread looks again, and how long it waits at most.
const SOON: Duration = Duration::from_millis(10);
const SELDOM: Duration = Duration::from_secs(1);
/// How long a stray is left where it is.
const LINGER: Duration = Duration::from_secs(1);

/// A buffer's dma-buf, as long as others may have it.
pub(crate) struct Exported {
    pub(super) dma_buf: Arc<DmaBuf>,
    /// How many references to it are our own.
    pub(super) own_references: u64,
    /// Knows what work others have queued on it.
    pub(super) across: Arc<Across>,
    /// Stands for everybody outside: it keeps the buffer, and keeps it where it is.
    pub(super) attachment: Attachment,
}

impl Kept for Exported {
    fn is_used_outside(&self) -> bool {
        // What cannot be found out is taken for used. The references first: while a fence is outstanding, whoever asks for the fences, as
        // we do, has one more until it signals. Work of ours that is outstanding keeps the pages as it does anyway.
        let references = self.dma_buf.info().map_or(0, |info| info.references);
        references == 0 || references > self.own_references || self.across.is_used()
    }

    fn len_bytes(&self) -> u64 {
        self.dma_buf.len_bytes()
    }
}

/// Whoever is outside, as an importer that nobody can tell anything.
struct Outsiders;

impl Importer for Outsiders {
    fn name(&self) -> &str {
        "holders of a dma-buf"
    }

    fn profile(&self) -> Profile {
        Profile::pinned().system_only()
    }

    fn invalidate(&self, _what: &Invalidated) -> Option<Fence> {
        None
    }
}

/// What a device has exported.
pub(crate) struct Exports {
    pub(super) table: ExportTable<Exported>,
    /// Who makes dma-bufs, from the first use on. Its own lock.
    exporters: Outside<HashMap<Via, Arc<dyn Exporter>>>,
    /// All who are outside, from the first export on. Its own lock.
    outsiders: Outside<Option<Arc<Joined>>>,
    /// Its own lock.
    thread: Outside<Thread>,
    /// Notified when there is something to look at.
    wake: Condvar,
}

/// What the thread and those who wake it share.
#[derive(Default)]
struct Thread {
    runs: bool,
    poked: bool,
    /// Exports that are being made.
    under_way: usize,
    /// Buffers that were let go of, and still know their dma-buf.
    untidy: Vec<WeakBuffer>,
    /// Those that are still in an exporter's pages, and since when.
    strays: Vec<(WeakBuffer, Instant)>,
}

impl Thread {
    fn has_nothing_to_do(&self) -> bool {
        self.under_way == 0 && self.untidy.is_empty() && self.strays.is_empty()
    }
}

/// An export that is being made: the thread is there, and stays.
pub(super) struct UnderWay<'a>(&'a Exports);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.thread.lock().under_way -= 1;
        self.0.wake.notify_one();
    }
}

impl Exports {
    pub(crate) fn new() -> Arc<Exports> {
        Arc::new(Exports {
            table: ExportTable::new(),
            exporters: Outside::new("exporters", HashMap::new()),
            outsiders: Outside::new("importers outside", None),
            thread: Outside::new("watch of exports", Thread::default()),
            wake: Condvar::new(),
        })
    }

    /// Bytes of buffers that are exported now.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.table.len_bytes()
    }

    /// Whoever makes dma-bufs that way.
    ///
    /// # Errors
    /// Why it cannot be used. It is asked again next time.
    pub(super) fn exporter(&self, via: &Via) -> Result<Arc<dyn Exporter>, WhyNot> {
        if let Some(open) = self.exporters.lock().get(via) {
            return Ok(open.clone());
        }
        let opened = policy::open(via)?;
        #[cfg(feature = "gbm")]
        if matches!(via, Via::Gbm(_)) {
            // One for each image: nothing of it is used twice.
            return Ok(opened);
        }
        // Whoever was faster stays: handles of buffers are counted by node.
        Ok(self.exporters.lock().entry(via.clone()).or_insert(opened).clone())
    }

    /// All who are outside, as one importer.
    ///
    /// # Errors
    /// [`Error::RegistryFull`].
    pub(super) fn outsiders(&self, manager: &Arc<Manager>) -> Result<Arc<Joined>> {
        if let Some(joined) = &*self.outsiders.lock() {
            return Ok(joined.clone());
        }
        let joined = Peer::join(manager.clone(), Arc::new(Outsiders))?.joined().clone();
        Ok(self.outsiders.lock().get_or_insert(joined).clone())
    }

    /// Starts the thread, if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] when the system has no thread left.
    pub(super) fn begin(self: &Arc<Self>, manager: Weak<Manager>) -> Result<UnderWay<'_>> {
        let mut thread = self.thread.lock();
        if !thread.runs {
            let exports = self.clone();
            let run = move || exports.run(&manager);
            let started = Builder::new().name("devpagemap-exports".into()).spawn(run);
            started.map_err(|error| Error::Io {
                action: "start the thread that watches exports",
                bytes: 0,
                errno: error.raw_os_error().unwrap_or_default(),
            })?;
            thread.runs = true;
        }
        thread.under_way += 1;
        Ok(UnderWay(self))
    }

    /// Somebody may have let go. Costs a load when nothing is exported.
    pub(crate) fn poke(&self) {
        if self.table.is_empty() {
            return;
        }
        self.thread.lock().poked = true;
        self.wake.notify_one();
    }

    /// How often something was let go of so far.
    pub(crate) fn departures(&self) -> usize {
        self.table.departures()
    }

    /// Lets go of what nobody outside has, in whatever thread that is, with reservations held; says whether something was let go of
    /// since there were so many `departures`, by whomever.
    pub(crate) fn let_go_since(self: &Arc<Self>, departures: usize, manager: Weak<Manager>) -> bool {
        if self.table.is_empty() {
            return self.table.let_go_since(departures, drop);
        }
        // Without a thread they go on knowing the dma-bufs that they had, which does no harm.
        let _thread = self.begin(manager);
        let mut untidy = Vec::new();
        let went = self.table.let_go_since(departures, |exported| untidy.push(exported.let_go()));
        if !untidy.is_empty() {
            let mut thread = self.thread.lock();
            thread.untidy.extend(untidy);
            thread.poked = true;
            self.wake.notify_one();
        }
        went
    }

    /// The same; names those whose memory is free when this returns, unless there are other handles of their buffers.
    fn let_go(&self) -> Vec<WeakBuffer> {
        let mut untidy = Vec::new();
        self.table.let_go(|exported| untidy.push(exported.let_go()));
        untidy
    }

    fn run(&self, manager: &Weak<Manager>) {
        let mut pause = SOON;
        while let Some(untidy) = self.wait(&mut pause) {
            // The device may go meanwhile; then this is the thread that takes it down.
            let Some(manager) = manager.upgrade() else { return };
            let gone = self.let_go();
            if !gone.is_empty() {
                pause = SOON;
            }
            gone.iter().chain(&untidy).for_each(|buffer| manager.tidy_up(buffer));
            manager.bring_strays_home(Instant::now());
        }
    }

    /// Waits for its time or a poke. `None` when there is nothing left to look after; the thread is forgotten then.
    fn wait(&self, pause: &mut Duration) -> Option<Vec<WeakBuffer>> {
        let until = Instant::now() + *pause;
        *pause = (*pause * 2).min(SELDOM);
        let mut thread = self.thread.lock();
        loop {
            if self.table.is_empty() && thread.has_nothing_to_do() {
                thread.runs = false;
                return None;
            }
            if std::mem::take(&mut thread.poked) {
                *pause = SOON;
                break;
            }
            let timed_out;
            (thread, timed_out) = thread.wait_until(&self.wake, until);
            if timed_out {
                break;
            }
        }
        Some(std::mem::take(&mut thread.untidy))
    }
}

impl Exported {
    /// Nobody outside has it: the buffer may move and die again. For any thread, with reservations held or not.
    pub(super) fn let_go(self) -> WeakBuffer {
        let buffer = &self.attachment.buffer().0;
        tracing::debug!(buffer = buffer.id(), "nobody outside has the buffer's dma-buf any more");
        buffer.exports.fetch_sub(1, Ordering::AcqRel);
        buffer.manager.known_dma_bufs.forget_export(self.dma_buf.inode());
        WeakBuffer::of(buffer)
    }
}

impl Manager {
    /// Lets go of what nobody outside has. Returns how much that was.
    pub(crate) fn release_exports(&self) -> usize {
        if self.exports.table.is_empty() {
            return 0;
        }
        // Without a thread strays stay where they are until they move for another reason.
        let _thread = self.exports.begin(self.weak());
        let gone = self.exports.let_go();
        gone.iter().for_each(|buffer| self.tidy_up(buffer));
        gone.len()
    }

    /// A buffer that was let go of forgets its dma-buf, unless it has one again.
    fn tidy_up(&self, buffer: &WeakBuffer) {
        let Some(buffer) = buffer.upgrade() else { return };
        let is_stray = buffer.transact(|transaction, slot| {
            Ok(!self.exports.table.keeps(buffer.id()) && transaction.forget_export(slot))
        });
        match is_stray {
            Ok(true) => {
                let stray = (WeakBuffer::of(&buffer.0), Instant::now());
                self.exports.thread.lock().strays.push(stray);
            }
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(buffer = buffer.id(), %error, "a buffer goes on knowing the dma-buf that it had");
            }
        }
    }

    /// Buffers that have been strays for long enough come back to the arena, if there is room.
    fn bring_strays_home(&self, now: Instant) {
        let due = {
            let mut thread = self.exports.thread.lock();
            let due = thread.strays.extract_if(.., |(_, since)| *since + LINGER <= now);
            due.collect::<Vec<_>>()
        };
        for buffer in due.iter().filter_map(|(buffer, _)| buffer.upgrade()) {
            let home = buffer.transact(|transaction, slot| match self.exports.table.keeps(buffer.id()) {
                true => Ok(true),
                false => transaction.leave_outside(slot),
            });
            if let Err(error) = home {
                tracing::debug!(buffer = buffer.id(), %error, "a stray stays in the pages it was exported in");
            }
        }
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exports").field("table", &self.table).finish_non_exhaustive()
    }
}
