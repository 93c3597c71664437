//! The space of a BAR of windows, and who has it.
//!
//! ```text
//!            hunt: free space, or that of windows nobody has          used_until, buffer moves or dies
//!   heap  ────────────────────────────► in transit ─────────► table ─────────────────────────────► heap
//!                                       hunter's own: zap,    windows, in order of use             behind the fences
//!                                       program               (`table.rs`)                         of former users
//! ```
//!
//! Space is taken as VRAM is: any bytes that are free, idle ones first, then those whose former users have not finished,
//! with the fences of just these ([`Heap`]). If that is too little, windows that nobody has are taken back, least
//! recently used first. Their buffers need not be asked: one step on the window's word decides between a user and a
//! taker. What a window shows is hidden, by the change that shows something else there or by one of its own, before its
//! space is free: free space shows nothing.
//!
//! Whoever has space in transit calls the driver and followers without the lock. Who finds too little waits for those
//! in transit, which are few and short, so nobody is told that the BAR is full while somebody is about to give space back.

use std::sync::{Arc, Weak};

use devpagemap_allocator::{PAGE_BYTES, Request, Span};
use devpagemap_fence::sync::lending::{Lender, Loan};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, Lock, levels};

use super::hunt::{Hunt, Space, Step};
use super::table::{Asked, Standing, Table};
use super::window::Shown;
use super::{Bar, BarLimit, Zap};
use crate::error::{Error, Result};
use crate::region::{Heap, Taken, Unreaped, subtract_all, total_bytes};

/// How many windows are looked at under one hold of the lock.
const LOOKED_AT_ONCE: usize = 64;

/// A huge page: no window of a CPU map is larger.
const MOST_CPU_PIECE_BYTES: u64 = 2 << 20;

/// A BAR's windows, of either shape; those of a prefix take no space.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Constant.
    bar: Bar,
    /// What CPU users who keep a window may have of it. Constant.
    cpu_reserve_bytes: u64,
    /// The aperture lock itself.
    state: Lock<levels::Aperture, State>,
}

/// What the aperture lock protects.
struct State {
    /// `None` for a prefix.
    heap: Option<Heap>,
    table: Table,
    /// Space that is neither free nor a window's, but somebody's who is at work on it.
    in_transit_bytes: u64,
    /// What CPU users keep, each counted for itself.
    cpu_held_bytes: u64,
    /// What windows have, listed or not.
    window_bytes: u64,
}

/// What [`Windows`] holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) window_bytes: u64,
    pub(crate) pending_bytes: u64,
    pub(crate) cpu_held_bytes: u64,
}

impl Windows {
    /// # Errors
    /// [`Error::InvalidSize`] for a BAR that the allocator cannot manage.
    pub(crate) fn new(bar: Bar, cpu_reserve_bytes: u64) -> Result<Arc<Windows>> {
        let bytes = bar.size().as_bytes();
        let heap = match bar {
            Bar::Prefix(_) => None,
            Bar::Windows(_) => Some(Heap::new(bytes).map_err(|_| Error::InvalidSize {
                what: "a BAR of windows",
                bytes,
                why: "is not a positive number of whole 4096-byte pages up to 16 TiB",
            })?),
        };
        let state =
            State { heap, table: Table::default(), in_transit_bytes: 0, cpu_held_bytes: 0, window_bytes: 0 };
        Ok(Arc::new(Windows { bar, cpu_reserve_bytes, state: Lock::new("windows", state) }))
    }

    /// How much one window of a CPU map shows at most: so little that there is room for several in what peers leave to the CPU.
    pub(crate) fn cpu_piece_bytes(&self) -> u64 {
        let eighth = self.bar.size().as_bytes() / 8;
        let share = match self.cpu_reserve_bytes {
            0 => eighth,
            reserve_bytes => eighth.min(reserve_bytes),
        };
        let most = share.clamp(PAGE_BYTES, MOST_CPU_PIECE_BYTES);
        1 << most.ilog2()
    }

    /// The BAR's shape and size.
    pub(crate) fn bar(&self) -> Bar {
        self.bar
    }

