//! Memory on a real PCI bus: the BAR of an ivshmem device as VRAM.

use std::process::Command;

use devpagemap::migrate::{Addr, VramAddr};
use devpagemap::topology::PciAddress;
use devpagemap::{
    Bar, Buffer, Caching, Device, Drive, Error, MemoryMap, PciBar, Place, RegionKind, Size, SoftwareGpu,
};
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

use crate::drives::{drives, peer_memories};
use crate::jobs::{fill, verify};
use crate::pattern;
use crate::setup::{Thing, ivshmem, need, say_loudly};

pub(crate) type Lab = Device<SoftwareGpu>;

const MIB: u64 = 1 << 20;
/// The video memory of the main replay in its full size.
const FRAMES_VRAM_BYTES: u64 = 384 * MIB;
/// Which BAR of ivshmem is memory.
const MEMORY_BAR: u8 = 2;

pub(crate) fn address_of(function: &std::path::Path) -> PciAddress {
    let name = function.file_name().and_then(|name| name.to_str()).expect("a name of sysfs");
    name.parse().expect("functions go by their addresses")
}

fn ivshmem_address() -> PciAddress {
    address_of(&ivshmem().expect("it was asked for"))
}

pub(crate) fn bar(caching: Caching) -> PciBar {
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

pub(crate) fn filled(device: &Lab, mib: u64, seed: u64) -> Buffer {
    let buffer = device.buffer(Size::mib(mib)).prefer(Place::VRAM).uncached().create();
    let buffer = buffer.expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

#[track_caller]
pub(crate) fn expect_bytes(buffer: &Buffer, seed: u64) {
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
    let smaller: u64 = match std::env::var("DEVPAGEMAP_REPLAY_SCALE") {
        Ok(scale) => scale
            .strip_prefix("1/")
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{scale} is not 1/N")),
        Err(_) => 8,
    };
    let (scale, vram) = (format!("1/{smaller}"), FRAMES_VRAM_BYTES / smaller);
    for caching in ways() {
        let way = if caching == Caching::Uncached { "uc" } else { "wc" };
        let device = format!("pci:{}/{way}", ivshmem_address());
        let output = Command::new(&command)
            .args(["replay", "builtin:frames", "--json", "-", "--scale", &scale, "--device", &device])
            .args(["--vram", &vram.to_string()])
            .output()
            .expect("the command runs");
        let json = String::from_utf8_lossy(&output.stdout).replace(char::is_whitespace, "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{device}: {:?}: {said}", output.status);
        for expected in ["\"mismatches\":0", &format!("\"vram_bytes\":{vram},"), "\"batches_failed\":[]"] {
            assert!(json.contains(expected), "{device}: no {expected}: {said}");
        }
        let number = |key| number(&json, key).unwrap_or_else(|| panic!("{device}: no number {key}: {json}"));
        assert!(number("evictions") > 0 && number("bytes_checked") > 0, "{device}: {said}");
        say_loudly(&format!(
            "the main replay at {scale}, {way}: {} batches, {} bytes moved, {} checked, {} wrong, {:.1} s",
            number("batches_done"),
            number("moved_bytes"),
            number("bytes_checked"),
            number("mismatches"),
            number("wall_ns") as f64 / 1e9
        ));
    }
}

/// The number behind a key.
fn number(json: &str, key: &str) -> Option<u64> {
    let (_, rest) = json.split_once(&format!("\"{key}\":"))?;
    rest.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
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
