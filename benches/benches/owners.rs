//! The registry of owners: what it costs to ask whose pages these are, how somebody reaches them, and to decide that for everybody.

use std::hint::black_box;
use std::time::Instant;

use devpagemap::pagemap::{
    ImporterId, JoinedImporter, Observation, Observed, Owner, PageTag, Pagemap, PagemapId, PagemapSpec,
    Profile, Registry, Route, Snapshot,
};
use devpagemap::topology::{
    Acs, CpuInfo, CpuVendor, Function, Machine, NodeId, NodeKind, PciAddress, PciLink, Place, PortKind,
    pci_bytes_per_s,
};
use devpagemap_benches::contest::{Contest, Goal, Sample};
use devpagemap_benches::picks::Random;
use devpagemap_benches::session::Session;
use parking_lot::Mutex;

/// Pages of 1 GiB.
const PAGES: usize = 262_144;
/// How many join, of each kind.
const MANY: usize = 1_000;

fn main() {
    let mut session = Session::from_arguments();
    for (name, run_pages) in
        [("one pagemap", PAGES), ("runs of 2 MiB", 512), ("runs of 64 KiB", 16), ("another each page", 1)]
    {
        owner_check(&mut session, name, run_pages);
    }
    look_up(&mut session);
    look_up_at_random(&mut session);
    joins(&mut session);
    another_machine(&mut session);
    seen(&mut session);
    session.finish();
}

/// A machine of `2 * MANY` devices: ten below each switch, two switches on each host bridge.
struct Hall {
    machine: Machine,
    devices: Vec<PciAddress>,
}

fn hall(lanes: u32) -> Hall {
    let place = Place::file("hall");
    let mut builder = Machine::builder();
    let root = builder.root();
    let cpu = CpuInfo { vendor: Some(CpuVendor::Amd), family: Some(0x19), model: None };
    let mut add = |parent, kind| builder.add(parent, kind, Vec::new(), &place).expect("a part that can be");
    let package = add(root, NodeKind::Package(cpu));
    let mut devices = Vec::new();
    for host in 0..2 * MANY as u32 / 20 {
        let bridge = add(package, NodeKind::HostBridge { bus: None, ids: None });
        let at = |bus, device| PciAddress { domain: host, bus, device, function: 0 };
        let port = |address, port| {
            NodeKind::Bridge(Function { address: Some(address), port: Some(port), ..function(lanes) })
        };
        for switch in 0..2 {
            let bus = 0x20 * (switch + 1);
            let top = add(bridge, port(at(0, switch + 1), PortKind::Root));
            let up = add(top, port(at(bus, 0), PortKind::Upstream));
            for device in 0..10 {
                let down = add(up, port(at(bus + 1, device), PortKind::Downstream));
                let address = at(bus + 2 + device, 0);
                add(down, NodeKind::Function(Function { address: Some(address), ..function(lanes) }));
                devices.push(address);
            }
        }
    }
    Hall { machine: builder.build(), devices }
}

fn function(lanes: u32) -> Function {
    let link = PciLink { bytes_per_s: pci_bytes_per_s(16_000, lanes), max_bytes_per_s: None };
    Function { acs: Some(Acs::default()), link, atomics: Some(true), ..Function::default() }
}

/// A registry that they all have joined.
struct Full {
    registry: Registry,
    pagemaps: Vec<Pagemap>,
    importers: Vec<JoinedImporter>,
}

fn specs(hall: &Hall) -> Vec<PagemapSpec> {
    hall.devices[..MANY].iter().map(|at| PagemapSpec::visible(&Owner::at(*at))).collect()
}

fn profiles(hall: &Hall) -> Vec<Profile> {
    hall.devices[MANY..].iter().map(|at| Profile::dynamic().at(*at)).collect()
}

/// Everybody joins in turn.
fn join_all(registry: Registry, specs: Vec<PagemapSpec>, profiles: Vec<Profile>) -> Full {
    let (mut pagemaps, mut importers) = (Vec::with_capacity(MANY), Vec::with_capacity(MANY));
    for (spec, profile) in specs.into_iter().zip(profiles) {
        pagemaps.push(registry.join_pagemap(spec).expect("joins"));
        importers.push(registry.join(profile).expect("joins"));
    }
    Full { registry, pagemaps, importers }
}

