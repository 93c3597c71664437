//! Bytes that the BAR does not show: a queued copy between the buffer and a piece of system memory, chunk by chunk.
//! The buffer stays where it is.

use devpagemap_allocator::Span;
use devpagemap_fence::{Fence, FenceSet, Held, Locked, Usage};
use devpagemap_migrate::{ExtentList, MoveRequest, Operation, Urgency};

use super::access::{read_extents, write_extents};
use crate::bo::{BoState, Buffer};
use crate::error::{Error, Result};
use crate::region::{RegionKind, Resource, round_up_to_pages};
use crate::stats::Counters;

/// How much is copied at once, which bounds the system memory a bounce needs.
const BOUNCE_BYTES: usize = 16 << 20;

/// Which way a bounce copies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromBuffer,
    ToBuffer,
}

/// System memory for one chunk.
struct Bounce {
    spans: Vec<Span>,
    extents: ExtentList,
    after: FenceSet,
}

impl Buffer {
    pub(super) fn read_bounced(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        let mut offset = offset_bytes;
        for chunk in into.chunks_mut(BOUNCE_BYTES) {
            let bounce = self.take_bounce(chunk.len() as u64)?;
            let fence = match self.queue_bounce(offset, &bounce, Direction::FromBuffer) {
                Ok(fence) => fence,
                Err(error) => {
                    let former_users = bounce.after.clone();
                    self.give_back_bounce(bounce, former_users);
                    return Err(error);
                }
            };
            let copied = self.0.manager.wait(&FenceSet::from(fence));
            if copied.is_ok() {
                let seen = read_extents(&self.0.manager.cpu, &bounce.extents, chunk);
                debug_assert!(seen, "the CPU sees all system memory");
            }
            self.give_back_bounce(bounce, FenceSet::new());
            copied?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    pub(super) fn write_bounced(&self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        let mut offset = offset_bytes;
        for chunk in from.chunks(BOUNCE_BYTES) {
            let bounce = self.take_bounce(chunk.len() as u64)?;
            // Former users of these pages may still read them; an error of theirs is not ours.
            let _former_users = self.0.manager.wait(&bounce.after);
            let seen = write_extents(&self.0.manager.cpu, &bounce.extents, chunk);
            debug_assert!(seen, "the CPU sees all system memory");
            match self.queue_bounce(offset, &bounce, Direction::ToBuffer) {
                Ok(fence) => self.give_back_bounce(bounce, FenceSet::from(fence)),
                Err(error) => {
                    self.give_back_bounce(bounce, FenceSet::new());
                    return Err(error);
                }
            }
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    fn take_bounce(&self, len_bytes: u64) -> Result<Bounce> {
        let footprint_bytes = round_up_to_pages(len_bytes).ok_or(Error::InvalidSize {
            what: "a bounce buffer",
            bytes: len_bytes,
            why: "overflow when rounded up to whole pages",
        })?;
        let system = &self.0.manager.system;
        let taken = system.take(footprint_bytes, &mut Held::enter(), |_, taken| taken)?;
        let whole = Resource::new(RegionKind::System, taken.spans.clone(), None).extents;
        let after = taken.after();
        Ok(Bounce { spans: taken.spans, extents: whole.slice(0, len_bytes), after })
    }

    fn give_back_bounce(&self, bounce: Bounce, fences: FenceSet) {
        self.0.manager.give_back_system(bounce.spans, fences, &mut Held::in_destructor());
    }

    fn queue_bounce(&self, offset_bytes: u64, bounce: &Bounce, direction: Direction) -> Result<Fence> {
        let (_pass, reach) = self.0.manager.enter()?;
        let mut held = Held::enter();
        let mut state: Locked<'_, BoState> = self.0.reservation.lock(&mut held);
        reach.check(&state)?;
        state.check_not_lost()?;
        state.reserve_fences(1)?;
        let resource = state.resource.as_ref().expect("a buffer keeps some resource once it has one");
        let here = resource.extents.slice(offset_bytes, bounce.extents.len_bytes());
        let (operation, waits_for, usage) = match direction {
            Direction::FromBuffer => {
                (Operation::Copy { src: here, dst: bounce.extents.clone() }, Usage::Write, Usage::Read)
            }
            Direction::ToBuffer => {
                (Operation::Copy { src: bounce.extents.clone(), dst: here }, Usage::Read, Usage::Write)
            }
        };
        if direction == Direction::ToBuffer {
            state.peers.is_written();
        }
        let mut after = bounce.after.clone();
        after.merge(&state.fences(waits_for));
        let needs = state.arrival.clone();
        state.cpu.bounced(bounce.extents.len_bytes());
        let request = MoveRequest { label: self.id(), operation, urgency: Urgency::Foreground, after, needs };
        let manager = &self.0.manager;
        let (_, mut inner) = state.split();
        let fence = manager.queue().submit(request, &mut inner);
        manager.remember(&fence, &mut inner);
        state.add_fence(fence.clone(), usage);
        Counters::add(&manager.counters.bounced_bytes, bounce.extents.len_bytes());
        Ok(fence)
    }
}
