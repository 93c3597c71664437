//! What a decision depends on, gathered for one pair; and what it would be if something were otherwise.

use devpagemap_fence::sync::Arc;

use super::observe::{Party, Seen, Sightings};
use super::owner::{BusWindow, PagemapSpec};
use super::profile::{Policy, Profile};
use super::reason::{Reason, Remedy};
use super::rules::{Rules, Verdict};
use super::way::{Below, Redirect, Spot, Way, World};
use crate::topology::{Link, LinkKind, PciAddress};

/// What all decisions of a snapshot depend on.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub world: Option<Arc<World>>,
    pub rules: Arc<dyn Rules>,
    pub sightings: Arc<Sightings>,
}

impl Setting {
    /// What is at an address; `None` if nothing is known.
    pub fn spot(&self, at: Option<PciAddress>) -> Option<Spot> {
        self.world.as_ref()?.spot(at?)
    }
}

/// A pagemap, as decisions see it.
#[derive(Clone, Copy)]
pub(super) struct Exporter<'a> {
    pub spec: &'a PagemapSpec,
    pub spot: Option<&'a Spot>,
}

/// An importer, as decisions see it.
#[derive(Clone, Copy)]
pub(super) struct Seeker<'a> {
    pub profile: &'a Profile,
    pub party: &'a Party,
    pub spot: Option<&'a Spot>,
}

/// All that a decision depends on.
#[derive(Clone, Debug)]
pub(super) struct Inputs {
    pub policy: Policy,
    pub peer_capable: bool,
    pub needs_atomics: bool,
    pub dma_mask_bits: u8,
    pub is_same_device: bool,
    pub is_hidden: bool,
    /// Where the BAR ends on the bus.
    pub bus_end: Option<u64>,
    /// How the two are connected.
    pub place: Place,
    pub seen: Seen,
    /// What the links between the importer and system memory carry.
    pub system_bytes_per_s: Option<u64>,
    /// What can be expected of copying by way of system memory.
    pub staging_bytes_per_s: Option<u64>,
}

/// How an importer and an exporter are connected.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// One of them is nowhere, or there is no machine: the importer's word counts.
    Declared,
    /// One of them is at an address where the machine has nothing.
    Nowhere(PciAddress),
    /// Both are in the machine.
    Between(Bus),
}

/// Two places in a machine.
#[derive(Clone, Debug)]
pub(super) struct Bus {
    /// The private link that carries the importer's requests.
    pub link: Option<Link>,
    /// The kind of the one that carries only the exporter's.
    pub link_back: Option<LinkKind>,
    pub way: Way,
    /// Whether the rules let a bridge that both are below pass on by itself.
    pub passes_below: bool,
    /// What the rules say of the way through the root.
    pub through_root: Verdict,
    /// A switch that one of them is below.
    pub switch: Option<PciAddress>,
    /// What their own links would carry if they were neighbours.
    pub neighbours_bytes_per_s: Option<u64>,
}

impl Inputs {
    pub fn of(setting: &Setting, exporter: Exporter<'_>, importer: Seeker<'_>) -> Inputs {
        let Profile { policy, peer_capable, atomics, dma_mask_bits, at, ref device, .. } = *importer.profile;
        let owner = &exporter.spec.owner;
        let is_same_device = device.as_ref() == Some(owner) || (at.is_some() && at == owner.place());
        let (one, other) = (exporter.spot, importer.spot);
        let rates = (one.and_then(Spot::up_bytes_per_s), other.and_then(Spot::up_bytes_per_s));
        Inputs {
            policy,
            peer_capable,
            needs_atomics: atomics,
            dma_mask_bits,
            is_same_device,
            is_hidden: exporter.spec.bus == BusWindow::Hidden,
            bus_end: bus_end(exporter),
            place: place(setting, exporter, importer),
            seen: setting.sightings.of(owner, importer.party),
            system_bytes_per_s: rates.1,
            staging_bytes_per_s: in_two_steps(rates.0, rates.1),
        }
    }

