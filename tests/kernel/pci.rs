//! Memory on a real PCI bus: the BAR of an ivshmem device as VRAM, the controller memory of an NVMe drive as peer memory, drives
//! that reach it or do not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use devpagemap::migrate::{Addr, VramAddr};
use devpagemap::pagemap::{Registry, Route};
use devpagemap::topology::{Machine, PciAddress};
use devpagemap::{
    Bar, Buffer, Caching, Device, Drive, Error, Importer, MemoryMap, P2pLimits, P2pMemory, PciBar, Place,
    RegionKind, Size, SoftwareGpu,
};
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

use crate::jobs::{fill, verify};
use crate::pattern;
use crate::setup::{Thing, guest, ivshmem, need, say_loudly};

type Lab = Device<SoftwareGpu>;

const MIB: u64 = 1 << 20;
/// `EREMOTEIO`: the kernel knows of no way between the two.
const NO_WAY: i32 = 121;
/// Which BAR of ivshmem is memory.
const MEMORY_BAR: u8 = 2;

fn address_of(function: &std::path::Path) -> PciAddress {
    let name = function.file_name().and_then(|name| name.to_str()).expect("a name of sysfs");
    name.parse().expect("functions go by their addresses")
}

fn ivshmem_address() -> PciAddress {
    address_of(&ivshmem().expect("it was asked for"))
}

fn bar(caching: Caching) -> PciBar {
    PciBar::open(ivshmem_address(), MEMORY_BAR, caching).expect("a BAR that nobody uses")
}

/// The ways in which this machine maps the BAR.
fn ways() -> Vec<Caching> {
    match Thing::IvshmemWriteCombined.look() {
        Ok(()) => vec![Caching::WriteCombined, Caching::Uncached],
        Err(_) => vec![Caching::Uncached],
    }
}

/// A device whose VRAM is the first 32 MiB of the BAR.
fn device_in_bar(caching: Caching) -> Lab {
    let gpu = SoftwareGpu::builder().vram_in(bar(caching)).build().expect("threads for the rings");
    let device = Device::builder(gpu).vram(Size::mib(32)).system(Size::mib(96)).gtt(Size::mib(96));
    device.build().expect("a device in a part of the BAR")
}

fn filled(device: &Lab, mib: u64, seed: u64) -> Buffer {
    let buffer = device.buffer(Size::mib(mib)).prefer(Place::VRAM).uncached().create();
    let buffer = buffer.expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

#[track_caller]
fn expect_bytes(buffer: &Buffer, seed: u64) {
    let mut bytes = vec![0xa5; buffer.size().as_bytes() as usize];
    buffer.read_at(0, &mut bytes).expect("a readable buffer");
    assert_eq!(pattern::check(seed, 0, &bytes), Ok(()));
}

#[track_caller]
fn expect_in_map(map: &devpagemap::CpuMap, seed: u64) {
    let mut bytes = vec![0xa5; map.len_bytes() as usize];
    // SAFETY: the map is alive and as long as `bytes`, and nobody writes the buffer.
    unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    assert_eq!(pattern::check(seed, 0, &bytes), Ok(()));
}

#[test]
fn buffers_in_a_real_bar_survive_over_commit() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    for caching in ways() {
        let device = device_in_bar(caching);
        let buffers: Vec<_> = (0..10).map(|seed| filled(&device, 8, seed)).collect();
        for round in 0..2 {
            for (seed, buffer) in (0..).zip(&buffers) {
                verify(&device, buffer, seed + round * 100)
                    .expect("room")
                    .wait()
                    .expect("every byte is right");
                fill(&device, buffer, seed + (round + 1) * 100).expect("room for it");
            }
        }
        for (seed, buffer) in (200..).zip(&buffers) {
            expect_bytes(buffer, seed);
        }
        let stats = device.stats();
        assert!(stats.evictions >= 20 && stats.cpu_waits_in_validate == 0, "{stats:?}");
        assert_eq!(device.stats().reasons.keys().find(|reason| reason.contains("redone")), None);
    }
}

#[test]
fn what_combined_writes_have_left_in_a_bar_is_there_for_uncached_reads() {
    if !need(&[Thing::Ivshmem, Thing::IvshmemWriteCombined]) {
        return;
    }
    let device = device_in_bar(Caching::WriteCombined);
    let buffer = filled(&device, 8, 42);
    let mut start = 0;
    let job = device.submit().reads(&buffer).run(|_, job| {
        let extents = job.extents(&buffer);
        assert_eq!(extents.as_slice().len(), 1, "an empty VRAM gives one piece");
        start = extents.as_slice()[0].addr.offset();
        Ok(devpagemap::Fence::signaled())
    });
    job.expect("it has its place");
    device.wait_idle();
    drop((buffer, device));
    let bar = bar(Caching::Uncached);
    let bytes = bar.resolve(Addr::Vram(VramAddr(start)), 8 * MIB).expect("within the BAR");
    let mut copy = vec![0; 8 << 20];
    // SAFETY: the BAR is mapped as long as `bar` lives, and nobody writes it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.as_mut_ptr(), copy.len()) };
    assert_eq!(pattern::check(42, 0, &copy), Ok(()));
}

