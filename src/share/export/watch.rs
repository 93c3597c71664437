//! Keep-alive: a buffer lives, and stays where it is, as long as anybody outside of this process has its dma-buf.
//!
//! Nobody is told when the last user of a dma-buf goes. But the kernel says how many references there are to its file: descriptors in all
//! processes, mappings, importers. Some are our own, and how many is found out when it is made; while there are more, somebody
//! outside has it.
//!
//! ```text
//!   export:  reservation { table lock { in the table? one more descriptor of it } : make one ─► into the table }
//!   watch:   table lock { as many references as are our own? out of the table } ─► unpin, drop the buffer
//! ```
//!
//! **Why no page is given away too early.** More references come from those there are, or from an export. So when there are no more than
//! ours, and the table lock keeps exports away, nobody has one and nobody can get one; what is taken out of the table under that very
//! lock is seen by nobody but us. An export that comes later finds nothing in the table and begins anew.
//!
//! What has left the table is on its way back to its region for a moment. Whoever lacks memory just then waits for it, and is not told that there is
//! none.
//!
//! The table holds the buffer, and the buffer its device, so both outlive all their handles. That circle is opened when the watch lets go.

use std::collections::BTreeMap;

use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{Held, Lock, levels};

/// What is kept for others.
pub trait Kept: Send + Sync {
    /// Whether anybody outside has it now. When in doubt, yes.
    fn is_used_outside(&self) -> bool;

    /// How large it is.
    fn len_bytes(&self) -> u64;
}

/// What is kept for others, by the number of its buffer.
pub struct ExportTable<K> {
    kept: Lock<levels::Aperture, BTreeMap<u64, K>>,
    /// How many there are. Written under the lock, read by all.
    count: AtomicUsize,
    /// How many are letting go of something just now.
    leaving: AtomicUsize,
    /// How often something was let go of. Grows before `leaving` falls.
    departures: AtomicUsize,
}

impl<K: Kept> ExportTable<K> {
    /// An empty one.
    pub fn new() -> ExportTable<K> {
        ExportTable {
            kept: Lock::new("exports", BTreeMap::new()),
            count: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            departures: AtomicUsize::new(0),
        }
    }

    /// Keeps the dma-buf of buffer `id`, which has none here. For who holds the buffer's reservation.
    pub fn keep(&self, id: u64, one: K) {
        let mut held = Held::in_destructor();
        let mut kept = self.kept.lock(&mut held);
        let before = kept.insert(id, one);
        debug_assert!(before.is_none(), "a buffer has one dma-buf at a time");
        self.count.store(kept.len(), Ordering::Release);
    }

    /// Runs `hand` on what is kept for buffer `id`, if that is there: nobody lets go of it meanwhile. What `hand` gives out counts as used
    /// when it returns.
    pub fn hand_out<O>(&self, id: u64, hand: impl FnOnce(&K) -> O) -> Option<O> {
        self.kept.lock(&mut Held::in_destructor()).get(&id).map(hand)
    }

    /// Takes what is kept for buffer `id` out, unless somebody outside uses it. The caller drops it, without a lock of this level.
    pub fn let_go_of(&self, id: u64) -> Option<K> {
        let mut held = Held::in_destructor();
        let mut kept = self.kept.lock(&mut held);
        if kept.get(&id)?.is_used_outside() {
            return None;
        }
        if mutant!("an_export_is_let_go_of_after_another_look") {
            drop(kept);
            kept = self.kept.lock(&mut held);
        }
        let gone = kept.remove(&id);
        self.count.store(kept.len(), Ordering::Release);
        gone
    }

    /// The same for all: each goes to `gone`, which is to drop it. Returns how many those were.
    pub fn let_go(&self, mut gone: impl FnMut(K)) -> usize {
        if self.is_empty() {
            return 0;
        }
        self.leaving.fetch_add(1, Ordering::AcqRel);
        let ids: Vec<u64> = self.kept.lock(&mut Held::in_destructor()).keys().copied().collect();
        let unused = ids.into_iter().filter_map(|id| self.let_go_of(id));
        let count = unused.map(&mut gone).count();
        self.departures.fetch_add(count, Ordering::AcqRel);
        self.leaving.fetch_sub(1, Ordering::AcqRel);
        count
    }

    /// How often something was let go of so far. To be asked before looking for memory.
    pub fn departures(&self) -> usize {
        self.departures.load(Ordering::Acquire)
    }

    /// For whoever has found too little memory: as [`ExportTable::let_go`]; says whether anything was let go of since there were so many
    /// `departures`, by whomever. Whoever is about to is waited for. He needs no reservation for it, so the caller may hold some.
    pub fn let_go_since(&self, departures: usize, gone: impl FnMut(K)) -> bool {
        self.let_go(gone);
        while self.leaving.load(Ordering::Acquire) > 0 && !mutant!("who_lets_go_is_not_waited_for") {
            yield_now();
        }
        self.departures() != departures
    }

    /// Whether buffer `id` is kept.
    pub fn keeps(&self, id: u64) -> bool {
        !self.is_empty() && self.kept.lock(&mut Held::in_destructor()).contains_key(&id)
    }

    /// Whether nothing is kept. Costs a load.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// How many bytes are kept.
    pub fn len_bytes(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        self.kept.lock(&mut Held::in_destructor()).values().map(Kept::len_bytes).sum()
    }
}

impl<K: Kept> Default for ExportTable<K> {
    fn default() -> ExportTable<K> {
        ExportTable::new()
    }
}

impl<K> std::fmt::Debug for ExportTable<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportTable").field("count", &self.count).finish_non_exhaustive()
    }
}
