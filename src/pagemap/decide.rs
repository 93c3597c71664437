//! Deciding: from what is known of a pair to the route, and to every reason for it.
//!
//! A decision is a function of its [`Inputs`] and of nothing else: not of who joined when, nor of the other pairs. It goes on after the first
//! thing that stands in the way, because whoever asks why wants to hear of all of them. In this order:
//!
//! ```text
//!   the device itself ─► private link ─► declared, or the bus ─► what was seen ─► atomics ─► policy
//!                                              │
//!                                              ├─ peer capable, visible, DMA mask
//!                                              └─ below one bridge without redirection, or through the host bridge
//! ```
//!
//! No beats unknown, and unknown beats yes: what is not known is never taken for good.

use super::decision::{Decision, Direction, LatencyClass, Route};
use super::inputs::{Bus, Inputs, Place};
use super::profile::Policy;
use super::reason::{Reason, Remedy};
use super::way::{Below, Redirect};
use crate::topology::PciAddress;

/// Who is told the reasons, each with what would take it away.
pub(super) trait Why {
    fn because(&mut self, reason: Reason);
    fn unless(&mut self, reason: Reason, remedy: Remedy);
}

/// Nobody asked.
pub(super) struct Untold;

impl Why for Untold {
    #[inline(always)]
    fn because(&mut self, _: Reason) {}
    #[inline(always)]
    fn unless(&mut self, _: Reason, _: Remedy) {}
}

/// A decision and all its reasons.
pub(super) struct Told {
    pub decision: Decision,
    pub reasons: Vec<Reason>,
    pub remedies: Vec<Remedy>,
}

/// Decides, and keeps the reasons.
pub(super) fn tell(inputs: &Inputs) -> Told {
    let mut notes = Notes::default();
    let decision = decide(inputs, &mut notes);
    Told { decision, reasons: notes.reasons, remedies: notes.remedies }
}

#[derive(Default)]
struct Notes {
    reasons: Vec<Reason>,
    remedies: Vec<Remedy>,
}

impl Why for Notes {
    fn because(&mut self, reason: Reason) {
        self.reasons.push(reason);
    }

    fn unless(&mut self, reason: Reason, remedy: Remedy) {
        self.reasons.push(reason);
        if !self.remedies.contains(&remedy) {
            self.remedies.push(remedy);
        }
    }
}

/// Peer-to-peer access as it would be, and whether it can be had.
struct Candidate {
    works: Option<bool>,
    route: Route,
    latency: LatencyClass,
    atomics: Option<bool>,
    bytes_per_s: Option<u64>,
}

impl Candidate {
    fn refuse(&mut self) {
        self.works = Some(false);
    }

    fn doubt(&mut self) {
        self.works = self.works.filter(|works| !works);
    }
}

/// Decides, and tells why.
pub(super) fn decide(inputs: &Inputs, why: &mut impl Why) -> Decision {
    if inputs.is_same_device {
        why.because(Reason::SameDevice);
        return Decision {
            route: Route::SameDevice,
            p2p: Some(true),
            direction: Direction::BOTH,
            atomics: Some(true),
            latency: LatencyClass::Local,
            bandwidth_bytes_per_s: None,
        };
    }
    if inputs.policy == Policy::Forbidden {
        why.unless(Reason::Forbidden, Remedy::AnotherPolicy);
    }
    let mut candidate = candidate(inputs, why);
    if inputs.policy == Policy::Forbidden {
        candidate.refuse();
    }
    let direction = consider_what_was_seen(inputs, &mut candidate, why);
    consider_atomics(inputs, &mut candidate, why);
    match candidate.works {
        Some(true) => taken(inputs, &candidate, direction, why),
        works => without_p2p(inputs, works, why),
    }
}

