//! The registry against a plain model: random machines, random parties that come, go and come again in any order, random things seen. The
//! model knows one pair at a time and looks at it as long as it takes.

use devpagemap::pagemap::{
    BusWindow, Decision, ImporterId, JoinedImporter, LatencyClass, Observation, Observed, Owner, Pagemap,
    PagemapId, PagemapSpec, Policy, Profile, Registry, Route,
};
use devpagemap::topology::{
    Acs, CpuInfo, CpuVendor, Function, Link, LinkKind, Machine, NodeId, NodeKind, PciAddress, PciIds,
    PciLink, Place, PortKind,
};
use proptest::prelude::*;

/// What a machine is made of, as the model sees it. Parents come first.
#[derive(Clone, Debug)]
struct Plan {
    cpu: CpuInfo,
    hosts: Vec<Option<PciIds>>,
    ports: Vec<Port>,
    devices: Vec<Leaf>,
    /// Private links from device to device.
    links: Vec<(usize, usize, u64)>,
}

/// A port: what it is below, whether it redirects, whether it passes atomic operations on.
type Port = (Above, Option<bool>, Option<bool>);

/// A device: what it is below, whether it redirects, its rate, whether it completes atomic operations.
type Leaf = (Above, Option<bool>, Option<u64>, Option<bool>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Above {
    Host(usize),
    Port(usize),
}

const DEVICES: usize = 5;

fn device_address(index: usize) -> PciAddress {
    PciAddress { domain: 0, bus: 0x80 + index as u8, device: 0, function: 0 }
}

fn port_address(index: usize) -> PciAddress {
    PciAddress { domain: 0, bus: 0x20 + index as u8, device: 1, function: 0 }
}

fn acs(redirects: Option<bool>) -> Option<Acs> {
    redirects.map(|redirects| Acs { request_redirect: redirects, ..Acs::default() })
}

impl Plan {
    fn build(&self) -> Machine {
        let place = Place::file("plan");
        let mut builder = Machine::builder();
        let root = builder.root();
        let mut add =
            |parent, kind| builder.add(parent, kind, Vec::new(), &place).expect("a part that can be");
        let package = add(root, NodeKind::Package(self.cpu.clone()));
        let hosts: Vec<NodeId> = self
            .hosts
            .iter()
            .map(|ids| add(package, NodeKind::HostBridge { bus: None, ids: *ids }))
            .collect();
        let mut ports: Vec<NodeId> = Vec::new();
        for (index, (above, redirects, atomics)) in self.ports.iter().enumerate() {
            let parent = match above {
                Above::Host(host) => hosts[*host],
                Above::Port(port) => ports[*port],
            };
            // Each is a switch that is drawn as one: every link above one has a rate of its own.
            let function = Function {
                address: Some(port_address(index)),
                port: Some(PortKind::Switch),
                acs: acs(*redirects),
                atomics: *atomics,
                link: PciLink { bytes_per_s: Some(port_rate(index)), max_bytes_per_s: None },
                ..Function::default()
            };
            ports.push(add(parent, NodeKind::Bridge(function)));
        }
        let mut devices = Vec::new();
        for (index, (above, redirects, rate, atomics)) in self.devices.iter().enumerate() {
            let parent = match above {
                Above::Host(host) => hosts[*host],
                Above::Port(port) => ports[*port],
            };
            let function = Function {
                address: Some(device_address(index)),
                acs: acs(*redirects),
                atomics: *atomics,
                link: PciLink { bytes_per_s: *rate, max_bytes_per_s: None },
                ..Function::default()
            };
            devices.push(add(parent, NodeKind::Function(function)));
        }
        for (from, to, rate) in &self.links {
            let link = Link {
                from: devices[*from],
                to: devices[*to],
                kind: LinkKind::Other,
                count: 1,
                bytes_per_s: Some(*rate),
                atomics: Some(true),
            };
            builder.link(link, &place).expect("a link that can be");
        }
        builder.build()
    }

    /// What is above a device, nearest first, up to its host bridge.
    fn chain(&self, device: usize) -> Vec<Above> {
        let mut chain = vec![self.devices[device].0];
        while let Some(Above::Port(port)) = chain.last() {
            chain.push(self.ports[*port].0);
        }
        chain
    }

    fn host(&self, device: usize) -> usize {
        match self.chain(device).last() {
            Some(Above::Host(host)) => *host,
            _ => unreachable!("a chain ends at a host bridge"),
        }
    }

    /// Whether host bridges let it through, as the kernel's rules are written.
    fn forwards(&self, exporter: usize, importer: usize) -> Option<bool> {
        let amd = self.cpu.vendor == Some(CpuVendor::Amd);
        if amd && self.cpu.family.is_some_and(|family| family >= 0x17) {
            return Some(true);
        }
        let hosts = [self.host(exporter), self.host(importer)];
        let of_one = |host: usize| match self.hosts[host] {
            None => None,
            Some(PciIds { vendor: 0x8086, device: 0x09a2 | 0x2030 }) => Some(true),
            Some(PciIds { vendor: 0x8086, device: 0x2f00 }) => Some(hosts[0] == hosts[1]),
            Some(PciIds { vendor: 0x8086, .. }) => Some(false),
            Some(_) if self.cpu.vendor.is_none() => None,
            Some(_) => Some(false),
        };
        let answers = hosts.map(of_one);
        let doubtful = amd && self.cpu.family.is_none();
        match answers {
            [Some(true), Some(true)] => Some(true),
            // It may be Zen, which would settle it.
            _ if doubtful => None,
            [Some(false), _] | [_, Some(false)] => Some(false),
            _ => None,
        }
    }
}

fn port_rate(index: usize) -> u64 {
    10_000 + 1_000 * (index as u64 * 7 % 5)
}

/// Somebody who joins.
#[derive(Clone, Debug)]
struct Party {
    /// Which device it is; one more than there are: an address where nothing is; two more: nowhere.
    device: usize,
    hidden: bool,
    policy: Policy,
    peer_capable: bool,
    needs_atomics: bool,
}

impl Party {
    fn at(&self) -> Option<PciAddress> {
        (self.device <= DEVICES).then(|| device_address(self.device))
    }
}

#[derive(Clone, Debug)]
struct Case {
    plan: Plan,
    exporters: Vec<Party>,
    importers: Vec<Party>,
    seen: Vec<(usize, usize, Observed)>,
    /// In which order things happen, the last of each kind for good.
    steps: Vec<usize>,
    /// Who goes and comes again, after which step.
    leavers: Vec<(usize, usize)>,
}

/// What the model says of one pair.
fn model(case: &Case, exporter: &Party, importer: &Party) -> Decision {
    let plan = &case.plan;
    let seen = |wanted: fn(&Observed) -> Option<u64>| {
        let of_pair = case.seen.iter().rev().filter(|(one, other, _)| {
            // What is nowhere is never the same as anything else.
            *one == exporter.device
                && *other == importer.device
                && exporter.device <= DEVICES
                && importer.device <= DEVICES
        });
        of_pair.filter_map(|(_, _, what)| wanted(what)).next()
    };
    let measured_p2p = seen(|what| if let Observed::P2pRate(rate) = what { Some(*rate) } else { None });
    let measured_staging =
        seen(|what| if let Observed::StagingRate(rate) = what { Some(*rate) } else { None });
    let refused =
        seen(|what| if let Observed::PeerAccess(has) = what { Some(u64::from(*has)) } else { None });
    let decision = |route, p2p, latency, atomics, rate| Decision {
        route,
        p2p,
        direction: devpagemap::pagemap::Direction::BOTH,
        atomics,
        latency,
        bandwidth_bytes_per_s: rate,
    };
    if exporter.device == importer.device && exporter.device <= DEVICES {
        return decision(Route::SameDevice, Some(true), LatencyClass::Local, Some(true), None);
    }
    let in_machine = exporter.device < DEVICES && importer.device < DEVICES;
    let declared = exporter.at().is_none() || importer.at().is_none();
    let linked = plan
        .links
        .iter()
        .filter(|(from, to, _)| in_machine && (*from, *to) == (importer.device, exporter.device));
    let linked: Vec<u64> = linked.map(|(_, _, rate)| *rate).collect();

    let mut noes = vec![importer.policy == Policy::Forbidden, refused == Some(0)];
    let mut doubts = vec![];
    let (mut route, mut latency, mut atomics, mut rate) = (Route::Declared, LatencyClass::Far, None, None);
    if declared {
        atomics = importer.needs_atomics.then_some(true);
    }
    if linked.is_empty() {
        noes.extend([!importer.peer_capable, exporter.hidden]);
    }
    if !linked.is_empty() {
        (route, latency, atomics) = (Route::PrivateLink, LatencyClass::Near, Some(true));
        rate = Some(linked.iter().sum());
    } else if in_machine {
        let (e, i) = (exporter.device, importer.device);
        let way = Walk::of(plan, e, i);
        let forwards = plan.forwards(e, i);
        (route, latency) = (way.route(), way.latency());
        let below = way.meets.is_some();
        match way.redirects {
            Some(false) if below => {}
            None if below => doubts.push(forwards != Some(true)),
            _ => {
                noes.push(forwards == Some(false));
                doubts.push(forwards.is_none());
            }
        }
        (atomics, rate) = (way.atomics(plan, e), way.rate);
    } else if !declared {
        doubts.push(true);
    }
    let mut works = if noes.contains(&true) {
        Some(false)
    } else if doubts.contains(&true) {
        None
    } else {
        Some(true)
    };
    if works.is_none() && refused == Some(1) {
        works = Some(true);
    }
    if importer.needs_atomics && atomics != Some(true) {
        works = if atomics == Some(false) { Some(false) } else { works.filter(|works| !works) };
    }
    let slower = measured_p2p.zip(measured_staging).is_some_and(|(p2p, staging)| p2p < staging);
    if works == Some(true) && !(slower && importer.policy == Policy::Allowed) {
        return decision(route, Some(true), latency, atomics, measured_p2p.or(rate));
    }
    let p2p = works.filter(|works| !works);
    let p2p = if works == Some(true) { Some(false) } else { p2p };
    if importer.policy == Policy::Required {
        let nothing = devpagemap::pagemap::Direction::NEITHER;
        return Decision {
            direction: nothing,
            ..decision(Route::Refused, p2p, LatencyClass::Remote, Some(false), None)
        };
    }
    let up = |party: &Party| (party.device < DEVICES).then(|| rate_to_root(plan, party.device)).flatten();
    if importer.needs_atomics {
        return decision(Route::System, p2p, LatencyClass::Far, None, up(importer));
    }
    let estimate =
        up(exporter).zip(up(importer)).map(|(a, b)| (a as u128 * b as u128 / (a as u128 + b as u128)) as u64);
    decision(Route::Staging, p2p, LatencyClass::Remote, Some(false), measured_staging.or(estimate))
}

fn rate_to_root(plan: &Plan, device: usize) -> Option<u64> {
    let ports = plan.chain(device).into_iter().filter_map(|above| match above {
        Above::Port(port) => Some(port_rate(port)),
        Above::Host(_) => None,
    });
    plan.devices[device].2.map(|own| ports.fold(own, u64::min))
}

/// Everything that requests pass on the bus.
struct Walk {
    /// The port where the short way turns.
    meets: Option<usize>,
    /// Whether any port or end redirects.
    redirects: Option<bool>,
    /// Ports that are passed on the short way, without where it turns.
    short: Vec<usize>,
    /// All ports up to the root, on both sides.
    long: Vec<usize>,
    rate: Option<u64>,
}

impl Walk {
    fn of(plan: &Plan, exporter: usize, importer: usize) -> Walk {
        let ports = |device| -> Vec<usize> {
            let chain = plan.chain(device).into_iter();
            chain.filter_map(|above| if let Above::Port(port) = above { Some(port) } else { None }).collect()
        };
        let (one, other) = (ports(exporter), ports(importer));
        let meets = one.iter().find(|port| other.contains(port)).copied();
        let before = |chain: &[usize]| -> Vec<usize> {
            chain.iter().take_while(|port| Some(**port) != meets).copied().collect()
        };
        let short = [before(&one), before(&other)].concat();
        let long = [one, other].concat();
        let ends = [plan.devices[exporter].1, plan.devices[importer].1];
        let passed = short.iter().chain(&meets).map(|port| plan.ports[*port].1).chain(ends);
        let passed: Vec<Option<bool>> = passed.collect();
        let redirects = if passed.contains(&Some(true)) {
            Some(true)
        } else if passed.contains(&None) {
            None
        } else {
            Some(false)
        };
        let takes_short = meets.is_some() && redirects == Some(false);
        let over = if takes_short { &short } else { &long };
        let own = plan.devices[exporter].2.zip(plan.devices[importer].2);
        let rate = own.map(|(a, b)| over.iter().map(|port| port_rate(*port)).fold(a.min(b), u64::min));
        Walk { meets, redirects, short, long, rate }
    }

    fn route(&self) -> Route {
        match (self.meets, self.redirects) {
            (Some(_), Some(false) | None) => Route::Switch,
            _ => Route::HostBridge,
        }
    }

    fn latency(&self) -> LatencyClass {
        let direct = self.meets.is_some() && self.redirects == Some(false);
        if direct && self.short.is_empty() { LatencyClass::Near } else { LatencyClass::Far }
    }

    fn atomics(&self, plan: &Plan, exporter: usize) -> Option<bool> {
        let all = |ports: &mut dyn Iterator<Item = usize>| {
            let known: Vec<Option<bool>> =
                ports.map(|port| plan.ports[port].2).chain([plan.devices[exporter].3]).collect();
            if known.contains(&Some(false)) {
                Some(false)
            } else if known.contains(&None) {
                None
            } else {
                Some(true)
            }
        };
        let long = all(&mut self.long.iter().copied());
        let Some(meets) = self.meets else { return long };
        let short = all(&mut self.short.iter().copied().chain([meets]));
        match self.redirects {
            Some(false) => short,
            Some(true) => long,
            None => {
                if short == long {
                    short
                } else {
                    None
                }
            }
        }
    }
}

fn maybe() -> impl Strategy<Value = Option<bool>> {
    prop_oneof![2 => Just(Some(false)), 1 => Just(Some(true)), 1 => Just(None)]
}

fn host_ids() -> impl Strategy<Value = Option<PciIds>> {
    let ids = |vendor, device| Just(Some(PciIds { vendor, device }));
    prop_oneof![
        ids(0x8086, 0x09a2),
        ids(0x8086, 0x2f00),
        ids(0x8086, 0x3420),
        ids(0x1022, 0x1480),
        Just(None)
    ]
}

fn cpu() -> impl Strategy<Value = CpuInfo> {
    let cpu = |vendor, family| Just(CpuInfo { vendor, family, model: None });
    prop_oneof![
        cpu(Some(CpuVendor::Amd), Some(0x17)),
        cpu(Some(CpuVendor::Amd), Some(0x15)),
        cpu(Some(CpuVendor::Amd), None),
        cpu(Some(CpuVendor::Intel), Some(6)),
        cpu(None, None),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let below = |ports: usize| {
        (any::<prop::sample::Index>(), 0..2usize).prop_map(move |(index, host)| {
            match index.index(ports + 1) {
                0 => Above::Host(host),
                port => Above::Port(port - 1),
            }
        })
    };
    let ports: Vec<_> = (0..6).map(|index| (below(index), maybe(), maybe())).collect();
    let rate = prop_oneof![3 => (5_000..20_000u64).prop_map(Some), 1 => Just(None)];
    let devices = prop::collection::vec(
        (below(6), prop_oneof![3 => Just(Some(false)), 1 => maybe()], rate, maybe()),
        DEVICES,
    );
    let links = prop::collection::vec((0..DEVICES, 0..DEVICES, 50_000..60_000u64), 0..4);
    (cpu(), prop::collection::vec(host_ids(), 2), ports, devices, links).prop_map(
        |(cpu, hosts, ports, devices, links)| {
            let links = links.into_iter().filter(|(from, to, _)| from != to).collect();
            Plan { cpu, hosts, ports, devices, links }
        },
    )
}

fn party() -> impl Strategy<Value = Party> {
    let policy = prop_oneof![
        3 => Just(Policy::Allowed),
        1 => Just(Policy::Preferred),
        1 => Just(Policy::Required),
        1 => Just(Policy::Forbidden),
    ];
    let rarely = || prop::bool::weighted(0.2);
    (0..DEVICES + 2, rarely(), policy, rarely(), rarely()).prop_map(
        |(device, hidden, policy, incapable, needs_atomics)| Party {
            device,
            hidden,
            policy,
            peer_capable: !incapable,
            needs_atomics,
        },
    )
}

const PARTIES: usize = 4;
const SIGHTINGS: usize = 4;
/// The machine becomes known, all join, all is seen.
const STEPS: usize = 1 + 2 * PARTIES + SIGHTINGS;

fn case() -> impl Strategy<Value = Case> {
    let what = prop_oneof![
        any::<bool>().prop_map(Observed::PeerAccess),
        (1..40_000u64).prop_map(Observed::P2pRate),
        (1..40_000u64).prop_map(Observed::StagingRate),
    ];
    let seen = prop::collection::vec((0..DEVICES, 0..DEVICES, what), SIGHTINGS);
    (
        plan(),
        prop::collection::vec(party(), PARTIES),
        prop::collection::vec(party(), PARTIES),
        seen,
        Just((0..STEPS).collect::<Vec<_>>()).prop_shuffle(),
        prop::collection::vec((0..STEPS, 0..2 * PARTIES), 0..6),
    )
        .prop_map(|(plan, exporters, importers, mut seen, steps, leavers)| {
            // What is seen later counts: in the order in which it will be.
            let mut in_order: Vec<_> =
                steps.iter().filter_map(|step| step.checked_sub(1 + 2 * PARTIES)).collect();
            in_order = in_order.into_iter().rev().collect();
            let shown: Vec<_> = in_order.iter().rev().map(|index| seen[*index]).collect();
            seen = shown;
            Case { plan, exporters, importers, seen, steps, leavers }
        })
}

/// A registry to which the steps of a case happen.
struct Stage<'a> {
    case: &'a Case,
    registry: Registry,
    pagemaps: Vec<Option<Pagemap>>,
    importers: Vec<Option<JoinedImporter>>,
    seen: usize,
}

impl Stage<'_> {
    fn new(case: &Case) -> Stage<'_> {
        let (pagemaps, importers) =
            ((0..PARTIES).map(|_| None).collect(), (0..PARTIES).map(|_| None).collect());
        Stage { case, registry: Registry::unknown(), pagemaps, importers, seen: 0 }
    }

    fn join(&mut self, index: usize) {
        if let Some(index) = index.checked_sub(PARTIES) {
            let party = &self.case.importers[index];
            let profile = Profile {
                at: party.at(),
                policy: party.policy,
                peer_capable: party.peer_capable,
                atomics: party.needs_atomics,
                ..Profile::dynamic()
            };
            self.importers[index] = Some(self.registry.join(profile).expect("joins"));
            return;
        }
        let party = &self.case.exporters[index];
        let owner = party.at().map_or(Owner::new("nowhere"), Owner::at);
        let bus = if party.hidden { BusWindow::Hidden } else { BusWindow::Visible { start: None } };
        let spec = PagemapSpec { bus, ..PagemapSpec::visible(&owner) };
        self.pagemaps[index] = Some(self.registry.join_pagemap(spec).expect("joins"));
    }

    fn step(&mut self, step: usize) {
        match step {
            0 => drop(self.registry.set_machine(self.case.plan.build())),
            step if step <= 2 * PARTIES => self.join(step - 1),
            _ => {
                let (exporter, importer, what) = self.case.seen[self.seen];
                self.seen += 1;
                let at = [exporter, importer].map(device_address);
                self.registry.observe(Observation::new(at[0], at[1], what));
            }
        }
    }

    /// Somebody who is there goes, and comes again as somebody else.
    fn come_again(&mut self, who: usize) {
        let was_there = match who.checked_sub(PARTIES) {
            Some(index) => self.importers[index].take().is_some(),
            None => self.pagemaps[who].take().is_some(),
        };
        if was_there {
            self.join(who);
        }
    }

    fn ids(&self) -> (Vec<PagemapId>, Vec<ImporterId>) {
        let pagemaps = self.pagemaps.iter().flatten().map(Pagemap::id).collect();
        (pagemaps, self.importers.iter().flatten().map(JoinedImporter::id).collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_the_plain_models_whatever_happened_in_which_order(case in case()) {
        let mut stage = Stage::new(&case);
        for (index, step) in case.steps.iter().enumerate() {
            stage.step(*step);
            for (_, who) in case.leavers.iter().filter(|(after, _)| *after == index) {
                stage.come_again(*who);
            }
        }
        let (pagemaps, importers) = stage.ids();
        let snapshot = stage.registry.snapshot();
        for (exporter, pagemap) in case.exporters.iter().zip(&pagemaps) {
            for (seeker, importer) in case.importers.iter().zip(&importers) {
                let decided = snapshot.decision(*pagemap, *importer);
                let explained = snapshot.explain(*pagemap, *importer);
                prop_assert_eq!(decided, model(&case, exporter, seeker), "{}: {:?} {:?}", explained, exporter, seeker);
                prop_assert_eq!(explained.decision, decided);
                prop_assert!(!explained.reasons.is_empty());
                let doubts = explained.reasons.iter().any(|reason| reason.is_unknown());
                prop_assert!(decided.p2p.is_some() || doubts, "{}", explained);
            }
        }
    }
}
