//! NVMe drives on a real PCI bus: the controller memory of one as peer memory, and which of them reach that, or the BAR of another device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use devpagemap::pagemap::{Registry, Route};
use devpagemap::topology::Machine;
use devpagemap::{Caching, Device, Drive, Error, Importer, P2pLimits, P2pMemory, Size, SoftwareGpu};

use crate::jobs::verify;
use crate::pattern;
use crate::pci::{address_of, bar, expect_bytes, filled};
use crate::setup::{Thing, guest, need, say_loudly};

const MIB: u64 = 1 << 20;
/// `EREMOTEIO`: the kernel knows of no way between the two.
const NO_WAY: i32 = 121;

/// The block devices of NVMe drives.
pub(crate) fn drives() -> Vec<PathBuf> {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut paths: Vec<_> =
        names.filter(|name| name.starts_with("nvme")).map(|name| PathBuf::from("/dev").join(name)).collect();
    paths.sort();
    paths
}

/// All that lend memory to peers.
pub(crate) fn peer_memories() -> Vec<P2pMemory> {
    let functions = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let addresses = functions.map(|entry| address_of(&entry.path()));
    addresses.filter_map(|address| P2pMemory::open(address).ok()).collect()
}

/// Fills a part of a drive by way of the page cache, as anybody would.
fn write_drive(path: &PathBuf, at: u64, len: u64, seed: u64) {
    let mut bytes = vec![0; len as usize];
    pattern::write(seed, 0, &mut bytes);
    let file = File::options().write(true).open(path).expect("a drive that nobody has mounted");
    file.write_all_at(&bytes, at).expect("it has so many bytes");
    file.sync_all().expect("it takes them");
}

#[track_caller]
fn expect_on_drive(path: &PathBuf, at: u64, len: u64, seed: u64) {
    let mut bytes = vec![0; len as usize];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at)).expect("it has so many bytes");
    assert_eq!(pattern::check(seed, 0, &bytes), Ok(()), "{}", path.display());
}

/// Whether the kernel lets a drive at peer memory. The bytes are the judge: who says that they have arrived has to be right.
fn kernel_allows(memory: &P2pMemory, drive: &Drive, path: &PathBuf, seed: u64) -> bool {
    let len = 256 << 10;
    write_drive(path, 0, len, seed);
    let pages = memory.allocate(Size::bytes(len)).expect("some of it is left");
    pages.write(0, &vec![0; len as usize]).expect("it is as long");
    match drive.read_direct(&pages, 0..len, 0) {
        Ok(()) => {}
        Err(Error::Io { errno: NO_WAY, .. }) => return false,
        Err(error) => panic!("{} into {memory:?}: {error}", path.display()),
    }
    let mut bytes = vec![0; len as usize];
    pages.read(0, &mut bytes).expect("it is as long");
    assert_eq!(pattern::check(seed, 0, &bytes), Ok(()), "{} into {memory:?}", path.display());
    pattern::write(seed + 1, 0, &mut bytes);
    pages.write(0, &bytes).expect("it is as long");
    drive.write_direct(&pages, 0..len, MIB).expect("a way leads both ways");
    expect_on_drive(path, MIB, len, seed + 1);
    true
}

#[test]
fn the_registry_decides_of_each_drive_and_controller_memory_what_the_kernel_does() {
    if !need(&[Thing::PeerMemory, Thing::Nvme]) {
        return;
    }
    let registry = Registry::new(Machine::from_sysfs("/".as_ref()).expect("a readable sysfs"));
    let (mut pairs, mut allowed) = (0, 0);
    for memory in peer_memories() {
        let pagemap = memory.join(&registry).expect("room in the registry");
        for (seed, path) in (1000..).step_by(10).zip(drives()) {
            let drive = Drive::open(&path).expect("a drive that nobody uses");
            let importer = registry.join(drive.profile()).expect("room in the registry");
            let decision = registry.decision(pagemap.id(), importer.id());
            let kernel = kernel_allows(&memory, &drive, &path, seed);
            let why = registry.explain(pagemap.id(), importer.id());
            // What a machine does not let us read stays unknown, and is staged. A guest hides nothing.
            let is_unknown = decision.p2p.is_none() && guest().is_none();
            assert!(
                is_unknown || decision.p2p == Some(kernel),
                "{} and {}: {why}",
                path.display(),
                memory.address()
            );
            assert_eq!(decision.route.is_p2p(), kernel && !is_unknown);
            (pairs, allowed) = (pairs + 1, allowed + u32::from(kernel));
        }
    }
    match guest() {
        // The drive itself, another below the same switch, one below another root port.
        Some(guest) if guest.processor == "EPYC" => assert_eq!((pairs, allowed), (3, 3)),
        Some(_) => assert_eq!((pairs, allowed), (3, 2)),
        None => say_loudly(&format!("{allowed} of {pairs} pairs go straight on this machine")),
    }
}

