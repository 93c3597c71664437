//! CPU maps of buffers in memory that no userfaultfd can watch: a PCI BAR, or here a file that stands for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use devpagemap::{AfterLoss, Caching, CpuFaults, Device, Place, RegionKind, Size, SoftwareGpu};

use crate::child::{expect_killed, in_a_child};
use crate::refusing::{self, Call, refusing};
use crate::setup::pci_tree::PciTree;
use crate::setup::*;

const SIGBUS: i32 = 7;
const VRAM: Option<RegionKind> = Some(RegionKind::Vram);

fn device_in(tree: &PciTree) -> Lab {
    let gpu = SoftwareGpu::builder().rings(4).vram_in(tree.bar()).build().expect("threads for the rings");
    let device = Device::builder(gpu).system(Size::mib(64)).gtt(Size::mib(64));
    device.cpu_faults(CpuFaults::Userfaultfd).build().expect("a device of the BAR's size")
}

/// Reads all of a map through its address.
fn touch_all(map: &devpagemap::CpuMap) -> Vec<u8> {
    let mut bytes = vec![0xa5; map.len_bytes() as usize];
    // SAFETY: the map is alive, `bytes` is as long, and no test writes meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    bytes
}

#[test]
fn a_map_follows_its_buffer_out_of_a_bar_and_back() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 4, 1);
    let map = buffer.map().expect("a map that follows");
    assert!(!map.is_pinned() && device.stats().reasons.is_empty(), "{:?}", device.stats().reasons);
    for round in 0..5 {
        assert_eq!((buffer.region(), pattern::check(1, 0, &touch_all(&map))), (VRAM, Ok(())));
        vram_buffer(&device, 8).place_now().expect("it can go");
        assert_ne!(buffer.region(), VRAM, "round {round}");
        assert_eq!(pattern::check(1, 0, &touch_all(&map)), Ok(()));
        finished(verify(&device, &buffer, 1));
    }
    assert!(device.stats().cpu_zaps >= 10, "{}", device.stats().cpu_zaps);
}

#[test]
fn a_map_that_cannot_be_parked_is_lost_and_its_buffer_is_not() {
    loses_the_map(
        "pci_maps::a_map_that_cannot_be_parked_is_lost_and_its_buffer_is_not",
        Call::system("mremap", 25),
    );
}

#[test]
fn a_map_that_cannot_be_watched_is_lost_and_its_buffer_is_not() {
    loses_the_map(
        "pci_maps::a_map_that_cannot_be_watched_is_lost_and_its_buffer_is_not",
        Call::ioctl("UFFDIO_REGISTER", 0xc020_aa00),
    );
}

/// What a child says before the touch that ends it.
const ALL_IS_WELL: &str = "only the map is lost";

/// The kernel refuses that call to whoever evicts a mapped buffer from a BAR.
fn loses_the_map(test: &str, call: Call) {
    if let Err(why) = refusing::look() {
        eprintln!("\n*** skipped: calls cannot be refused here: {why} ***");
        return;
    }
    let child = in_a_child(test, || {
        let tree = PciTree::new(8);
        let device = device_in(&tree);
        let buffer = filled(&device, 4, 1);
        let map = buffer.map().expect("a map that follows");
        assert_eq!(pattern::check(1, 0, &touch_all(&map)), Ok(()));
        refusing(call, || vram_buffer(&device, 8).place_now()).expect("it can go");
        assert_ne!(buffer.region(), VRAM);
        finished(verify(&device, &buffer, 1));
        let another = buffer.map().expect("the next one is as good as ever");
        assert_eq!(pattern::check(1, 0, &touch_all(&another)), Ok(()));
        eprintln!("{ALL_IS_WELL}");
        // SAFETY: the map is alive. Nothing is there any more, which is what the test is about.
        unsafe { map.as_ptr().read_volatile() };
        panic!("bytes of somebody else may have been read");
    });
    let Some(child) = child else { return };
    expect_killed(&child, SIGBUS);
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains(ALL_IS_WELL), "it was killed too early: {said}");
}