impl Full {
    fn new() -> Full {
        let hall = hall(16);
        let (specs, profiles) = (specs(&hall), profiles(&hall));
        join_all(Registry::new(hall.machine), specs, profiles)
    }

    fn ids(&self) -> (Vec<PagemapId>, Vec<ImporterId>) {
        (
            self.pagemaps.iter().map(Pagemap::id).collect(),
            self.importers.iter().map(JoinedImporter::id).collect(),
        )
    }
}

/// Pages that can be reached without a copy.
fn reached(snapshot: &Snapshot, importer: ImporterId, tags: &[PageTag]) -> usize {
    snapshot
        .resolve(importer, tags)
        .filter(|run| run.decision.route.is_p2p())
        .map(|run| run.pages.len())
        .sum()
}

/// How many of a GiB of pages an importer reaches; beside whether all have one tag, which is all that an owner check must do.
fn owner_check(session: &mut Session, pages: &str, run_pages: usize) {
    let name = format!("owner check over 1 GiB, {pages}");
    if !session.wants(&name) {
        return;
    }
    let full = Full::new();
    let (pagemaps, importers) = full.ids();
    let tags: Vec<PageTag> = (0..PAGES).map(|page| pagemaps[page / run_pages % 4].tag()).collect();
    let (wanted, importer) = (pagemaps[0].tag(), importers[0]);
    let snapshot = full.registry.snapshot();
    assert_eq!(reached(&snapshot, importer, &tags), PAGES, "all are below host bridges that forward");
    let is_for_long_runs = run_pages >= 512;
    let mut contest = Contest::new(name, if is_for_long_runs { Goal::of_floor(1.3) } else { Goal::NONE });
    contest.ours(|| {
        black_box(reached(&snapshot, importer, black_box(&tags)));
    });
    contest.floor("bare tag compare", || {
        let differ = |bits: u32, tag: &PageTag| bits | (tag.to_bits() ^ wanted.to_bits());
        black_box(black_box(&tags).iter().fold(0, differ));
    });
    contest.shown("tags compared and counted", || {
        black_box(black_box(&tags).iter().filter(|tag| **tag == wanted).count());
    });
    contest.hold(session);
}

/// One decision again and again. The floor is the goal itself.
fn look_up(session: &mut Session) {
    let name = "look-up of a decision among 1,000 x 1,000";
    if !session.wants(name) {
        return;
    }
    let full = Full::new();
    let (pagemap, importer) = (full.pagemaps[500].id(), full.importers[400].id());
    let (mut reader, snapshot) = (full.registry.reader(), full.registry.snapshot());
    let mutex = Mutex::new(());
    let mut contest = Contest::new(name, Goal::of_floor(1.0));
    contest.ours(|| {
        black_box(reader.decision(black_box(pagemap), black_box(importer)));
    });
    contest.variant("in a snapshot", || {
        black_box(snapshot.decision(black_box(pagemap), black_box(importer)));
    });
    contest.variant("without a reader", || {
        black_box(full.registry.decision(black_box(pagemap), black_box(importer)));
    });
    contest.floor_measured("20 ns", || Sample::of(20.0));
    contest.shown("parking_lot Mutex, lock + unlock", || drop(black_box(&mutex).lock()));
    contest.hold(session);
}

/// Another pair each time: what memory costs, which holds 24 MB of decisions.
fn look_up_at_random(session: &mut Session) {
    let name = "look-up of any decision of 1,000 x 1,000";
    if !session.wants(name) {
        return;
    }
    let full = Full::new();
    let (pagemaps, importers) = full.ids();
    let mut reader = full.registry.reader();
    let table = vec![Route::Switch; 24 * MANY * MANY];
    let (mut ours, mut theirs) = (Random::new(1), Random::new(1));
    let mut contest = Contest::new(name, Goal::NONE);
    contest.ours(|| {
        let (pagemap, importer) = (pagemaps[ours.below(MANY)], importers[ours.below(MANY)]);
        black_box(reader.decision(pagemap, importer));
    });
    contest.floor("a table of as many bytes", || {
        let (pagemap, importer) = (theirs.below(MANY), theirs.below(MANY));
        black_box(table[24 * (pagemap * MANY + importer)]);
    });
    contest.hold(session);
}

