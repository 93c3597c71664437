//! Windows in a BAR that shows less than VRAM has: what peers see through them, who makes way, and what a move does to them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use devpagemap::{
    Bar, BarAddr, BarExtent, BarLimit, BarMemory, Buffer, CopyEngine, Device, DeviceMemory, Driver, Error,
    Fence, FenceSet, MemoryLayout, MemoryMap, P2pLimits, Place, Result, Size, SoftwareGpu, Window,
    WindowChange, Zap,
};

use crate::setup::{Gate, Lab, RunsJobs, fill, pattern, without_deadlock};

const P: u64 = 4096;

fn pages(range: Range<u64>) -> Range<u64> {
    range.start * P..range.end * P
}

fn device_with<D: Driver>(driver: D, vram_pages: u64, bar: Bar) -> Device<D> {
    let device = Device::builder(driver).vram(Size::bytes(vram_pages * P)).bar(bar);
    device.system(Size::mib(16)).gtt(Size::mib(8)).build().expect("a small device")
}

fn gpu() -> SoftwareGpu {
    SoftwareGpu::builder().rings(2).build().expect("threads for the rings")
}

/// So many pages of VRAM behind so many pages of windows.
fn windows(vram_pages: u64, bar_pages: u64) -> Lab {
    device_with(gpu(), vram_pages, Bar::Windows(Size::bytes(bar_pages * P)))
}