fn candidate(inputs: &Inputs, why: &mut impl Why) -> Candidate {
    let mut candidate = Candidate {
        works: Some(true),
        route: Route::Declared,
        latency: LatencyClass::Far,
        atomics: None,
        bytes_per_s: None,
    };
    match &inputs.place {
        Place::Declared => {
            candidate.atomics = inputs.needs_atomics.then_some(true);
            consider_ends(inputs, &mut candidate, why);
            if candidate.works == Some(true) {
                why.because(Reason::Declared);
            }
        }
        Place::Nowhere(address) => {
            consider_ends(inputs, &mut candidate, why);
            why.because(Reason::NotInMachine { address: *address });
            candidate.doubt();
        }
        Place::Between(bus) => match bus.link {
            Some(link) => {
                why.because(Reason::PrivateLink { kind: link.kind, count: link.count });
                candidate.route = Route::PrivateLink;
                candidate.latency = LatencyClass::Near;
                candidate.atomics = link.atomics;
                candidate.bytes_per_s = link.bytes_per_s;
            }
            None => {
                if let Some(kind) = bus.link_back {
                    why.because(Reason::LinkIsOneWay { kind });
                }
                consider_ends(inputs, &mut candidate, why);
                consider_bus(bus, &mut candidate, why);
            }
        },
    }
    candidate
}

/// What the two can do, wherever they are.
fn consider_ends(inputs: &Inputs, candidate: &mut Candidate, why: &mut impl Why) {
    if !inputs.peer_capable {
        why.unless(Reason::NotPeerCapable, Remedy::PeerCapable);
        candidate.refuse();
    }
    if inputs.is_hidden {
        why.unless(Reason::Hidden, Remedy::LargerBar);
        candidate.refuse();
        return;
    }
    let bits = inputs.dma_mask_bits;
    match inputs.bus_end {
        _ if bits >= 64 => {}
        Some(end) if (end - 1) >> bits == 0 => {}
        Some(end) => {
            let needed_bits = (64 - (end - 1).leading_zeros()) as u8;
            why.unless(Reason::DmaMask { bits, needed_bits }, Remedy::WiderDmaMask { bits: needed_bits });
            candidate.refuse();
        }
        // Nobody has said where, and the importer that it can: its word counts.
        None if matches!(inputs.place, Place::Declared) => {}
        None => {
            why.unless(Reason::BusAddressUnknown { bits }, Remedy::Known);
            candidate.doubt();
        }
    }
}

/// The short way below a bridge, or the long one through the root.
fn consider_bus(bus: &Bus, candidate: &mut Candidate, why: &mut impl Why) {
    let root = &bus.through_root;
    let below = bus.way.below.filter(|_| bus.passes_below);
    match below.map(|below| (below, below.redirect)) {
        Some((below, Redirect::No)) => {
            why.because(Reason::SameSwitch { switch: below.switch });
            candidate.route = Route::Switch;
            candidate.latency = if below.is_near { LatencyClass::Near } else { LatencyClass::Far };
            candidate.atomics = below.atomics;
            candidate.bytes_per_s = below.bytes_per_s;
        }
        Some((below, Redirect::Unknown(port))) => take_either_way(bus, &below, port, candidate, why),
        Some((_, Redirect::Yes(port))) => {
            let reason = Reason::AcsRedirects { port };
            match root.allowed {
                Some(true) => why.because(reason),
                _ => why.unless(reason, Remedy::AcsOff { port }),
            }
            why.because(root.reason.clone());
            take_way_through_root(bus, candidate);
        }
        None => {
            match root.allowed {
                Some(true) => why.because(root.reason.clone()),
                Some(false) => why.unless(root.reason.clone(), Remedy::BelowSwitch { switch: bus.switch }),
                None => why.unless(root.reason.clone(), Remedy::Known),
            }
            take_way_through_root(bus, candidate);
        }
    }
}

fn take_way_through_root(bus: &Bus, candidate: &mut Candidate) {
    let top = &bus.way.top;
    candidate.route = Route::HostBridge;
    candidate.latency = if top.crosses_sockets { LatencyClass::Remote } else { LatencyClass::Far };
    candidate.atomics = top.atomics;
    candidate.bytes_per_s = top.bytes_per_s;
    match bus.through_root.allowed {
        Some(true) => {}
        Some(false) => candidate.refuse(),
        None => candidate.doubt(),
    }
}

