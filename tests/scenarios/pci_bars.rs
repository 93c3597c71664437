//! A PCI BAR as VRAM. Here its BARs are files; `tests/kernel/pci.rs` has real ones.

use devpagemap::{Bar, Caching, Device, Error, P2pMemory, Place, RegionKind, Size, SoftwareGpu};

use crate::setup::pci_tree::{ADDRESS, BAR_START, PciTree, address};
use crate::setup::*;

fn refusal(tree: &PciTree, index: u8, caching: Caching) -> String {
    tree.open(index, caching).expect_err("it cannot be used").to_string()
}

fn device_in(tree: &PciTree) -> Lab {
    let gpu = SoftwareGpu::builder().rings(4).vram_in(tree.bar()).build().expect("threads for the rings");
    Device::builder(gpu)
        .system(Size::mib(256))
        .gtt(Size::mib(128))
        .build()
        .expect("a device of the BAR's size")
}

#[test]
fn a_bar_that_cannot_be_used_is_refused_with_the_cause() {
    let tree = PciTree::new(1);
    for (index, cause) in [
        (0, "it is not made of whole pages"),
        (1, "there is no such BAR"),
        (3, "it is the upper half of the one before"),
        (4, "it is of I/O ports"),
        (5, "nobody has given it a place on the bus"),
        (6, "BARs 0 to 5"),
    ] {
        let refused = refusal(&tree, index, Caching::Uncached);
        assert!(
            refused.contains(cause) && refused.contains(&format!("BAR {index} of {ADDRESS}")),
            "{refused}"
        );
    }
    assert!(refusal(&tree, 2, Caching::Cached).contains("in step"));
    let nowhere = devpagemap::PciBar::open_in(
        tree.root(),
        "0000:77:00.0".parse().expect("an address"),
        0,
        Caching::Uncached,
    );
    assert!(nowhere.expect_err("nothing is there").to_string().contains("no such PCI device"));
    tree.write("resource", "a table it is not\n");
    assert!(refusal(&tree, 2, Caching::Uncached).contains("no table of resources"));
}

#[test]
fn without_a_combined_way_the_reason_is_told() {
    let tree = PciTree::new(1);
    tree.remove("resource2_wc");
    assert!(refusal(&tree, 2, Caching::WriteCombined).contains("neither PAT nor MTRRs"));
    let plain = tree.read("resource").replace("14220c", "140204");
    tree.write("resource", &plain);
    assert!(refusal(&tree, 2, Caching::WriteCombined).contains("not prefetchable"));
    let bar = tree.open(2, Caching::Uncached).expect("the plain way is there");
    assert!(!bar.is_prefetchable());
}

#[test]
fn a_bar_whose_driver_works_with_it_is_refused_and_one_that_is_kept_free_is_not() {
    let tree = PciTree::new(1);
    tree.bind("nvme");
    assert!(refusal(&tree, 2, Caching::Uncached).contains("the driver nvme works with it"));
    tree.bind("vfio-pci");
    tree.open(2, Caching::Uncached).expect("that driver only keeps others off");
}

#[test]
fn a_bar_is_used_by_one_at_a_time_whichever_way() {
    let tree = PciTree::new(1);
    let first = tree.bar();
    assert!(refusal(&tree, 2, Caching::WriteCombined).contains("another process has it"));
    assert!(refusal(&tree, 2, Caching::Uncached).contains("another process has it"));
    drop(first);
    tree.open(2, Caching::Uncached).expect("nobody has it any more");
}

#[test]
fn a_device_answers_on_the_bus_for_as_long_as_its_bar_is_used() {
    let tree = PciTree::new(1);
    let bar = tree.bar();
    assert_eq!(tree.read("enable"), "1");
    drop(bar);
    assert_eq!(tree.read("enable"), "0");
    // What somebody else has enabled stays so.
    tree.write("enable", "2");
    drop(tree.bar());
    assert_eq!(tree.read("enable"), "2");
}

#[test]
fn a_file_that_is_shorter_than_its_bar_is_refused() {
    let tree = PciTree::new(1);
    let short = tree.read("resource").replace("0x00000040000fffff", "0x00000040001fffff");
    tree.write("resource", &short);
    assert!(refusal(&tree, 2, Caching::Uncached).contains("its file has 1048576 bytes"));
}