#[test]
fn cpu_maps_follow_their_buffers_out_of_a_real_bar_and_back() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    for caching in ways() {
        let device = device_in_bar(caching);
        let buffer = filled(&device, 8, 5);
        let map = buffer.map().expect("a map");
        assert!(!map.is_pinned(), "{:?}", device.stats().reasons);
        for _ in 0..3 {
            assert_eq!(buffer.region(), Some(RegionKind::Vram));
            expect_in_map(&map, 5);
            let other = device.buffer(Size::mib(32)).prefer(Place::VRAM).create().expect("as large as VRAM");
            other.place_now().expect("the buffer can go");
            assert_ne!(buffer.region(), Some(RegionKind::Vram));
            expect_in_map(&map, 5);
            // SAFETY: the map is alive, and nobody else touches the buffer.
            unsafe { map.as_ptr().write(map.as_ptr().read()) };
            verify(&device, &buffer, 5).expect("room for it").wait().expect("every byte is right");
        }
    }
}

#[test]
fn windows_over_a_real_bar_show_all_of_it_in_turn() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    let gpu = SoftwareGpu::builder().vram_in(bar(Caching::Uncached)).build().expect("threads for the rings");
    let device = Device::builder(gpu).vram(Size::mib(32)).bar(Bar::Windows(Size::mib(4)));
    let device = device.system(Size::mib(64)).build().expect("an aperture smaller than VRAM");
    let buffers: Vec<_> = (0..4).map(|seed| filled(&device, 6, seed)).collect();
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_in_map(&buffer.map().expect("windows can be mapped"), seed);
        assert_eq!(buffer.region(), Some(RegionKind::Vram));
    }
    assert!(device.stats().windows_reclaimed > 0);
}

#[test]
fn the_main_replay_runs_on_a_real_bar_without_a_wrong_byte() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    let Ok(command) = std::env::var("DEVPAGEMAP_COMMAND") else {
        return say_loudly("skipped: DEVPAGEMAP_COMMAND does not name the command");
    };
    for caching in ways() {
        let way = if caching == Caching::Uncached { "uc" } else { "wc" };
        let device = format!("pci:{}/{way}", ivshmem_address());
        let output = Command::new(&command)
            .args([
                "replay",
                "builtin:frames",
                "--scale",
                "1/8",
                "--vram",
                "48MiB",
                "--json",
                "-",
                "--device",
            ])
            .arg(&device)
            .output()
            .expect("the command runs");
        let json = String::from_utf8_lossy(&output.stdout).replace(char::is_whitespace, "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{device}: {:?}: {said}", output.status);
        for expected in ["\"mismatches\":0", "\"vram_bytes\":50331648", "\"batches_failed\":[]"] {
            assert!(json.contains(expected), "{device}: no {expected}: {said}");
        }
        assert!(
            !json.contains("\"evictions\":0,") && !json.contains("\"bytes_checked\":0"),
            "{device}: {said}"
        );
    }
}

#[test]
fn a_wrong_address_or_bar_is_bad_usage_of_the_command_and_says_why() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    let refusal = |address: PciAddress, index| match PciBar::open(address, index, Caching::Uncached) {
        Ok(bar) => panic!("{bar:?} can be used"),
        Err(error) => error.to_string(),
    };
    let ivshmem = ivshmem_address();
    let nowhere = "ffff:fe:1f.7".parse().expect("an address");
    assert!(refusal(nowhere, 0).contains("no such PCI device"));
    assert!(refusal(ivshmem, 0).contains("not made of whole pages"));
    assert!(refusal(ivshmem, 5).contains("no such BAR"));
    assert!(refusal(ivshmem, MEMORY_BAR + 1).contains("upper half"));
    if need(&[Thing::Nvme]) {
        let drive = Drive::open_read_only(drives().first().expect("it was asked for")).expect("a drive");
        assert!(
            refusal(drive.address().expect("it is on the bus"), 0).contains("the driver nvme works with it")
        );
    }
    let Ok(command) = std::env::var("DEVPAGEMAP_COMMAND") else { return };
    for device in [format!("pci:{nowhere}"), format!("pci:{ivshmem}/bar0"), "pci:four".to_string()] {
        let output = Command::new(&command).args(["replay", "builtin:frames", "--device", &device]).output();
        let output = output.expect("the command runs");
        assert_eq!(output.status.code(), Some(2), "{device}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--device"), "{output:?}");
    }
}

#[test]
fn who_is_not_root_is_told_which_file_he_has_no_rights_to() {
    if !need(&[Thing::Ivshmem]) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return say_loudly("skipped: only root can become nobody");
    }
    let drive = drives().into_iter().next();
    let memory = peer_memories().into_iter().next();
    // Only this thread becomes nobody.
    let nobody = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
        set_thread_res_gid(gid, gid, gid).expect("root can become anybody");
        set_thread_res_uid(uid, uid, uid).expect("root can become anybody");
        let bar = PciBar::open(ivshmem_address(), MEMORY_BAR, Caching::Uncached).expect_err("only root may");
        assert!(matches!(&bar, Error::NoRights { path, .. } if path.ends_with("resource2")), "{bar}");
        if let Some(drive) = drive {
            let refused = Drive::open(&drive).expect_err("only root may");
            assert!(matches!(&refused, Error::NoRights { path, .. } if path.contains("nvme")), "{refused}");
        }
        if let Some(memory) = memory {
            let refused = memory.allocate(Size::kib(4)).expect_err("only root may");
            assert!(
                matches!(&refused, Error::NoRights { path, .. } if path.ends_with("allocate")),
                "{refused}"
            );
        }
    });
    nobody.join().expect("it was refused");
}

/// The block devices of NVMe drives.
fn drives() -> Vec<PathBuf> {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut paths: Vec<_> =
        names.filter(|name| name.starts_with("nvme")).map(|name| PathBuf::from("/dev").join(name)).collect();
    paths.sort();
    paths
}

/// All that lend memory to peers.
fn peer_memories() -> Vec<P2pMemory> {
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