/// Which of the two it takes is not known. Where both are open it works, and no better than on the worse one.
fn take_either_way(
    bus: &Bus,
    below: &Below,
    port: Option<PciAddress>,
    candidate: &mut Candidate,
    why: &mut impl Why,
) {
    let (top, reason) = (&bus.way.top, Reason::AcsUnknown { port });
    if bus.through_root.allowed == Some(true) {
        why.because(reason);
    } else {
        why.unless(reason, Remedy::Known);
        candidate.doubt();
    }
    why.because(bus.through_root.reason.clone());
    candidate.route = Route::Switch;
    candidate.latency = LatencyClass::Far;
    candidate.atomics = if below.atomics == top.atomics { top.atomics } else { None };
    candidate.bytes_per_s = top.bytes_per_s;
}

/// Drivers, runtimes and measurements. What arrives is returned.
fn consider_what_was_seen(inputs: &Inputs, candidate: &mut Candidate, why: &mut impl Why) -> Direction {
    let seen = &inputs.seen;
    if seen.driver_allows == Some(false) {
        why.unless(Reason::DriverRefuses, Remedy::DriverAllows);
        candidate.refuse();
    }
    match seen.peer_access {
        Some(false) => {
            why.unless(Reason::PeerAccessRefused, Remedy::DriverAllows);
            candidate.refuse();
        }
        Some(true) if candidate.works.is_none() => {
            why.because(Reason::PeerAccessConfirmed);
            candidate.works = Some(true);
        }
        _ => {}
    }
    if let Some(rate) = seen.p2p_bytes_per_s {
        candidate.bytes_per_s = Some(rate);
    }
    match seen.carries {
        None | Some(Direction::BOTH) => Direction::BOTH,
        Some(Direction::NEITHER) => {
            why.because(Reason::CarriesNothing);
            candidate.refuse();
            Direction::NEITHER
        }
        Some(direction) => {
            why.because(Reason::Carries { direction });
            direction
        }
    }
}

fn consider_atomics(inputs: &Inputs, candidate: &mut Candidate, why: &mut impl Why) {
    match candidate.atomics {
        _ if !inputs.needs_atomics => {}
        Some(true) => {}
        Some(false) => {
            why.unless(Reason::NoAtomics, Remedy::NoAtomics);
            candidate.refuse();
        }
        None => {
            why.unless(Reason::AtomicsUnknown, Remedy::Known);
            candidate.doubt();
        }
    }
}

/// It works: but is it worth it?
fn taken(inputs: &Inputs, candidate: &Candidate, direction: Direction, why: &mut impl Why) -> Decision {
    let seen = &inputs.seen;
    if let (Some(p2p_bytes_per_s), Some(staging_bytes_per_s)) =
        (seen.p2p_bytes_per_s, seen.staging_bytes_per_s)
        && p2p_bytes_per_s < staging_bytes_per_s
    {
        if inputs.policy == Policy::Allowed {
            let reason = Reason::SlowerThanStaging { p2p_bytes_per_s, staging_bytes_per_s };
            why.unless(reason, Remedy::AnotherPolicy);
            return staging_or_system(inputs, Some(false));
        }
        why.because(Reason::TakenThoughSlower { p2p_bytes_per_s, staging_bytes_per_s });
    }
    Decision {
        route: candidate.route,
        p2p: Some(true),
        direction,
        atomics: candidate.atomics,
        latency: candidate.latency,
        bandwidth_bytes_per_s: candidate.bytes_per_s,
    }
}

fn without_p2p(inputs: &Inputs, works: Option<bool>, why: &mut impl Why) -> Decision {
    if inputs.policy == Policy::Required {
        why.because(Reason::NothingElseWillDo);
        return Decision { p2p: works, ..Decision::GONE };
    }
    staging_or_system(inputs, works)
}

/// A copy that is kept in step; for whoever needs atomic operations, one place for all.
fn staging_or_system(inputs: &Inputs, p2p: Option<bool>) -> Decision {
    if inputs.needs_atomics {
        return Decision { p2p, ..Decision::system(inputs.system_bytes_per_s) };
    }
    Decision {
        route: Route::Staging,
        p2p,
        direction: Direction::BOTH,
        atomics: Some(false),
        latency: LatencyClass::Remote,
        bandwidth_bytes_per_s: inputs.seen.staging_bytes_per_s.or(inputs.staging_bytes_per_s),
    }
}