/// A buffer in VRAM that holds the pattern of `seed`.
fn filled<D: RunsJobs>(device: &Device<D>, page_count: u64, seed: u64) -> Buffer {
    let buffer = device.buffer(Size::bytes(page_count * P)).prefer(Place::VRAM).or(Place::GTT).create();
    let buffer = buffer.expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

/// Sends everything else out of VRAM.
fn evict_all<D: Driver>(device: &Device<D>) {
    let all = device.buffer(Size::bytes(device.layout().vram_bytes)).prefer(Place::VRAM).create();
    all.expect("it fits").place_now().expect("nothing is pinned");
}

/// What a peer reads through the BAR.
fn read(gpu: &SoftwareGpu, extents: &[BarExtent]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for extent in extents {
        let mut piece = vec![0xa5; extent.len_bytes as usize];
        gpu.read_bar(extent.addr, &mut piece)?;
        bytes.extend(piece);
    }
    Ok(bytes)
}

/// A peer finds the pattern of `seed` through the window.
#[track_caller]
fn expect_shown<D: RunsJobs>(device: &Device<D>, buffer: &Buffer, window: &Window, seed: u64) {
    assert!(window.is_current());
    buffer.wait().expect("the bytes arrive");
    window.after().wait().expect("the window is programmed");
    let bytes = read(device.driver().gpu(), &window.extents()).expect("it is shown");
    assert_eq!(bytes.len() as u64, window.bytes().end - window.bytes().start);
    pattern::check(seed, window.bytes().start, &bytes).expect("the bytes of the buffer");
}

#[test]
fn a_peer_reads_and_writes_the_buffers_bytes_wherever_it_lies_in_vram() {
    let device = windows(64, 8);
    let _first = filled(&device, 20, 1);
    let buffer = filled(&device, 32, 2);
    assert!(!buffer.visible(), "no page of VRAM is visible by itself");
    let window = buffer.window(5 * P + 100..9 * P + 7).expect("the BAR is empty");
    expect_shown(&device, &buffer, &window, 2);
    device.driver().write_bar(window.extents()[0].addr, b"from a peer").expect("it is shown");
    let mut bytes = [0; 11];
    buffer.read_at(5 * P + 100, &mut bytes).expect("readable");
    assert_eq!(&bytes, b"from a peer");
}

#[test]
fn where_the_bar_is_a_prefix_the_buffer_is_brought_into_it_and_its_place_is_the_window() {
    let device = device_with(gpu(), 64, Bar::Prefix(Size::bytes(16 * P)));
    let buffer = filled(&device, 8, 3);
    assert!(!buffer.visible(), "the hidden part is used first");
    let window = buffer.window(pages(2..4)).expect("the visible part is free");
    assert!(
        buffer.visible() && window.extents().iter().all(|extent| extent.addr.0 + extent.len_bytes <= 16 * P)
    );
    expect_shown(&device, &buffer, &window, 3);
    assert_eq!((device.stats().windows_made, device.stats().window_bytes), (1, 0), "it takes no space");
    evict_all(&device);
    assert!(!window.is_current());
}

#[test]
fn what_is_shown_already_needs_no_second_window() {
    let device = windows(64, 16);
    let buffer = filled(&device, 16, 1);
    let kept = buffer.window(pages(2..8)).expect("the BAR is empty");
    for range in [2..8, 2..3, 7..8, 4..6] {
        expect_shown(&device, &buffer, &buffer.window(pages(range)).expect("it is shown"), 1);
    }
    drop(kept);
    expect_shown(&device, &buffer, &buffer.window(pages(2..8)).expect("it is still shown"), 1);
    let stats = device.stats();
    assert_eq!((stats.windows_made, stats.windows_reclaimed, stats.window_bytes), (1, 0, 6 * P));
}

#[test]
fn of_a_range_that_is_shown_in_part_only_the_rest_takes_space() {
    let device = windows(64, 16);
    let buffer = filled(&device, 16, 1);
    let (_left, _right) = (buffer.window(pages(2..4)), buffer.window(pages(8..10)));
    let wide = buffer.window(pages(3..12)).expect("space for what is missing");
    expect_shown(&device, &buffer, &wide, 1);
    assert_eq!((device.stats().windows_made, device.stats().window_bytes), (4, 10 * P));
}

#[test]
fn the_window_that_was_used_least_recently_makes_way() {
    let device = windows(64, 4);
    let buffer = filled(&device, 16, 1);
    for page in 0..4 {
        drop(buffer.window(pages(page..page + 1)).expect("there is space"));
    }
    drop(buffer.window(pages(0..1)).expect("it is shown, and used again"));
    drop(buffer.window(pages(9..10)).expect("somebody makes way"));
    let is_shown = |page| {
        let made = device.stats().windows_made;
        drop(buffer.window(pages(page..page + 1)));
        made == device.stats().windows_made
    };
    assert!(is_shown(0) && is_shown(2) && is_shown(3) && is_shown(9));
    assert!(!is_shown(1), "it was the oldest that was not used again");
}

#[test]
fn a_kept_window_makes_way_for_nobody_and_the_error_says_what_is_missing() {
    let device = windows(64, 4);
    let buffer = filled(&device, 16, 1);
    let kept = buffer.window(pages(0..3)).expect("there is space");
    let error = buffer.window(pages(8..10)).expect_err("one page is left");
    let full = Error::ApertureFull {
        limit: BarLimit::Bar,
        limit_bytes: 4 * P,
        used_bytes: 3 * P,
        wanted_bytes: 2 * P,
    };
    assert_eq!(error, full);
    assert!(error.to_string().contains("8192 bytes"), "{error}");
    expect_shown(&device, &buffer, &kept, 1);
    drop(kept);
    let wide = buffer.window(pages(6..10)).expect("nobody keeps anything now");
    expect_shown(&device, &buffer, &wide, 1);
    assert_eq!(device.stats().window_bytes, 4 * P);
}

#[test]
fn a_window_that_somebody_had_when_space_was_wanted_makes_way_once_it_is_returned() {
    let device = windows(64, 2);
    let buffer = filled(&device, 16, 1);
    let (first, second) = (buffer.window(pages(0..1)), buffer.window(pages(1..2)));
    assert!(buffer.window(pages(2..3)).is_err(), "both are kept");
    drop(second);
    let third = buffer.window(pages(2..3)).expect("the second is returned");
    assert!(buffer.window(pages(3..4)).is_err(), "both are kept again");
    drop((first, third));
    let wide = buffer.window(pages(4..6)).expect("both are returned");
    expect_shown(&device, &buffer, &wide, 1);
}

#[test]
fn scattered_space_serves_a_wide_window_and_one_piece_is_preferred() {
    let device = windows(64, 8);
    let buffer = filled(&device, 32, 1);
    let mut narrow: Vec<_> = (0..8).map(|page| buffer.window(pages(2 * page..2 * page + 1))).collect();
    narrow
        .retain(|window| window.as_ref().expect("there is space").extents()[0].addr.0.is_multiple_of(2 * P));
    let wide = buffer.window(pages(20..24)).expect("every other page can be had");
    assert_eq!(wide.extents().len(), 4);
    expect_shown(&device, &buffer, &wide, 1);
    drop((wide, narrow));
    evict_all(&device);
    let wide = buffer.window(pages(20..24)).expect("the BAR is empty");
    assert_eq!(wide.extents().len(), 1);
    expect_shown(&device, &buffer, &wide, 1);
}

#[test]
fn space_that_a_larger_window_leaves_over_shows_nothing() {
    let device = windows(64, 4);
    let buffer = filled(&device, 16, 1);
    drop(buffer.window(pages(0..4)).expect("there is space"));
    let narrow = buffer.window(pages(8..9)).expect("the wide one makes way");
    expect_shown(&device, &buffer, &narrow, 1);
    let used = narrow.extents()[0].addr;
    let others = (0..4).map(|page| BarAddr(page * P)).filter(|addr| *addr != used);
    others.for_each(|addr| {
        assert!(device.driver().read_bar(addr, &mut [0]).is_err(), "{addr} shows something")
    });
}

#[test]
fn a_move_hides_a_buffers_windows_and_who_keeps_one_sees_nothing_else_in_it() {
    let device = windows(32, 4);
    let (moved, other) = (filled(&device, 8, 1), filled(&device, 8, 2));
    let kept = moved.window(pages(0..2)).expect("there is space");
    drop(moved.window(pages(4..6)).expect("there is space"));
    evict_all(&device);
    assert!(!kept.is_current());
    assert!(read(device.driver(), &kept.extents()).is_err(), "it shows nothing");
    assert_eq!(device.stats().window_bytes, 2 * P, "the one that is kept");
    let theirs = other.window(pages(0..2)).expect("the other's space is free");
    assert!(other.window(pages(2..3)).is_err(), "the kept one's is not");
    assert!(read(device.driver(), &kept.extents()).is_err(), "it still shows nothing");
    drop(kept);
    let wide = other.window(pages(0..4)).expect("its space is free now");
    expect_shown(&device, &other, &wide, 2);
    drop(theirs);
}

#[test]
fn after_a_move_the_same_bytes_are_shown_where_they_are_now() {
    let device = windows(32, 4);
    let buffer = filled(&device, 8, 7);
    let before = buffer.window(pages(1..3)).expect("there is space");
    evict_all(&device);
    let after = buffer.window(pages(1..3)).expect("it comes back");
    expect_shown(&device, &buffer, &after, 7);
    assert!(!before.is_current() && before.extents() != after.extents());
}

#[test]
fn a_buffer_that_dies_leaves_nothing_shown() {
    let device = windows(32, 4);
    let buffer = filled(&device, 8, 1);
    let kept = buffer.window(pages(0..2)).expect("there is space");
    drop(buffer);
    device.wait_idle();
    assert!(!kept.is_current() && read(device.driver(), &kept.extents()).is_err());
    assert_eq!(device.stats().window_bytes, 2 * P);
    drop(kept);
    assert_eq!((device.stats().window_bytes, device.stats().vram_used_bytes), (0, 0));
}

#[test]
fn a_window_may_outlive_its_device() {
    let device = windows(32, 4);
    let window = filled(&device, 8, 1).window(pages(0..2)).expect("there is space");
    drop(device);
    assert!(!window.is_current());
}

#[test]
fn space_that_a_peer_may_still_use_is_reused_behind_that_peers_fence_and_other_space_is_not() {
    let device = windows(32, 4);
    let gate = Gate::closed();
    let (first, second) = (filled(&device, 8, 1), filled(&device, 8, 2));
    let theirs = first.window(pages(0..2)).expect("there is space");
    first.wait().expect("the bytes arrive");
    let (place, fence) = (theirs.extents()[0], FenceSet::from(gate.fence().clone()));
    theirs.release_after(&fence);
    let beside = second.window(pages(0..2)).expect("half of it is free");
    assert!(beside.after().is_signaled(), "nobody has used that half");
    let behind = second.window(pages(4..6)).expect("the first makes way");
    assert_eq!(behind.extents(), [place]);
    assert!(!behind.after().is_signaled(), "the peer may still read there");
    let bytes = read(device.driver(), &[place]).expect("it is shown");
    pattern::check(1, 0, &bytes).expect("the peer still sees what it was shown");
    gate.open();
    expect_shown(&device, &second, &behind, 2);
}

#[test]
fn a_window_that_nobody_waited_for_shows_itself_no_later_than_the_next_one_in_its_place() {
    let device = windows(32, 2);
    let gate = Gate::closed();
    let [first, second, third] = [1, 2, 3].map(|seed| filled(&device, 8, seed));
    let theirs = first.window(pages(0..2)).expect("there is space");
    theirs.release_after(&FenceSet::from(gate.fence().clone()));
    drop(second.window(pages(0..2)).expect("behind the peer"));
    let last = third.window(pages(0..2)).expect("behind both");
    assert!(!last.after().is_signaled());
    gate.open();
    expect_shown(&device, &third, &last, 3);
}

#[test]
fn a_buffer_that_moves_behind_a_peers_fence_gives_its_space_back_behind_it() {
    let device = windows(32, 2);
    let gate = Gate::closed();
    let (first, second) = (filled(&device, 8, 1), filled(&device, 8, 2));
    let theirs = first.window(pages(0..2)).expect("there is space");
    theirs.release_after(&FenceSet::from(gate.fence().clone()));
    evict_all(&device);
    assert_eq!(device.stats().window_pending_bytes, 2 * P);
    let behind = second.window(pages(0..2)).expect("it is free behind the fence");
    assert!(!behind.after().is_signaled());
    gate.open();
    expect_shown(&device, &second, &behind, 2);
    drop((behind, second, first));
    device.wait_idle();
    assert_eq!((device.stats().window_pending_bytes, device.stats().window_bytes), (0, 0));
}

/// Notes what it is told, and what the BAR shows at that moment.
struct Follower {
    device: Lab,
    place: BarAddr,
    told: Mutex<Vec<(Range<u64>, Option<u8>)>>,
}

impl Zap for Follower {
    fn zap(&self, bytes: &Range<u64>) {
        let mut byte = [0];
        let shown = self.device.driver().read_bar(self.place, &mut byte).ok().map(|()| byte[0]);
        self.told.lock().expect("no test panics with it").push((bytes.clone(), shown));
    }
}

fn follower(device: &Lab, window: &Window) -> (Arc<Follower>, Weak<dyn Zap>) {
    let place = window.extents()[0].addr;
    let follower = Arc::new(Follower { device: device.clone(), place, told: Mutex::default() });
    let weak: Arc<dyn Zap> = follower.clone();
    (follower, Arc::downgrade(&weak))
}

#[test]
fn a_follower_keeps_no_window_and_is_told_before_its_pages_show_anything_else() {
    let device = windows(32, 2);
    let buffer = device.buffer(Size::bytes(8 * P)).prefer(Place::VRAM).create().expect("it fits");
    buffer.write_at(0, &[7; 8 * P as usize]).expect("writable");
    let window = buffer.window(pages(0..2)).expect("there is space");
    buffer.wait().expect("the bytes arrive");
    let (follower, weak) = follower(&device, &window);
    assert!(window.follow(&weak) && window.follow(&weak));
    drop(window);
    let other = buffer.window(pages(4..5)).expect("followers keep nothing");
    assert_eq!(*follower.told.lock().expect("whole"), [(pages(0..2), Some(7))], "once, and in time");
    let (mine, weak) = self::follower(&device, &other);
    assert!(other.follow(&weak));
    evict_all(&device);
    assert_eq!(*mine.told.lock().expect("whole"), [(pages(4..5), Some(7))], "a move tells, too");
    assert!(!other.follow(&weak), "it is taken away");
}

#[test]
fn a_pinned_window_stays_current_and_no_more_are_pinned_than_the_cpus_reserve() {
    let limits = P2pLimits { cpu_reserve: Size::bytes(4 * P), ..P2pLimits::for_bar(Size::bytes(8 * P)) };
    let limits =
        P2pLimits { hard: Size::bytes(4 * P), soft: Size::bytes(3 * P), reopen: Size::bytes(P), ..limits };
    let device = Device::builder(gpu()).vram(Size::bytes(32 * P)).bar(Bar::Windows(Size::bytes(8 * P)));
    let device = device.p2p_limits(limits).system(Size::mib(16)).build().expect("a small device");
    let buffer = filled(&device, 16, 1);
    let pinned = buffer.pin_window(pages(0..3)).expect("within the reserve");
    let refused = buffer.pin_window(pages(2..4)).expect_err("one page of it is left");
    assert!(
        matches!(refused, Error::ApertureFull { limit: BarLimit::CpuReserve, used_bytes, .. } if used_bytes == 3 * P),
        "{refused}"
    );
    assert_eq!(device.stats().window_cpu_held_bytes, 3 * P);
    let all = device.buffer(Size::bytes(32 * P)).prefer(Place::VRAM).create().expect("it fits");
    assert!(all.place_now().is_err(), "the buffer is pinned");
    expect_shown(&device, &buffer, &pinned, 1);
    drop(pinned);
    all.place_now().expect("nothing is pinned");
    assert_eq!((device.stats().window_cpu_held_bytes, device.stats().vram_pinned_bytes), (0, 0));
}

#[test]
fn ranges_and_buffers_that_no_window_can_show_are_refused_before_anything_happens() {
    let device = windows(32, 4);
    let buffer = filled(&device, 2, 1);
    assert!(matches!(buffer.window(0..2 * P + 1), Err(Error::OutOfBounds { .. })));
    assert!(matches!(buffer.window(P..P), Err(Error::InvalidSize { .. })));
    let backwards = Range { start: 2 * P, end: P };
    assert!(matches!(buffer.window(backwards), Err(Error::InvalidSize { .. })));
    let homeless = device.buffer(Size::bytes(P)).prefer(Place::GTT).create().expect("it fits");
    assert!(matches!(homeless.window(0..1), Err(Error::InvalidPlacement { .. })));
    let wide = filled(&device, 8, 1);
    assert!(matches!(wide.window(pages(0..5)), Err(Error::ApertureFull { limit: BarLimit::Bar, .. })));
    assert_eq!(device.stats().windows_made, 0);
}

/// A software GPU whose windows can be made to fail.
pub struct Stubborn {
    pub gpu: SoftwareGpu,
    /// How many changes it makes before it refuses.
    pub patience: AtomicU64,
    /// Whether the CPU cannot map its BAR.
    pub hides_its_bar: bool,
}

impl Driver for Stubborn {
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        self.gpu.copy_engines(memory)
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn fallback_engine(&self, memory: &DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        self.gpu.fallback_engine(memory)
    }

    fn bar_memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        if self.hides_its_bar { None } else { self.gpu.bar_memory(addr, len_bytes) }
    }

    fn program_windows(&self, change: &WindowChange<'_>) -> Result<Option<Fence>> {
        let patient = |left: u64| left.checked_sub(1);
        if self.patience.fetch_update(Ordering::AcqRel, Ordering::Acquire, patient).is_err() {
            return Err(Error::Driver { action: "program a window", reason: "the table is locked".into() });
        }
        self.gpu.program_windows(change)
    }
}