    /// The same, if that were so.
    pub fn with(mut self, remedy: &Remedy) -> Inputs {
        match remedy {
            Remedy::AnotherPolicy => self.policy = Policy::Preferred,
            Remedy::PeerCapable => self.peer_capable = true,
            Remedy::LargerBar => self.is_hidden = false,
            Remedy::WiderDmaMask { .. } => self.dma_mask_bits = 64,
            Remedy::NoAtomics => self.needs_atomics = false,
            Remedy::DriverAllows => {
                self.seen.driver_allows = self.seen.driver_allows.map(|_| true);
                self.seen.peer_access = self.seen.peer_access.map(|_| true);
            }
            Remedy::AcsOff { .. } => self.change_bus(|bus| {
                if let Some(below) = &mut bus.way.below {
                    below.redirect = Redirect::No;
                }
            }),
            Remedy::BelowSwitch { switch } => self.change_bus(|bus| {
                let atomics = bus.way.top.atomics;
                let bytes_per_s = bus.neighbours_bytes_per_s;
                bus.passes_below = true;
                bus.way.below = Some(Below::neighbours(*switch, bytes_per_s, atomics));
            }),
            Remedy::Known => {
                self.dma_mask_bits = if self.bus_end.is_none() { 64 } else { self.dma_mask_bits };
                self.change_bus(|bus| bus.turn_out_well());
            }
        }
        self
    }

    fn change_bus(&mut self, change: impl FnOnce(&mut Bus)) {
        if let Place::Between(bus) = &mut self.place {
            change(bus);
        }
    }
}

impl Bus {
    /// Whatever is not known is as good as it can be.
    fn turn_out_well(&mut self) {
        let yes = |known: &mut Option<bool>| *known = known.or(Some(true));
        yes(&mut self.through_root.allowed);
        yes(&mut self.way.top.atomics);
        if let Some(link) = &mut self.link {
            yes(&mut link.atomics);
        }
        if let Some(below) = &mut self.way.below {
            yes(&mut below.atomics);
            if matches!(below.redirect, Redirect::Unknown(_)) {
                below.redirect = Redirect::No;
            }
        }
    }
}

fn place(setting: &Setting, exporter: Exporter<'_>, importer: Seeker<'_>) -> Place {
    let places = exporter.spec.owner.place().zip(importer.profile.at);
    let (Some(world), Some((there, here))) = (&setting.world, places) else { return Place::Declared };
    let Some(one) = exporter.spot else { return Place::Nowhere(there) };
    let Some(other) = importer.spot else { return Place::Nowhere(here) };
    let way = world.way(one, other);
    let link = world.link(other, one).copied();
    let needs_root = !matches!(way.below, Some(below) if below.redirect == Redirect::No);
    let passes_below = way.below.is_none_or(|below| setting.rules.below_switch(below.switch_ids));
    let through_root = if link.is_none() && (needs_root || !passes_below) {
        setting.rules.through_host_bridge(&way.top.crossing(world))
    } else {
        Verdict { allowed: None, reason: Reason::HostBridgeUnknown }
    };
    Place::Between(Bus {
        link_back: if link.is_none() { world.link(one, other).map(|link| link.kind) } else { None },
        link,
        way,
        passes_below,
        through_root,
        switch: one.switch.or(other.switch),
        neighbours_bytes_per_s: one.own_bytes_per_s.zip(other.own_bytes_per_s).map(|(a, b)| a.min(b)),
    })
}

/// Where a pagemap that the bus sees ends there.
fn bus_end(exporter: Exporter<'_>) -> Option<u64> {
    match (exporter.spec.bus, exporter.spec.len_bytes) {
        (BusWindow::Hidden, _) => None,
        (BusWindow::Visible { start: Some(start) }, Some(len)) => start.checked_add(len),
        (BusWindow::Visible { .. }, _) => exporter.spot.and_then(|spot| spot.bar_end),
    }
}

/// Bytes per second of two copies, the second of what the first has brought.
///
/// Where both ran all the time beside each other it would be the slower of the two. Measured figures are nearer to this: 11.3 of 27.1 GB/s
/// on two cards with 16 lanes of the fourth generation, 6.1 of 13.2 on such with 8 (club-3090, `docs/PCIE_P2P.md`).
fn in_two_steps(first: Option<u64>, second: Option<u64>) -> Option<u64> {
    let (first, second) = first.zip(second).map(|(a, b)| (u128::from(a), u128::from(b)))?;
    (first * second).checked_div(first + second).map(|rate| rate as u64)
}