/// Everybody joins. Beside a model of the kernel's registry: groups in a list under a mutex, and the newcomer walks the
/// tree to each member of a group before it is one itself.
fn joins(session: &mut Session) {
    let name = "1,000 pagemaps and 1,000 importers join";
    if !session.wants(name) {
        return;
    }
    let hall = hall(16);
    let mut contest = Contest::new(name, Goal::of_floor(1.0)).of_few_rounds(9);
    contest.ours_measured(|| {
        let (registry, specs, profiles) =
            (Registry::new(hall.machine.clone()), specs(&hall), profiles(&hall));
        let begin = Instant::now();
        let full = join_all(registry, specs, profiles);
        let sample = Sample::of(begin.elapsed().as_nanos() as f64);
        drop(full);
        sample
    });
    contest.floor_measured("1 s", || Sample::of(1e9));
    contest.shown_measured("greedy groups under a mutex, a boolean a pair", || {
        let groups = Mutex::new(Vec::new());
        let begin = Instant::now();
        hall.devices.iter().for_each(|device| greedy_join(&groups, &hall.machine, *device));
        let sample = Sample::of(begin.elapsed().as_nanos() as f64);
        assert_eq!(groups.lock().len(), 1, "everybody is connected");
        sample
    });
    contest.hold(session);
}

fn greedy_join(groups: &Mutex<Vec<Vec<NodeId>>>, machine: &Machine, device: PciAddress) {
    let node = machine.at(device).expect("it is there");
    let mut groups = groups.lock();
    let fits = |group: &&mut Vec<NodeId>| group.iter().all(|member| are_connected(machine, node, *member));
    match groups.iter_mut().find(fits) {
        Some(group) => group.push(node),
        None => groups.push(vec![node]),
    }
}

/// Whether they are below one bridge of which none redirects, or the host bridge forwards, which it does here.
fn are_connected(machine: &Machine, one: NodeId, other: NodeId) -> bool {
    let meeting = machine.meeting(one, other);
    let redirects = |id: NodeId| {
        machine.node(id).function().and_then(|function| function.acs).is_some_and(|acs| acs.redirects())
    };
    let below = |end| machine.upwards(end).take_while(|id| *id != meeting).any(redirects);
    let is_direct = !below(one) && !below(other);
    black_box(is_direct) || machine.cpu_of(one).is_some_and(|cpu| cpu.family >= Some(0x17))
}

/// Another machine is there, and a million decisions are made anew.
fn another_machine(session: &mut Session) {
    let name = "a million decisions for another machine";
    if !session.wants(name) {
        return;
    }
    let full = Full::new();
    let machines = [hall(8).machine, hall(16).machine];
    let mut next = 0;
    let mut contest = Contest::new(name, Goal::of_floor(1.0)).of_few_rounds(9);
    contest.ours_measured(|| {
        let machine = machines[next % 2].clone();
        next += 1;
        let begin = Instant::now();
        black_box(full.registry.set_machine(machine));
        Sample::of(begin.elapsed().as_nanos() as f64)
    });
    contest.floor_measured("1 s", || Sample::of(1e9));
    contest.hold(session);
}

/// A measurement comes in, and one decision is made anew.
fn seen(session: &mut Session) {
    let name = "a measurement of one pair of 1,000 x 1,000";
    if !session.wants(name) {
        return;
    }
    let full = Full::new();
    let (exporter, importer) = (full.pagemaps[500].owner().clone(), full.importers[400].profile().at);
    let importer = importer.expect("it has a place");
    let mut rate = 0;
    let mut contest = Contest::new(name, Goal::NONE);
    contest.ours(|| {
        rate += 1;
        full.registry.observe(Observation::new(&exporter, importer, Observed::P2pRate(rate)));
    });
    contest.hold(session);
}
