//! Drives as importers. Here a drive is a file; `tests/kernel/pci.rs` has real ones, and peer memory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use devpagemap::pagemap::{Observation, Observed};
use devpagemap::{Attachment, Drive, Error, Fence, RegionKind, Route};

use crate::setup::importer::Nic;
use crate::setup::*;

const DRIVE_MIB: u64 = 8;

/// A file full of a pattern, removed at the end.
struct DriveFile(PathBuf);

impl DriveFile {
    fn new(name: &str, seed: u64) -> DriveFile {
        let path = std::env::temp_dir().join(format!("devpagemap-drive-{}-{name}", std::process::id()));
        let mut bytes = vec![0; (DRIVE_MIB << 20) as usize];
        pattern::write(seed, 0, &mut bytes);
        fs::write(&path, bytes).expect("the folder for temporary files is writable");
        DriveFile(path)
    }

    fn drive(&self) -> Arc<Drive> {
        Drive::open(&self.0).expect("a file system with direct access")
    }

    #[track_caller]
    fn expect(&self, seed: u64, range: std::ops::Range<u64>) {
        let bytes = fs::read(&self.0).expect("it is there");
        assert_eq!(pattern::check(seed, 0, &bytes[range.start as usize..range.end as usize]), Ok(()));
    }
}

impl Drop for DriveFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("it is still there");
    }
}

fn attach(device: &Lab, buffer: &devpagemap::Buffer, drive: &Arc<Drive>) -> Attachment {
    let peer = device.join(drive.clone()).expect("an importer that can be");
    buffer.attach(&peer).expect("nothing has to move")
}

const ALL: std::ops::Range<u64> = 0..4 << 20;

#[test]
fn a_drive_reads_into_vram_and_writes_from_it() {
    let (device, file) = (device_for_peers(16), DriveFile::new("both-ways", 1));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 2));
    let attachment = attach(&device, &buffer, &drive);
    let map = attachment.map(ALL).expect("it reaches the BAR");
    let done = drive.write_from(&map, ALL, 4 << 20).expect("it is opened for writing");
    assert_eq!((done.route, done.bounced_bytes), (Route::Declared, 0));
    file.expect(2, 4 << 20..8 << 20);
    drive.read_into(&map, ALL, 0).expect("it has these bytes");
    expect_bytes(&buffer, 1);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
}

#[test]
fn a_drive_that_does_not_reach_vram_is_staged_and_the_reason_is_counted() {
    let (device, file) = (device_for_peers(16), DriveFile::new("staged", 3));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 4));
    let peer = device.join(drive.clone()).expect("an importer that can be");
    let refuses = Observation::new(device.owner(), peer.importer_id(), Observed::DriverAllows(false));
    device.registry().observe(refuses);
    // The other one keeps the buffer in VRAM.
    let (_nic, other) = Nic::join("nic", &device);
    let other = buffer.attach(&other).expect("nothing has to move");
    let in_bar = other.map(ALL).expect("it reaches the BAR");
    let attachment = buffer.attach(&peer).expect("nothing has to move");
    let map = attachment.map(ALL).expect("a copy, or system memory");
    let done = drive.write_from(&map, ALL, 4 << 20).expect("it is opened for writing");
    assert!(!done.route.is_p2p() && done.bounced_bytes == 0, "{done:?}");
    file.expect(4, 4 << 20..8 << 20);
    drive.read_into(&map, ALL, 0).expect("it has these bytes");
    expect_bytes(&buffer, 3);
    if done.route == Route::Staging {
        let reasons = device.stats().reasons;
        assert!(
            reasons.keys().any(|reason| reason.starts_with("drive: staged, as decided: staging")),
            "{reasons:?}"
        );
    }
    drop(in_bar);
}