#[test]
fn a_drive_goes_straight_to_vram_in_controller_memory_where_that_works_and_is_staged_where_not() {
    if !need(&[Thing::PeerMemory, Thing::Nvme]) {
        return;
    }
    let registry = Registry::new(Machine::from_sysfs("/".as_ref()).expect("a readable sysfs"));
    let memory = peer_memories().into_iter().next().expect("it was asked for");
    let vram = memory.allocate(Size::mib(16)).expect("nobody else uses it");
    let gpu = SoftwareGpu::builder().vram_in(vram).build().expect("threads for the rings");
    let all = Size::mib(16);
    let device = Device::builder(gpu)
        .system(Size::mib(64))
        .at(memory.address())
        .registry(&registry)
        .p2p_limits(P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) })
        .build()
        .expect("a device in controller memory");
    for (seed, path) in (2000..).step_by(10).zip(drives()) {
        let drive: Arc<Drive> = Drive::open(&path).expect("a drive that nobody uses");
        let peer = device.join(drive.clone()).expect("room in the registry");
        let buffer = filled(&device, 4, seed);
        let decision = buffer.explain(&peer).expect("it has joined").decision;
        let map = buffer.attach(&peer).expect("nothing moves").map(0..4 * MIB).expect("some way");
        let out = drive.write_from(&map, 0..4 * MIB, 0).expect("a transfer");
        expect_on_drive(&path, 0, 4 * MIB, seed);
        write_drive(&path, 4 * MIB, 4 * MIB, seed + 1);
        let back = drive.read_into(&map, 0..4 * MIB, 4 * MIB).expect("a transfer");
        verify(&device, &buffer, seed + 1).expect("it fits").wait().expect("every byte is right");
        expect_bytes(&buffer, seed + 1);
        for transfer in [out, back] {
            assert_eq!(
                (transfer.route.is_p2p(), transfer.bounced_bytes),
                (decision.route.is_p2p(), 0),
                "{decision}"
            );
        }
        if out.route == Route::Staging {
            let reasons = device.stats().reasons;
            assert!(reasons.keys().any(|reason| reason.contains("drive: staged, as decided")), "{reasons:?}");
        }
    }
    assert!(memory.available().as_bytes() < memory.size().as_bytes());
    drop(device);
}

#[test]
fn controller_memory_is_given_back_and_no_more_is_given_out_than_there_is() {
    if !need(&[Thing::PeerMemory]) {
        return;
    }
    let memory = peer_memories().into_iter().next().expect("it was asked for");
    let before = memory.available();
    let pages = memory.allocate(Size::mib(1)).expect("some is left");
    assert_eq!(memory.available().as_bytes(), before.as_bytes() - MIB);
    drop(pages);
    assert_eq!(memory.available(), before);
    let too_much = memory.allocate(Size::bytes(memory.size().as_bytes() * 2)).expect_err("there is less");
    assert!(matches!(too_much, Error::NotUsable { .. }), "{too_much}");
}

#[test]
fn a_drive_bounces_what_is_in_a_bar_without_pages_and_says_so_once() {
    if !need(&[Thing::Ivshmem, Thing::Nvme]) {
        return;
    }
    let path = drives().into_iter().next().expect("it was asked for");
    let drive = Drive::open(&path).expect("a drive that nobody uses");
    let gpu = SoftwareGpu::builder().vram_in(bar(Caching::Uncached)).build().expect("threads for the rings");
    // Nobody has said where the two are, so the drive's word counts: it reaches everything.
    let device = Device::builder(gpu).vram(Size::mib(32)).system(Size::mib(64)).build().expect("a device");
    let peer = device.join(drive.clone()).expect("an importer that can be");
    let buffer = filled(&device, 4, 77);
    let attachment = buffer.attach(&peer).expect("nothing moves");
    let map = attachment.map(0..4 * MIB).expect("in the BAR");
    let first = drive.write_from(&map, 0..4 * MIB, 0).expect("by way of pages");
    assert_eq!((first.route, first.bounced_bytes), (Route::Declared, 4 * MIB));
    expect_on_drive(&path, 0, 4 * MIB, 77);
    drop(map);
    // The registry has been told: the next map is not in the BAR.
    let map = attachment.map(0..4 * MIB).expect("some way");
    write_drive(&path, 0, 4 * MIB, 78);
    let second = drive.read_into(&map, 0..4 * MIB, 0).expect("a transfer");
    assert!(!second.route.is_p2p() && second.bounced_bytes == 0, "{second:?}");
    expect_bytes(&buffer, 78);
    let reasons = device.stats().reasons;
    let bounced: u64 =
        reasons.iter().filter(|(reason, _)| reason.contains("EFAULT")).map(|(_, count)| count).sum();
    assert!(bounced > 0, "{reasons:?}");
}
