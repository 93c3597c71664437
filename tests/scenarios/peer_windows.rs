//! What peers keep of a BAR of windows is what they are charged for, however their maps overlap: so the rest is the CPU's.

use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use devpagemap::{
    Bar, BarLimit, Buffer, Error, FenceSet, OnPressure, P2p, P2pLimits, Peer, PeerMap, PeerReason, Place,
    Route, Size, SoftwareGpu, Timeline, Zap,
};
use proptest::prelude::*;

use crate::setup::importer::*;
use crate::setup::*;

const P: u64 = 4096;

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * P..range.end * P
}

/// Peers may have the first half of the BAR's pages.
fn device(vram_pages: u64, bar_pages: u64) -> Lab {
    let [bar, half] = [bar_pages, bar_pages / 2].map(|pages| Size::bytes(pages * P));
    let limits = P2pLimits { soft: half, reopen: half, hard: half, cpu_reserve: half };
    let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
    let device = devpagemap::Device::builder(gpu).vram(Size::bytes(vram_pages * P)).bar(Bar::Windows(bar));
    device.p2p_limits(limits).system(Size::mib(16)).gtt(Size::mib(8)).build().expect("a small device")
}

/// A buffer in VRAM that holds the pattern of `seed`.
fn filled_pages(device: &Lab, page_count: u64, seed: u64) -> Buffer {
    let buffer = device.buffer(Size::bytes(page_count * P)).prefer(Place::VRAM).or(Place::GTT).create();
    let buffer = buffer.expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

fn used_pages(device: &Lab) -> u64 {
    device.stats().p2p_used_bytes / P
}

/// Fails unless the CPU can have all of the BAR that peers are not charged for.
#[track_caller]
fn expect_the_rest_for_the_cpu(device: &Lab) {
    let bar = device.layout().bar.size();
    let spare = device.buffer(bar).prefer(Place::VRAM).create().expect("it fits");
    spare.place_now().expect("nothing is pinned");
    let rest_bytes = bar.as_bytes() - device.stats().p2p_used_bytes;
    drop(spare.window(0..rest_bytes).expect("what peers are not charged for is to be had"));
}

#[test]
fn who_keeps_a_part_of_a_window_is_charged_for_all_of_it_and_the_cpu_has_its_reserve() {
    let device = device(512, 128);
    let (_, first) = Nic::join("first", &device);
    let (_, second) = Nic::join("second", &device);
    let buffers = [1, 2].map(|seed| filled_pages(&device, 64, seed));
    let cpu = filled_pages(&device, 64, 3);
    device.wait_idle();
    let all = map_all(&buffers[0].attach(&first).expect("one device"));
    let one = buffers[0].attach(&second).expect("one device").map(pages(7..8)).expect("it is shown");
    assert_eq!((one.range(), one.extents().len()), (pages(7..8), 1));
    assert_eq!(one.extents()[0].len_bytes, P, "a map is what was asked for");
    drop(all);
    assert_eq!((used_pages(&device), second.p2p_used()), (64, Size::bytes(64 * P)));
    let other = buffers[1].attach(&first).expect("one device");
    let refused = other.request(pages(0..1)).on_pressure(OnPressure::Refuse).map().expect_err("all is kept");
    assert!(matches!(refused, Error::ApertureFull { limit: BarLimit::Hard, .. }), "{refused}");
    let fell_back = other.map(pages(0..63)).expect("system memory");
    assert_eq!(fell_back.route(), Route::System);
    drop(cpu.pin_window(pages(0..64)).expect("the CPU's reserve is always to be had"));
    expect_peer_reads(&device, &one, 1);
    drop(one);
    assert_eq!(used_pages(&device), 0);
}

#[test]
fn a_window_that_nobody_has_makes_way_for_a_smaller_one() {
    let device = device(512, 128);
    let (_, peer) = Nic::join("nic", &device);
    let buffer = filled_pages(&device, 64, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    drop(map_all(&attachment));
    let parts = [3..5, 0..1, 62..64].map(|part| attachment.map(pages(part)).expect("there is room"));
    assert_eq!(used_pages(&device), 5);
    expect_the_rest_for_the_cpu(&device);
    parts.iter().for_each(|part| expect_peer_reads(&device, part, 1));
}

#[test]
fn a_window_that_lies_within_what_is_mapped_is_used_on() {
    let device = device(512, 128);
    let (_, peer) = Nic::join("nic", &device);
    let buffer = filled_pages(&device, 16, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let part = attachment.map(pages(4..8)).expect("there is room");
    let place = part.extents()[0].addr;
    drop(part);
    let wider = attachment.map(pages(2..10)).expect("there is room");
    assert!(wider.extents().iter().any(|extent| extent.addr == place), "{wider:?}");
    assert_eq!((used_pages(&device), device.stats().window_bytes), (8, 8 * P));
    expect_peer_reads(&device, &wider, 1);
}

#[test]
fn a_map_that_keeps_more_than_its_account_may_is_refused_with_what_it_would_keep() {
    let device = device(512, 128);
    let (_, first) = Nic::join("first", &device);
    let (_, second) = Nic::join("second", &device);
    let second = second.p2p_limit(Size::bytes(16 * P));
    let buffer = filled_pages(&device, 64, 1);
    let _all = map_all(&buffer.attach(&first).expect("one device"));
    let attachment = buffer.attach(&second).expect("one device");
    let refused = attachment.request(pages(7..8)).on_pressure(OnPressure::Refuse).map();
    let (limit, wanted_bytes) = (BarLimit::Importer, 64 * P);
    let expected = Error::ApertureFull { limit, limit_bytes: 16 * P, used_bytes: 0, wanted_bytes };
    assert_eq!(refused.expect_err("it would keep 64 pages"), expected);
    assert_eq!(used_pages(&device), 64);
    let fell_back = attachment.map(pages(7..8)).expect("system memory");
    assert_eq!(fell_back.why_system(), Some(PeerReason::Over(BarLimit::Importer)));
}

#[test]
fn a_smaller_window_waits_for_who_still_uses_the_larger_only_if_both_count_as_one() {
    let device = device(512, 128);
    let (_, peer) = Nic::join("nic", &device);
    let buffer = filled_pages(&device, 64, 1);
    buffer.wait().expect("filled");
    let attachment = buffer.attach(&peer).expect("one device");
    let gate = Gate::closed();
    attachment.map(pages(0..32)).expect("there is room").unmap_after(gate.fence().clone());
    let alone = attachment.map(pages(7..8)).expect("there is room");
    assert!(alone.after().is_signaled(), "these pages count beside those that are still used");
    assert_eq!((device.stats().p2p_used_bytes, device.stats().p2p_pending_bytes), (P, 32 * P));

    attachment.map(pages(32..48)).expect("there is room").unmap_after(gate.fence().clone());
    let beside = attachment.map(pages(40..41)).expect("there is room");
    assert!(!beside.after().is_signaled(), "this page counts once, so nobody uses it twice");
    let (_, another) = Nic::join("another", &device);
    let again = buffer.attach(&another).expect("one device").map(pages(40..41)).expect("there is room");
    assert!(!again.after().is_signaled(), "nor does anybody else");
    gate.open();
    [&alone, &beside, &again].into_iter().for_each(|map| expect_peer_reads(&device, map, 1));
}

/// What it was told.
#[derive(Default)]
struct Follower(Mutex<Vec<Range<u64>>>);

impl Zap for Follower {
    fn zap(&self, bytes: &Range<u64>) {
        self.0.lock().expect("no test panics with it").push(bytes.clone());
    }
}

#[test]
fn a_pinned_window_keeps_no_idle_one_that_sticks_out_of_it() {
    let device = device(64, 16);
    let (_, peer) = Nic::join("nic", &device);
    let [shared, own, other] = [1, 2, 3].map(|seed| filled_pages(&device, 8, seed));
    drop(own.window(pages(4..8)).expect("there is room"));
    let pinned = own.pin_window(pages(0..5)).expect("within the reserve");
    let _theirs = map_all(&shared.attach(&peer).expect("one device"));
    let rest = other.pin_window(pages(0..3)).expect("the rest of the reserve");
    assert_eq!(device.stats().window_cpu_held_bytes, 8 * P);
    drop((pinned, rest));
}

#[test]
fn who_follows_a_window_is_told_that_it_makes_way_for_a_smaller_one() {
    let device = device(512, 128);
    let (_, peer) = Nic::join("nic", &device);
    let buffer = filled_pages(&device, 64, 1);
    let follower = Arc::new(Follower::default());
    let weak: Weak<dyn Zap> = Arc::downgrade(&(follower.clone() as Arc<dyn Zap>));
    assert!(buffer.window(pages(0..64)).expect("there is room").follow(&weak));
    let map = buffer.attach(&peer).expect("one device").map(pages(7..8)).expect("there is room");
    assert_eq!(*follower.0.lock().expect("whole"), [pages(0..64)]);
    assert_eq!(used_pages(&device), 1);
    expect_peer_reads(&device, &map, 1);
}

const BAR_PAGES: u64 = 16;
const BUFFER_PAGES: u64 = 8;
const BUFFERS: usize = 4;
const PEERS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Map { peer: usize, buffer: usize, first: u64, pages: u64, on_pressure: usize },
    Unmap { at: usize, late: bool },
    LetGo,
    Window { buffer: usize, first: u64, pages: u64 },
    Tag { buffer: usize, p2p: usize, priority: usize },
    MoveAll,
    Promote,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..BUFFER_PAGES, 1..=BUFFER_PAGES);
    let map = (0..PEERS, 0..BUFFERS, range(), 0..3usize);
    let map = map.prop_map(|(peer, buffer, (first, pages), on_pressure)| Step::Map {
        peer,
        buffer,
        first,
        pages,
        on_pressure,
    });
    let window = (0..BUFFERS, range());
    let tag = (0..BUFFERS, 0..4usize, 0..3usize);
    prop_oneof![
        12 => map,
        9 => (any::<usize>(), any::<bool>()).prop_map(|(at, late)| Step::Unmap { at, late }),
        1 => Just(Step::LetGo),
        3 => window.prop_map(|(buffer, (first, pages))| Step::Window { buffer, first, pages }),
        2 => tag.prop_map(|(buffer, p2p, priority)| Step::Tag { buffer, p2p, priority }),
        1 => Just(Step::MoveAll),
        2 => Just(Step::Promote),
    ]
}

struct Run {
    device: Lab,
    buffers: Vec<Buffer>,
    peers: Vec<Peer>,
    maps: Vec<PeerMap>,
    late: Timeline,
}

impl Run {
    fn new() -> Run {
        let device = device(64, BAR_PAGES);
        let buffers = (0..BUFFERS as u64).map(|seed| filled_pages(&device, BUFFER_PAGES, seed)).collect();
        let peers = ["one", "two", "three"].map(|name| Nic::join(name, &device).1).into();
        Run { device, buffers, peers, maps: Vec::new(), late: Timeline::new("late peers") }
    }

    fn range(first: u64, count: u64) -> Range<u64> {
        pages(first..(first + count).min(BUFFER_PAGES))
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Map { peer, buffer, first, pages, on_pressure } => {
                let on_pressure = [OnPressure::Demote, OnPressure::FallBack, OnPressure::Refuse][on_pressure];
                let attachment = self.buffers[buffer].attach(&self.peers[peer]).expect("one device");
                let request = attachment.request(Run::range(first, pages));
                match request.on_pressure(on_pressure).map() {
                    Ok(map) => self.maps.push(map),
                    Err(Error::ApertureFull { limit, .. }) => assert_ne!(limit, BarLimit::Bar, "{step:?}"),
                    Err(error) => panic!("{step:?}: {error}"),
                }
            }
            Step::Unmap { at, late } if !self.maps.is_empty() => {
                let map = self.maps.swap_remove(at % self.maps.len());
                match late {
                    true => map.unmap_after(FenceSet::from(self.late.next_point())),
                    false => drop(map),
                }
            }
            Step::Unmap { .. } => {}
            Step::LetGo => self.late.signal(self.late.next_point().seqno()),
            Step::Window { buffer, first, pages } => {
                // What is left where it was shows more than some peer will ask for.
                match self.buffers[buffer].window(Run::range(first, pages)) {
                    Ok(window) => drop(window),
                    Err(error) => panic!("{step:?}: {error}"),
                }
            }
            Step::Tag { buffer, p2p, priority } => {
                let p2p = [P2p::Never, P2p::Allowed, P2p::Prefer, P2p::Require][p2p];
                self.buffers[buffer].set_p2p(p2p).expect("a slot");
                self.buffers[buffer].set_priority(priority).expect("a priority");
            }
            Step::MoveAll => {
                let all = Size::bytes(self.device.layout().vram_bytes);
                let all = self.device.buffer(all).prefer(Place::VRAM).create().expect("it fits");
                all.place_now().expect("nothing is pinned");
            }
            Step::Promote => drop(self.device.promote()),
        }
    }

    fn check(&self) {
        let stats = self.device.stats();
        assert!((stats.p2p_used_bytes + stats.p2p_pending_bytes) <= BAR_PAGES / 2 * P, "{stats:?}");
        expect_the_rest_for_the_cpu(&self.device);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_cpu_can_have_all_that_peers_are_not_charged_for(steps in prop::collection::vec(step(), 1..60)) {
        let mut run = Run::new();
        for step in &steps {
            run.take(step);
            run.check();
        }
        run.late.signal(run.late.next_point().seqno());
        for map in run.maps.iter().filter(|map| map.is_current()) {
            let seed = run.buffers.iter().position(|buffer| buffer.id() == map.buffer().id());
            expect_peer_reads(&run.device, map, seed.expect("it is one of them") as u64);
        }
        run.maps.clear();
        run.device.wait_idle();
        prop_assert_eq!((run.device.stats().p2p_used_bytes, run.device.stats().p2p_pending_bytes), (0, 0));
    }
}
