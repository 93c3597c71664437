//! What may be wanted while something is held.

use super::classes::ClassId;
use super::graph::{Circle, GRAPH};
use super::report::{self, report};
use super::stack::{self, Entry, Site, Stack};

/// What a thread does to a class.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Waits for a lock, then holds it.
    Take,
    /// Got a lock without waiting.
    Try,
    /// Says that it may wait for a lock.
    Announce,
    /// Says that it may have to evict.
    Evict,
    /// Waits for a fence.
    Wait,
    /// Signals a fence.
    Signal,
    /// Is on the way to a signal.
    Section,
    /// Runs fence callbacks.
    Callback,
}

/// Beside what of the same depth something may be wanted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// Nothing.
    Never,
    /// What is in the same group.
    Group(u64),
    /// Anything.
    Always,
}

/// What is wanted.
pub(super) struct Bid {
    pub(super) class: ClassId,
    pub(super) join: Join,
    pub(super) deed: Deed,
    pub(super) site: Site,
}

/// Why it may not be had. `held` is the index of what is in its way.
pub(super) enum Violation {
    /// The declared order says so.
    Order { held: usize },
    /// Both are reservations, and not of one ticket.
    Tickets { held: usize },
    /// Both are of one class outside of the order.
    Nested { held: usize },
    /// The opposite order is on record.
    Circle(Circle),
}

/// Panics unless the bid may be made with what this thread holds.
pub(super) fn enforce(bid: &Bid) {
    let refusal = stack::look(|stack| {
        if stack.entries.is_empty() {
            return None;
        }
        let violation = check(stack, bid).err()?;
        Some(report::violation(stack, bid, &violation))
    });
    if let Some(text) = refusal.flatten() {
        report(|| text);
    }
}

fn check(stack: &Stack, bid: &Bid) -> Result<(), Violation> {
    let depth = GRAPH.classes.get(bid.class).position.depth();
    let mut is_known = true;
    for (held, entry) in stack.entries.iter().enumerate().rev().filter(|(_, entry)| !entry.repeats) {
        match depth {
            Some(depth) => check_order(held, entry, depth, bid.join)?,
            None if entry.class == bid.class => return Err(Violation::Nested { held }),
            None => {}
        }
        is_known &= GRAPH.knows(entry.class, bid.class);
    }
    if is_known {
        return Ok(());
    }
    GRAPH.learn(&stack.entries, bid).map_err(Violation::Circle)
}

fn check_order(held: usize, entry: &Entry, depth: u8, join: Join) -> Result<(), Violation> {
    let Some(held_depth) = entry.depth else { return Ok(()) };
    if held_depth > depth {
        return Err(Violation::Order { held });
    }
    let is_joined = match join {
        Join::Never => false,
        Join::Group(group) => entry.group == group,
        Join::Always => true,
    };
    if held_depth < depth || is_joined {
        return Ok(());
    }
    let are_reservations = entry.class != ClassId::FENCE && GRAPH.is_reservation(entry.class);
    Err(if are_reservations { Violation::Tickets { held } } else { Violation::Order { held } })
}