#[test]
fn vram_is_as_large_as_the_bar_unless_less_is_asked_for() {
    let tree = PciTree::new(8);
    let bar = tree.bar();
    assert_eq!((bar.size(), bar.bus_start()), (Size::mib(8), Some(BAR_START)));
    drop(bar);
    let layout = device_in(&tree).layout();
    assert_eq!((layout.vram_bytes, layout.visible_bytes), (8 << 20, 8 << 20));
    let build = |vram| {
        let gpu = SoftwareGpu::builder().vram_in(tree.bar()).build().expect("threads");
        Device::builder(gpu).vram(vram).system(Size::mib(16)).build()
    };
    assert_eq!(build(Size::mib(4)).expect("a part of it").layout().visible_bytes, 4 << 20);
    let refused = build(Size::mib(16)).expect_err("there is less");
    assert!(matches!(refused, Error::InvalidSize { what: "VRAM", bytes: 16_777_216, .. }), "{refused}");
}

#[test]
fn buffers_in_a_bar_survive_over_commit() {
    for caching in [Caching::WriteCombined, Caching::Uncached] {
        let tree = PciTree::new(8);
        let bar = tree.open(2, caching).expect("a BAR that can be used");
        let gpu = SoftwareGpu::builder().vram_in(bar).build().expect("threads for the rings");
        let device = Device::builder(gpu).system(Size::mib(64)).gtt(Size::mib(64)).build().expect("a device");
        let buffers: Vec<_> = (0..6).map(|seed| filled(&device, 3, seed)).collect();
        for round in 0..3 {
            for (seed, buffer) in (0..).zip(&buffers) {
                finished(verify(&device, buffer, seed + round * 100));
                finished(fill(&device, buffer, seed + (round + 1) * 100));
            }
        }
        assert!(device.stats().evictions > 12, "{:?}", device.stats().evictions);
        for (seed, buffer) in (300..).zip(&buffers) {
            expect_bytes(buffer, seed);
        }
        assert_eq!(device.stats().cpu_waits_in_validate, 0);
    }
}

#[test]
fn what_is_in_vram_is_in_the_bar() {
    let tree = PciTree::new(4);
    let device = device_in(&tree);
    let buffer = filled(&device, 1, 7);
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    device.wait_idle();
    let start = extents(&device, &buffer)[0].addr.offset();
    let file = std::fs::read(tree.root().join("sys/bus/pci/devices").join(ADDRESS).join("resource2_wc"));
    let bytes = file.expect("its file");
    assert_eq!(pattern::check(7, 0, &bytes[start as usize..][..1 << 20]), Ok(()));
}

#[test]
fn a_bar_of_windows_shows_hidden_parts_of_a_real_bar() {
    let tree = PciTree::new(8);
    let gpu = SoftwareGpu::builder().rings(4).vram_in(tree.bar()).build().expect("threads");
    let device = Device::builder(gpu).bar(Bar::Windows(Size::mib(2))).system(Size::mib(64)).build();
    let device = device.expect("a device whose aperture is smaller than its VRAM");
    let buffers: Vec<_> = (0..2).map(|seed| filled(&device, 3, seed)).collect();
    for (seed, buffer) in (0..).zip(&buffers) {
        let map = buffer.map().expect("windows can be mapped");
        let mut bytes = vec![0; 3 << 20];
        // SAFETY: the map is alive and 3 MiB long, and nobody writes the buffer.
        unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        assert_eq!(pattern::check(seed, 0, &bytes), Ok(()));
        assert_eq!((buffer.region(), map.is_pinned()), (Some(RegionKind::Vram), false));
    }
    assert!(device.stats().windows_reclaimed > 0, "two maps of 3 MiB took turns in 2 MiB");
}

#[test]
fn peer_memory_is_refused_where_there_is_none() {
    let tree = PciTree::new(1);
    let refused = P2pMemory::open_in(tree.root(), address()).expect_err("it gives out none").to_string();
    assert!(refused.contains("peer memory of 0000:00:04.0") && refused.contains("PCI_P2PDMA"), "{refused}");
    tree.write("p2pmem/size", "8388608\n");
    tree.write("p2pmem/available", "4096\n");
    tree.write("p2pmem/published", "1\n");
    let memory = P2pMemory::open_in(tree.root(), address()).expect("it gives out some");
    assert_eq!(
        (memory.size(), memory.available(), memory.is_published()),
        (Size::mib(8), Size::kib(4), true)
    );
    let refused = memory.allocate(Size::bytes(5000)).expect_err("no whole pages").to_string();
    assert!(refused.contains("5000"), "{refused}");
}

#[test]
fn a_pinned_map_of_a_bar_keeps_its_buffer_there() {
    let tree = PciTree::new(8);
    let device = device_in(&tree);
    let buffer = filled(&device, 4, 3);
    let map = buffer.vmap().expect("it is visible");
    let other = vram_buffer(&device, 8).place_now();
    assert!(matches!(other, Err(Error::Exhausted { .. })), "{other:?}");
    assert_eq!((buffer.region(), map.is_pinned()), (Some(RegionKind::Vram), true));
    drop(map);
    buffer_at(&device, Place::VRAM, 8).place_now().expect("nobody keeps it any more");
}