#[test]
fn what_is_written_through_a_map_while_its_buffer_leaves_a_bar_is_not_lost() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 4, 0);
    let map = buffer.map().expect("a map that follows");
    let words = map.len_bytes() / 8;
    let address = map.as_ptr().addr();
    let is_over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let writers = [0, 1].map(|half| {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut round = 0u64;
                while round == 0 || !is_over.load(Ordering::Acquire) {
                    round += 1;
                    for index in (half..words).step_by(2 * 512) {
                        let word = std::ptr::with_exposed_provenance_mut::<u64>(address)
                            .wrapping_add(index as usize);
                        // SAFETY: the map outlives the scope, the word lies inside, and this thread alone writes it.
                        unsafe { word.write_volatile(round << 32 | index) };
                    }
                }
                round
            })
        });
        map.as_ptr().expose_provenance();
        for _ in 0..40 {
            vram_buffer(&device, 8).place_now().expect("it can go");
            device.wait_idle();
            buffer.place_now().expect("it comes back");
            device.wait_idle();
        }
        is_over.store(true, Ordering::Release);
        writers.map(|writer| writer.join().expect("no word is refused"))
    });
    let bytes = touch_all(&map);
    for (half, round) in (0..).zip(rounds) {
        for index in (half..words).step_by(2 * 512) {
            let at = index as usize * 8;
            let word = u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            assert_eq!(word, round << 32 | index, "word {index}");
        }
    }
}

#[test]
fn a_touch_of_bytes_on_their_way_out_of_a_bar_sleeps_until_they_have_arrived() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 4, 5);
    let map = buffer.map().expect("a map that follows");
    let gate = Gate::closed();
    // The buffer cannot leave before this job has ended.
    hold(&device, &buffer, &gate);
    vram_buffer(&device, 8).place_now().expect("nothing waits");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| pattern::check(5, 0, &touch_all(&map)));
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!toucher.is_finished(), "its bytes are on their way");
        gate.open();
        assert_eq!(toucher.join().expect("it wakes up"), Ok(()));
    });
}

#[test]
fn a_map_of_a_lost_device_shows_its_loss() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 1, 5);
    let map = buffer.mapping().after_loss(AfterLoss::Zeros).map().expect("a map that follows");
    assert_eq!(pattern::check(5, 0, &touch_all(&map)), Ok(()));
    device.declare_lost();
    assert!(touch_all(&map).iter().all(|byte| *byte == 0));
    // SAFETY: the map is alive; what is written goes nowhere.
    unsafe { map.as_ptr().write(7) };
    drop((map, buffer, device));
    assert!(
        std::fs::read(tree.root().join("sys/bus/pci/devices/0000:00:04.0/resource2_wc"))
            .is_ok_and(|bytes| bytes[0] != 7)
    );
}

#[test]
fn a_forgotten_map_of_a_bar_comes_back_when_touched() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 1, 9);
    device.wait_idle();
    let map = buffer.mapping().when_touched().map().expect("a map that follows");
    for _ in 0..3 {
        assert_eq!(pattern::check(9, 0, &touch_all(&map)), Ok(()));
        map.forget();
        map.populate().expect("it is in VRAM");
        map.forget();
    }
    assert_eq!(buffer.region(), VRAM);
}

#[test]
fn only_a_buffer_that_takes_uncached_memory_is_mapped_in_an_uncached_bar() {
    let tree = PciTree::new(8);
    let bar = tree.open(2, Caching::Uncached).expect("a BAR that can be used");
    let gpu = SoftwareGpu::builder().vram_in(bar).build().expect("threads for the rings");
    let device = Device::builder(gpu).system(Size::mib(64)).build().expect("a device of the BAR's size");
    let builder = || device.buffer(Size::mib(1)).prefer(Place::VRAM);
    for (buffer, stays) in
        [(builder().uncached(), true), (builder().write_combined(), false), (builder(), false)]
    {
        let buffer = buffer.create().expect("it fits");
        finished(fill(&device, &buffer, 4));
        let map = buffer.map().expect("somewhere the CPU reaches it");
        assert_eq!((buffer.region() == VRAM, pattern::check(4, 0, &touch_all(&map))), (stays, Ok(())));
    }
}