impl RunsJobs for Stubborn {
    fn gpu(&self) -> &SoftwareGpu {
        &self.gpu
    }
}

fn stubborn(bar_pages: u64) -> Device<Stubborn> {
    let driver = Stubborn { gpu: gpu(), patience: AtomicU64::new(u64::MAX), hides_its_bar: false };
    device_with(driver, 32, Bar::Windows(Size::bytes(bar_pages * P)))
}

#[test]
fn a_window_that_the_driver_refuses_is_not_made_and_its_space_is_not_lost() {
    let device = stubborn(4);
    let buffer = filled(&device, 8, 1);
    let kept = buffer.window(pages(0..1)).expect("the driver is patient");
    drop(buffer.window(pages(1..4)).expect("the driver is patient"));
    device.driver().patience.store(0, Ordering::Release);
    let error = buffer.window(pages(4..6)).expect_err("the driver refuses");
    assert!(error.to_string().contains("the table is locked"), "{error}");
    assert!(buffer.window(pages(0..2)).is_err(), "a part of it is shown, the rest is refused");
    device.driver().patience.store(u64::MAX, Ordering::Release);
    expect_shown(&device, &buffer, &kept, 1);
    let wide = buffer.window(pages(4..7)).expect("all space but the kept page is free");
    expect_shown(&device, &buffer, &wide, 1);
    let stats = device.stats();
    assert_eq!(stats.window_bytes, 4 * P);
    assert_eq!(stats.reasons["windows: the driver refused to program one"], 2);
}