#[test]
fn what_is_submitted_during_a_transfer_queues_behind_it_and_a_transfer_behind_what_was_before() {
    let (device, file) = (device_for_peers(16), DriveFile::new("order", 5));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 6));
    let map = attach(&device, &buffer, &drive).map(ALL).expect("it reaches the BAR");
    let gate = Gate::closed();
    hold(&device, &buffer, &gate);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| drive.read_into(&map, ALL, 0));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!reader.is_finished(), "a job uses the buffer");
        let after: devpagemap::Result<Fence> = verify(&device, &buffer, 5);
        gate.open();
        reader.join().expect("no panic").expect("it has these bytes");
        // Whether it was submitted before the transfer began is the scheduler's affair; the bytes are the judge when it was not.
        let _either = after.expect("a submission").wait();
    });
    finished(verify(&device, &buffer, 5));
}

#[test]
fn a_buffer_that_moves_takes_its_map_from_a_drive() {
    let (device, file) = (device_for_peers(8), DriveFile::new("stale", 7));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 8));
    let attachment = attach(&device, &buffer, &drive);
    let map = attachment.map(ALL).expect("it reaches the BAR");
    vram_buffer(&device, 8).place_now().expect("the buffer can go");
    let stale = drive.read_into(&map, ALL, 0).expect_err("it is elsewhere");
    assert_eq!(stale, Error::StaleMap { buffer: buffer.id() });
    expect_bytes(&buffer, 8);
    let again = attachment.map(ALL).expect("it is mapped again");
    drive.read_into(&again, ALL, 0).expect("it has these bytes");
    expect_bytes(&buffer, 7);
}

#[test]
fn what_a_transfer_cannot_be_is_refused_before_anything_changes() {
    let (device, file) = (device_for_peers(16), DriveFile::new("refused", 9));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 10));
    let map = attach(&device, &buffer, &drive).map(0..1 << 20).expect("it reaches the BAR");
    let sector = drive.sector_bytes();
    let refused = |range, at| drive.read_into(&map, range, at).expect_err("it cannot be");
    assert!(matches!(refused(0..100, 0), Error::InvalidSize { bytes: 100, .. }));
    assert!(matches!(refused(0..sector, 7), Error::InvalidSize { bytes: 7, .. }));
    assert!(matches!(refused(0..2 << 20, 0), Error::OutOfBounds { size_bytes, .. } if size_bytes == 1 << 20));
    assert!(
        matches!(refused(0..1 << 20, DRIVE_MIB << 20), Error::OutOfBounds { size_bytes, .. } if size_bytes == DRIVE_MIB << 20)
    );
    assert!(matches!(refused(0..1 << 20, u64::MAX - u64::MAX % sector), Error::OutOfBounds { .. }));
    let (other_file, reading) =
        (DriveFile::new("other", 1), Drive::open_read_only(&file.0).expect("it is there"));
    let other = other_file.drive();
    assert!(matches!(other.read_into(&map, 0..1 << 20, 0), Err(Error::ForeignPeer { .. })));
    let reading_map = attach(&device, &buffer, &reading).map(ALL).expect("it reaches the BAR");
    let refused = reading.write_from(&reading_map, ALL, 0).expect_err("it is for reading").to_string();
    assert!(refused.contains("opened for reading"), "{refused}");
    expect_bytes(&buffer, 10);
}

#[test]
fn a_drive_that_fails_in_a_transfer_says_so_and_the_buffer_goes_on() {
    let (device, file) = (device_for_peers(16), DriveFile::new("fails", 11));
    let (drive, buffer) = (file.drive(), filled(&device, 4, 12));
    let map = attach(&device, &buffer, &drive).map(ALL).expect("it reaches the BAR");
    File::options()
        .write(true)
        .open(&file.0)
        .and_then(|short| short.set_len(1 << 20))
        .expect("it can be cut");
    let failed = drive.read_into(&map, ALL, 0).expect_err("it ends before that");
    assert!(matches!(failed, Error::Io { action: "read from a drive", .. }), "{failed}");
    finished(fill(&device, &buffer, 13));
    expect_bytes(&buffer, 13);
}