    /// Goes on with a hunt, for an instant.
    pub(super) fn hunt(self: &Arc<Self>, hunt: &mut Hunt, held: &mut Held<'_, levels::Tickets>) -> Step {
        let (step, unreaped) = self.state.lock(held).hunt(hunt);
        self.reap_when_signaled(unreaped);
        step
    }

    /// Gives back space in transit, whose pages show nothing once `after` and its own fences have signalled.
    pub(super) fn give_back(
        self: &Arc<Self>,
        parts: Vec<(Vec<Span>, FenceSet)>,
        after: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        if parts.is_empty() {
            return;
        }
        let unreaped: Vec<_> = {
            let mut state = self.state.lock(held);
            state.in_transit_bytes -= parts.iter().map(|(spans, _)| total_bytes(spans)).sum::<u64>();
            let give_back = |(spans, mut ends): (Vec<Span>, FenceSet)| {
                ends.merge(after);
                state.heap().give_back(spans, ends)
            };
            parts.into_iter().filter_map(give_back).collect()
        };
        self.reap_when_signaled(unreaped);
    }

    /// Makes a window out of space in transit, or of a prefix, which takes none; with the first loan of it.
    pub(super) fn add(
        self: &Arc<Self>,
        pages: std::ops::Range<u64>,
        spans: Vec<Span>,
        after: FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> (Lender<Shown>, Loan<Shown>) {
        let mut state = self.state.lock(held);
        let key = state.table.next_key();
        let len_bytes = total_bytes(&spans);
        let (lender, loan) = Lender::lent(Shown { windows: self.clone(), key, pages, spans, after });
        let is_prefix = state.heap.is_none();
        if !is_prefix {
            state.in_transit_bytes -= len_bytes;
            state.window_bytes += len_bytes;
        }
        state.table.insert(lender.clone(), is_prefix);
        (lender, loan)
    }

    /// The last loan has come back of a window that was asked for, or whose buffer has moved away.
    pub(super) fn returned(self: &Arc<Self>, lender: Lender<Shown>) {
        let mut held = Held::in_destructor();
        let unreaped = self.state.lock(&mut held).returned(&lender);
        self.reap_when_signaled(unreaped);
    }

    /// Notes that `follower` is to be told; false when the window has been taken already.
    pub(super) fn follow(
        &self,
        lender: &Lender<Shown>,
        follower: &Weak<dyn Zap>,
        held: &mut Held<'_, levels::Tickets>,
    ) -> bool {
        let mut state = self.state.lock(held);
        let Some(entry) = state.table.get_mut(lender).filter(|_| !lender.is_taken_back()) else {
            return false;
        };
        entry.followers.retain(|other| other.strong_count() > 0);
        if !entry.followers.iter().any(|other| other.ptr_eq(follower)) {
            entry.followers.push(follower.clone());
        }
        true
    }

    /// Notes what a user still waits for, whose loan ends after this.
    pub(super) fn used_until(
        &self,
        lender: &Lender<Shown>,
        fences: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        if let Some(entry) = self.state.lock(held).table.get_mut(lender) {
            entry.ends.prune();
            entry.ends.merge(fences);
        }
    }

    /// Takes windows back whose buffer moves away, whoever has them; those whose space is not somebody else's already. They
    /// are in transit until [`Windows::finish_leaving`].
    pub(super) fn start_leaving(
        &self,
        lenders: Vec<Lender<Shown>>,
        followers: &mut Vec<(Weak<dyn Zap>, std::ops::Range<u64>)>,
        ends: &mut FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Vec<Lender<Shown>> {
        let mut leaving = Vec::with_capacity(lenders.len());
        for some in lenders.chunks(LOOKED_AT_ONCE) {
            let mut state = self.state.lock(held);
            leaving
                .extend(some.iter().filter(|lender| state.start_leaving(lender, followers, ends)).cloned());
        }
        leaving
    }

    /// Frees the space of windows that nobody has any more, once `hidden` has signalled; that of others when they are
    /// returned.
    pub(super) fn finish_leaving(
        self: &Arc<Self>,
        leaving: &[Lender<Shown>],
        hidden: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        for some in leaving.chunks(LOOKED_AT_ONCE) {
            let mut unreaped = Vec::new();
            {
                let mut state = self.state.lock(held);
                some.iter().for_each(|lender| unreaped.extend(state.finish_leaving(lender, hidden)));
            }
            self.reap_when_signaled(unreaped);
        }
    }

    /// Counts space that a CPU user keeps, against the CPU's reserve.
    ///
    /// # Errors
    /// [`Error::ApertureFull`].
    pub(super) fn hold_for_cpu(
        self: &Arc<Self>,
        bytes: u64,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<CpuHold> {
        let mut state = self.state.lock(held);
        let bytes = if state.heap.is_some() { bytes } else { 0 };
        let (limit_bytes, used_bytes) = (self.cpu_reserve_bytes, state.cpu_held_bytes);
        if bytes > limit_bytes - used_bytes {
            let limit = BarLimit::CpuReserve;
            return Err(Error::ApertureFull { limit, limit_bytes, used_bytes, wanted_bytes: bytes });
        }
        state.cpu_held_bytes += bytes;
        Ok(CpuHold { windows: self.clone(), bytes })
    }

    /// Frees what has signalled but whose callback has not run yet.
    pub(crate) fn reap_signalled(&self, held: &mut Held<'_, levels::Tickets>) {
        let mut state = self.state.lock(held);
        let Some(heap) = &mut state.heap else { return };
        for ghost in heap.signalled_ghosts() {
            if let Some(spans) = heap.reap(ghost) {
                heap.free(&spans);
            }
        }
    }

    pub(crate) fn holdings(&self, held: &mut Held<'_, levels::Tickets>) -> Holdings {
        let state = self.state.lock(held);
        Holdings {
            window_bytes: state.window_bytes,
            pending_bytes: state.heap.as_ref().map_or(0, Heap::ghost_bytes),
            cpu_held_bytes: state.cpu_held_bytes,
        }
    }

    fn reap_when_signaled(self: &Arc<Self>, unreaped: Vec<Unreaped>) {
        for Unreaped { id, fences } in unreaped {
            let windows = Arc::downgrade(self);
            fences.when_signaled(move || {
                let Some(windows) = windows.upgrade() else { return };
                let mut held = Held::in_destructor();
                let mut state = windows.state.lock(&mut held);
                if let Some(spans) = state.heap().reap(id) {
                    state.heap().free(&spans);
                }
            });
        }
    }
}

impl State {
    fn heap(&mut self) -> &mut Heap {
        self.heap.as_mut().expect("a prefix has no space to take or give back")
    }

    fn hunt(&mut self, hunt: &mut Hunt) -> (Step, Vec<Unreaped>) {
        for _ in 0..LOOKED_AT_ONCE {
            if self.heap().free_bytes() + hunt.caught_bytes >= hunt.wanted_bytes {
                return self.make_space(hunt);
            }
            match self.table.ask_first(hunt.spares_used()) {
                Asked::Taken(entry) => {
                    let bytes = total_bytes(&entry.lender.spans);
                    self.window_bytes -= bytes;
                    self.in_transit_bytes += bytes;
                    hunt.catch(entry);
                }
                Asked::Spared => hunt.spared += 1,
                Asked::Lent => {}
                Asked::Nobody => return (self.nobody_left(hunt), Vec::new()),
            }
        }
        (Step::Again, Vec::new())
    }

    fn nobody_left(&self, hunt: &Hunt) -> Step {
        let others_in_transit = self.in_transit_bytes > hunt.caught_bytes;
        match others_in_transit && !mutant!("space_in_transit_is_nobodys") {
            true => Step::Wait,
            false => Step::Full { used_bytes: self.window_bytes },
        }
    }

    /// Takes what is wanted out of what is free and what was caught. What was caught beyond that stays in transit, to be hidden.
    fn make_space(&mut self, hunt: &mut Hunt) -> (Step, Vec<Unreaped>) {
        if !hunt.followers.is_empty() {
            return (Step::Zap, Vec::new());
        }
        if hunt.caught.len() == 1 && hunt.caught_bytes == hunt.wanted_bytes {
            let (spans, ends) = hunt.caught.pop().expect("there is one");
            hunt.caught_bytes = 0;
            let taken = Taken::handed_over(spans, ends);
            return (Step::Caught(Space { taken, surplus: Taken::default() }), Vec::new());
        }
        self.in_transit_bytes -= std::mem::take(&mut hunt.caught_bytes);
        let (caught, heap) = (std::mem::take(&mut hunt.caught), self.heap());
        let mut unreaped = Vec::new();
        let mut caught_spans = Vec::new();
        for (spans, ends) in caught {
            caught_spans.extend_from_slice(&spans);
            unreaped.extend(heap.give_back(spans, ends));
        }
        let anywhere = Request::new(hunt.wanted_bytes).within(0..heap.size_bytes());
        let in_one_piece = heap.largest_free_bytes() >= hunt.wanted_bytes;
        let request = if in_one_piece { anywhere.contiguous() } else { anywhere };
        let taken = heap.take(&request).expect("that much is free");
        let surplus = match caught_spans.is_empty() {
            true => Taken::default(),
            false => heap.take_exact(&subtract_all(&caught_spans, &taken.spans)),
        };
        self.in_transit_bytes += taken.len_bytes() + surplus.len_bytes();
        (Step::Caught(Space { taken, surplus }), unreaped)
    }

    fn returned(&mut self, lender: &Lender<Shown>) -> Vec<Unreaped> {
        let Some(entry) = self.table.get_mut(lender) else { return Vec::new() };
        match entry.standing {
            Standing::Lent if lender.is_back() => {
                self.table.link_last(lender.key);
                Vec::new()
            }
            Standing::Orphan if !lender.is_lent() => self.free(lender).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn start_leaving(
        &mut self,
        lender: &Lender<Shown>,
        followers: &mut Vec<(Weak<dyn Zap>, std::ops::Range<u64>)>,
        ends: &mut FenceSet,
    ) -> bool {
        let is_prefix = self.heap.is_none();
        let Some(entry) = self.table.get_mut(lender) else { return false };
        lender.take_back();
        ends.merge(&entry.ends);
        let bytes = lender.bytes();
        followers.extend(entry.followers.drain(..).map(|follower| (follower, bytes.clone())));
        if is_prefix {
            self.table.remove(lender);
            return false;
        }
        self.table.detach(lender, Standing::Leaving);
        let len_bytes = total_bytes(&lender.spans);
        self.window_bytes -= len_bytes;
        self.in_transit_bytes += len_bytes;
        true
    }

    fn finish_leaving(&mut self, lender: &Lender<Shown>, hidden: &FenceSet) -> Option<Unreaped> {
        let len_bytes = total_bytes(&lender.spans);
        self.in_transit_bytes -= len_bytes;
        self.window_bytes += len_bytes;
        let entry = self.table.get_mut(lender).expect("a window that leaves is nobody else's");
        entry.ends.merge(hidden);
        entry.standing = Standing::Orphan;
        let is_lent = lender.is_lent() || mutant!("leaving_window_is_not_looked_at_again");
        if is_lent { None } else { self.free(lender) }
    }

    fn free(&mut self, lender: &Lender<Shown>) -> Option<Unreaped> {
        let entry = self.table.remove(lender);
        self.window_bytes -= total_bytes(&lender.spans);
        self.heap().give_back(lender.spans.clone(), entry.ends)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("window_bytes", &self.window_bytes).finish_non_exhaustive()
    }
}

/// Space that a CPU user keeps; given back when dropped.
#[derive(Debug)]
pub(crate) struct CpuHold {
    windows: Arc<Windows>,
    bytes: u64,
}

impl Drop for CpuHold {
    fn drop(&mut self) {
        self.windows.state.lock(&mut Held::in_destructor()).cpu_held_bytes -= self.bytes;
    }
}