#[test]
fn a_move_goes_on_when_the_driver_does_not_hide_what_has_moved_and_says_so() {
    let device = stubborn(4);
    let buffer = filled(&device, 8, 1);
    drop(buffer.window(pages(0..2)).expect("the driver is patient"));
    device.driver().patience.store(0, Ordering::Release);
    evict_all(&device);
    device.driver().patience.store(u64::MAX, Ordering::Release);
    assert_eq!(device.stats().reasons["windows: the driver refused to hide some"], 1);
    let window = buffer.window(pages(0..4)).expect("its space is free");
    expect_shown(&device, &buffer, &window, 1);
}

#[test]
fn a_driver_that_programs_no_windows_says_so() {
    struct Plain(SoftwareGpu);
    impl Driver for Plain {
        fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
            self.0.copy_engines(memory)
        }
        fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
            self.0.map_vram(layout)
        }
    }
    let device = device_with(Plain(gpu()), 32, Bar::Windows(Size::bytes(4 * P)));
    let buffer = device.buffer(Size::bytes(P)).prefer(Place::VRAM).create().expect("it fits");
    assert!(matches!(buffer.window(0..P), Err(Error::Unsupported { .. })));
}

#[test]
fn many_threads_that_want_more_than_there_is_all_get_their_turn() {
    without_deadlock(|| {
        let device = windows(128, 8);
        let buffers: Vec<_> = (0..4).map(|seed| filled(&device, 16, seed)).collect();
        std::thread::scope(|scope| {
            for (seed, buffer) in buffers.iter().enumerate() {
                let device = &device;
                scope.spawn(move || {
                    for round in 0..2000u64 {
                        // Of ranges that overlap, a user may keep parts of two windows, which are kept whole.
                        let first = (round * 5 + seed as u64) % 7 * 2;
                        match buffer.window(pages(first..first + 2)) {
                            Ok(window) => expect_shown(device, buffer, &window, seed as u64),
                            Err(error) => panic!("four times two pages fit into eight: {error}"),
                        }
                    }
                });
            }
        });
        assert!(device.stats().windows_reclaimed > 100);
    });
}
