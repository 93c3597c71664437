//! The text of a violation: what was wanted, what is in its way, and the two chains of call sites.

use std::fmt::Write;

use super::classes::ClassId;
use super::graph::{Chain, GRAPH, Link, Step};
use super::rules::{Bid, Deed, Violation};
use super::stack::{self, Entry, Forgery, Site, Stack};
use crate::levels::{Level, ORDER, Region, Tickets};

/// Panics with a text, unless this thread panics already: a second panic would abort and hide the first.
#[track_caller]
pub(super) fn report(text: impl FnOnce() -> String) {
    if !std::thread::panicking() {
        panic!("{}", text());
    }
}

pub(super) fn violation(stack: &Stack, bid: &Bid, violation: &Violation) -> String {
    let (held, reason) = match violation {
        Violation::Order { held } => (*held, declared_order(stack, bid)),
        Violation::Tickets { held } => {
            (*held, "reservations are held together by one ticket, in one Exec".to_owned())
        }
        Violation::Nested { held } => {
            (*held, "two locks of one class outside of the order do not nest".to_owned())
        }
        Violation::Circle(circle) => (circle.held, "the opposite order is on record".to_owned()),
    };
    let held = &stack.entries[held];
    let mut text = format!("{}, while {}; {reason}", wish(bid), obstacle(held));
    write_chain(&mut text, "now", &Chain::of_this_thread(&stack.entries, bid));
    match violation {
        Violation::Circle(circle) => circle.steps.iter().for_each(|step| write_step(&mut text, step)),
        _ => write_record(&mut text, bid.class, held.class),
    }
    if bid.deed == Deed::Take
        && let [Some(last), before] = stack.roots
    {
        let before = before.map(|before| format!(", and before that at {before}")).unwrap_or_default();
        let _ = write!(text, "\n  the last root token of this thread was made at {last}{before}");
    }
    text
}

pub(super) fn not_held(class: &str, site: Site) -> String {
    let mut text = format!("{class:?} is needed at {site}, but this thread does not hold it");
    stack::look(|stack| match &stack.entries[..] {
        [] => text.push_str("; it holds nothing"),
        entries => entries.iter().for_each(|held| {
            let _ = write!(text, "\n    {}", obstacle(held));
        }),
    });
    text
}

pub(super) fn forged_root(forgery: &Forgery, site: Site) -> String {
    match forgery {
        Forgery::InsideLock { class, since, root } => {
            let root = root.map(|root| format!("; this thread's root token was made at {root}"));
            format!(
                "a root token is forged at {site}, while {} is held since {since}{}; hand the token down instead",
                GRAPH.classes.get(*class),
                root.unwrap_or_default()
            )
        }
        Forgery::InsideCallback { since } => format!(
            "a root token is forged at {site}, while a fence callback runs since {since}; \
             a callback gets its token from Held::in_destructor"
        ),
    }
}

fn declared_order(stack: &Stack, bid: &Bid) -> String {
    let order = format!("the order is {}", ORDER.join(" > "));
    let fences = bid.class == ClassId::FENCE || stack.entries.iter().any(|held| held.class == ClassId::FENCE);
    if !fences {
        return order;
    }
    format!("{order}, and fences stand between {} and {}", Tickets::NAME, Region::NAME)
}

fn wish(bid: &Bid) -> String {
    let (class, site) = (GRAPH.classes.get(bid.class), bid.site);
    match bid.deed {
        Deed::Take | Deed::Try => format!("lock order violated: {class} is taken at {site}"),
        Deed::Announce => format!("lock order violated: {class} might be taken at {site}"),
        Deed::Evict => format!("this thread may not allocate through eviction at {site}"),
        Deed::Wait => format!("this thread may not wait for a fence at {site}"),
        Deed::Signal | Deed::Callback => format!("this thread may not signal a fence at {site}"),
        Deed::Section => format!("this thread may not begin a signalling section at {site}"),
    }
}

fn obstacle(held: &Entry) -> String {
    let (class, site) = (GRAPH.classes.get(held.class), held.site);
    match held.deed {
        Deed::Callback => format!("a fence callback runs since {site}"),
        Deed::Section => format!("a signalling section is open since {site}"),
        _ => format!("{class} is held since {site}"),
    }
}

fn link(link: &Link) -> String {
    let (class, site) = (GRAPH.classes.get(link.class), link.site);
    match link.deed {
        Deed::Take => format!("{class} taken at {site}"),
        Deed::Try => format!("{class} tried at {site}"),
        Deed::Announce => format!("{class} announced at {site}"),
        Deed::Evict => format!("eviction announced at {site}"),
        Deed::Wait => format!("fence waited for at {site}"),
        Deed::Signal => format!("fence signalled at {site}"),
        Deed::Section => format!("signalling section begun at {site}"),
        Deed::Callback => format!("fence callbacks run at {site}"),
    }
}

fn write_chain(text: &mut String, when: &str, chain: &Chain) {
    let _ = write!(text, "\n  {when}, in thread {:?}:", chain.thread);
    for (index, step) in chain.links.iter().enumerate() {
        let _ = write!(text, "\n    {}. {}", index + 1, link(step));
    }
}

fn write_record(text: &mut String, held: ClassId, wanted: ClassId) {
    if let Some(chain) = GRAPH.chain(held, wanted) {
        write_chain(text, "the other way round, on record", &chain);
    }
}

fn write_step(text: &mut String, step: &Step) {
    let Step { from, to, chain } = step;
    match chain {
        Some(chain) => write_chain(text, "on record", &shortened(chain, *from)),
        None => {
            let (from, to) = (GRAPH.classes.get(*from), GRAPH.classes.get(*to));
            let _ = write!(text, "\n  by declaration: {from} before {to}");
        }
    }
}

/// A chain from the class that matters on; what was held further out says nothing about this pair.
fn shortened(chain: &Chain, from: ClassId) -> Chain {
    let begin = chain.links.iter().position(|link| link.class == from).unwrap_or(0);
    Chain { thread: chain.thread.clone(), links: chain.links[begin..].to_vec() }
}
