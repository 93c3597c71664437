//! A drive as an importer: it reads into buffers and writes from them, straight over the bus where that works.
//!
//! ```text
//!   a map of the buffer ── in the BAR ──► O_DIRECT between the drive and the exporter's own memory ── refused? ─┐
//!         │                                                                                                    ▼
//!         ├─ a copy ────► O_DIRECT between the drive and the copy's pages; queued copies keep it in step    a bounce:
//!         └─ system ────► O_DIRECT between the drive and the buffer's pages                                 O_DIRECT to pages of
//!                                                                                                           the drive's own, and
//!                                                                                                           the CPU copies
//! ```
//!
//! Which of them it is is the registry's decision, from where the two are on the bus. The kernel decides too, at each transfer, and it may
//! refuse what was decided: memory without pages (a BAR that is mapped as it is), a way that it does not know to work. Then the bytes are bounced, the
//! reason is counted, and the registry is told, so the next map goes another way.
//!
//! A use is said before it is waited for: from then on whoever moves the buffer waits for the transfer, and so does whoever tells the
//! drive to let go.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_fence::{AllOf, Fence, FenceError, FenceSet, Outside, Timeline};
use devpagemap_migrate::copy;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fstat, major, minor, open, seek};
use rustix::io::{Errno, pread, pwrite};

use super::p2pmem::P2pAllocation;
use crate::backend::Arena;
use crate::error::{Error, Result, errno_of};
use crate::pagemap::{Profile, Route};
use crate::share::{Importer, Invalidated, PeerMap};
use crate::submit::Access;
use crate::topology::{PciAddress, text};

/// What a bounce holds.
const BOUNCE_BYTES: usize = 1 << 20;

/// A block device, or a file on one, that transfers bytes between itself and buffers. It is read and written without the page cache.
///
/// Give it to [`Device::join`](crate::Device::join), attach it to a buffer, map a range, and transfer:
///
/// ```no_run
/// # use devpagemap::{Device, Drive, Place, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// # let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(8)).build()?;
/// let drive = Drive::open("/dev/nvme0n1")?;
/// let peer = device.join(drive.clone())?;
/// let buffer = device.buffer(Size::mib(4)).prefer(Place::VRAM).create()?;
/// let map = buffer.attach(&peer)?.map(0..4 << 20)?;
/// drive.read_into(&map, 0..4 << 20, 0)?;
/// # Ok(())
/// # }
/// ```
pub struct Drive {
    /// For people. Constant.
    name: String,
    /// Opened for direct access. Constant.
    file: OwnedFd,
    /// Whether it was opened for writing. Constant.
    writable: bool,
    /// The function that it is behind; `None` when it is behind none, or that is not known. Constant.
    address: Option<PciAddress>,
    /// Constant.
    len_bytes: u64,
    /// What offsets and lengths are multiples of. Constant.
    sector_bytes: u64,
    /// Pages for bounces, while nobody uses them. Its own lock.
    bounce: Outside<Option<Arena>>,
    /// The transfers that are under way. Its own lock.
    running: Outside<FenceSet>,
}

/// What came of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// How the drive reached the map's bytes.
    pub route: Route,
    /// How many of the bytes were bounced, because the kernel refused the direct way.
    pub bounced_bytes: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    FromDrive,
    ToDrive,
}

impl Direction {
    /// What it does to the buffer.
    fn access(self) -> Access {
        match self {
            Direction::FromDrive => Access::Write,
            Direction::ToDrive => Access::Read,
        }
    }

    fn action(self) -> &'static str {
        match self {
            Direction::FromDrive => "read from a drive",
            Direction::ToDrive => "write to a drive",
        }
    }
}

impl Drive {
    /// Opens a block device, which nobody else may use meanwhile, or a file.
    ///
    /// # Errors
    /// [`Error::NotUsable`] with the cause: it is not there, it is something else, it is in use, its file system has no direct access.
    /// [`Error::NoRights`], [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Drive>> {
        Drive::open_as(path.as_ref(), true)
    }

    /// As [`open`](Drive::open), to be read only.
    ///
    /// # Errors
    /// As [`open`](Drive::open); and [`write_from`](Drive::write_from) is one.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Arc<Drive>> {
        Drive::open_as(path.as_ref(), false)
    }

    fn open_as(path: &Path, writable: bool) -> Result<Arc<Drive>> {
        let name = path.display().to_string();
        let refused = |why: &str| Error::not_usable(&name, why);
        let is_block = match fs::metadata(path).map(|found| FileType::from_raw_mode(mode_of(&found))) {
            Ok(FileType::BlockDevice) => true,
            Ok(FileType::RegularFile) => false,
            Ok(_) => return Err(refused("it is neither a block device nor a file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(refused("it is not there"));
            }
            Err(error) => return Err(Error::of_path("open a drive", &name, errno_of(&error))),
        };
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let alone = if writable && is_block { OFlags::EXCL } else { OFlags::empty() };
        let file = open(path, access | alone | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|errno| match errno {
            Errno::BUSY => refused("it is in use: mounted, or opened by somebody who wants it alone"),
            Errno::INVAL => refused("it has no direct access (O_DIRECT)"),
            errno => Error::of_path("open a drive", &name, errno),
        })?;
        let io = |errno| Error::io("look at a drive", 0, errno);
        let status = fstat(&file).map_err(io)?;
        let len_bytes = seek(&file, SeekFrom::End(0)).map_err(io)?;
        let place = if is_block { BlockDevice::of(status.st_rdev) } else { BlockDevice::of(status.st_dev) };
        Ok(Arc::new(Drive {
            name,
            file,
            writable,
            address: place.address,
            len_bytes,
            sector_bytes: place.sector_bytes,
            bounce: Outside::new("a drive's bounce", None),
            running: Outside::new("a drive's transfers", FenceSet::new()),
        }))
    }

    /// The PCI function that it is behind, if it is known to be behind one.
    pub fn address(&self) -> Option<PciAddress> {
        self.address
    }

    /// How much it holds.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// What offsets and lengths of transfers are multiples of.
    pub fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }

    /// Reads from byte `drive_offset` of the drive on into bytes `range` of the buffer that `map` shows, after all work that uses them. Returns
    /// when they are there; what is submitted meanwhile queues behind that.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for bytes that the map or the drive does not have, [`Error::InvalidSize`] for what is not whole sectors,
    /// [`Error::ForeignPeer`] for a map of another importer, [`Error::StaleMap`] when the buffer has moved: map again. [`Error::FenceFailed`]
    /// when its bytes are lost, [`Error::Io`] when the drive fails; the range then holds anything.
    pub fn read_into(&self, map: &PeerMap, range: Range<u64>, drive_offset: u64) -> Result<Transfer> {
        self.transfer(map, range, drive_offset, Direction::FromDrive)
    }

    /// Writes bytes `range` of the buffer that `map` shows to the drive, from its byte `drive_offset` on, after all work that writes them.
    ///
    /// # Errors
    /// As [`read_into`](Drive::read_into), and [`Error::NotUsable`] for a drive that was opened for reading.
    pub fn write_from(&self, map: &PeerMap, range: Range<u64>, drive_offset: u64) -> Result<Transfer> {
        self.check_writable()?;
        self.transfer(map, range, drive_offset, Direction::ToDrive)
    }

    /// Reads into peer memory, whatever the registry says of the way: what the kernel says of it is what is returned.
    ///
    /// # Errors
    /// [`Error::Io`], with `EREMOTEIO` where the kernel knows of no way; [`Error::OutOfBounds`], [`Error::InvalidSize`].
    pub fn read_direct(&self, memory: &P2pAllocation, range: Range<u64>, drive_offset: u64) -> Result<()> {
        self.direct(memory, range, drive_offset, Direction::FromDrive)
    }

    /// Writes from peer memory, whatever the registry says of the way.
    ///
    /// # Errors
    /// As [`read_direct`](Drive::read_direct), and [`Error::NotUsable`] for a drive that was opened for reading.
    pub fn write_direct(&self, memory: &P2pAllocation, range: Range<u64>, drive_offset: u64) -> Result<()> {
        self.check_writable()?;
        self.direct(memory, range, drive_offset, Direction::ToDrive)
    }

    fn check_writable(&self) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(Error::not_usable(&self.name, "it was opened for reading, and is to be written")),
        }
    }

    /// Whole sectors, which the drive has.
    fn check(&self, range: &Range<u64>, drive_offset: u64) -> Result<()> {
        let len_bytes = range.end.saturating_sub(range.start);
        for (what, bytes) in [
            ("a transfer", len_bytes),
            ("its offset", range.start),
            ("its offset on the drive", drive_offset),
        ] {
            if !bytes.is_multiple_of(self.sector_bytes) {
                return Err(Error::InvalidSize { what, bytes, why: "is not whole sectors of the drive" });
            }
        }
        match drive_offset.checked_add(len_bytes) {
            Some(end) if end <= self.len_bytes => Ok(()),
            _ => {
                Err(Error::OutOfBounds { offset_bytes: drive_offset, len_bytes, size_bytes: self.len_bytes })
            }
        }
    }

    fn transfer(
        &self,
        map: &PeerMap,
        range: Range<u64>,
        drive_offset: u64,
        direction: Direction,
    ) -> Result<Transfer> {
        self.check(&range, drive_offset)?;
        map.check_is_of(&self.name, std::ptr::from_ref(self).cast())?;
        map.check_shows(&range)?;
        let running = self.begin();
        let before = map.enqueue(direction.access(), &running.fence)?;
        map.wait_for(&before)?;
        // What a window shows is known once it has been programmed.
        let pieces = map.pieces(&range)?;
        if map.route() == Route::Staging {
            map.count(&format!("drive: staged, as decided: {}", map.why()));
        }
        let moved = self.move_pieces(map, &pieces, drive_offset, direction);
        running.end(&moved);
        moved
    }

    fn begin(&self) -> Use {
        let timeline = Timeline::new(self.name.clone());
        let fence = timeline.next_point();
        let mut running = self.running.lock();
        running.prune();
        running.add(fence.clone());
        Use { timeline, fence }
    }

    fn move_pieces(
        &self,
        map: &PeerMap,
        pieces: &[(NonNull<u8>, usize)],
        drive_offset: u64,
        direction: Direction,
    ) -> Result<Transfer> {
        let (mut at, mut bounced_bytes) = (drive_offset, 0);
        for &(start, len) in pieces {
            // SAFETY: the piece is mapped memory that the map's device keeps, and the use that was said of it keeps everybody else off.
            let refused = match unsafe { self.direct_io(start, len, at, direction) } {
                Ok(()) => None,
                Err(errno) => Some(Refusal::of(errno).ok_or_else(|| self.failed(direction, len, errno))?),
            };
            if let Some(refusal) = refused {
                map.count(refusal.reason());
                map.observe_refusal();
                // SAFETY: as above.
                unsafe { self.bounce(start, len, at, direction) }
                    .map_err(|errno| self.failed(direction, len, errno))?;
                bounced_bytes += len as u64;
            }
            at += len as u64;
        }
        Ok(Transfer { route: map.route(), bounced_bytes })
    }

    fn direct(
        &self,
        memory: &P2pAllocation,
        range: Range<u64>,
        drive_offset: u64,
        direction: Direction,
    ) -> Result<()> {
        self.check(&range, drive_offset)?;
        let (start, len) = memory.piece(&range)?;
        // SAFETY: the piece is the allocation's, which outlives the call. It is memory of a device, of which nobody has a reference.
        unsafe { self.direct_io(start, len, drive_offset, direction) }
            .map_err(|errno| self.failed(direction, len, errno))
    }

    fn failed(&self, direction: Direction, len: usize, errno: Errno) -> Error {
        tracing::debug!(drive = self.name, %errno, "a transfer failed");
        Error::io(direction.action(), len as u64, errno)
    }

    /// Transfers with no copy.
    ///
    /// # Safety
    /// There are `len` mapped bytes from `start` for as long as this runs, which nobody touches who would mind.
    unsafe fn direct_io(
        &self,
        start: NonNull<u8>,
        len: usize,
        drive_offset: u64,
        direction: Direction,
    ) -> std::result::Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let (at, offset) = (start.as_ptr().wrapping_add(done), drive_offset + done as u64);
            let moved = match direction {
                Direction::FromDrive => {
                    // SAFETY: the rest of the caller's bytes, which nobody else touches while this slice lives.
                    let rest = unsafe { std::slice::from_raw_parts_mut(at, len - done) };
                    pread(&self.file, rest, offset)
                }
                Direction::ToDrive => {
                    // SAFETY: the rest of the caller's bytes, which nobody writes while this slice lives.
                    let rest = unsafe { std::slice::from_raw_parts(at, len - done) };
                    pwrite(&self.file, rest, offset)
                }
            };
            done += match moved {
                Ok(0) => return Err(Errno::IO),
                Ok(moved) => moved,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno),
            };
        }
        Ok(())
    }

    /// Transfers by way of pages of the drive's own.
    ///
    /// # Safety
    /// As for [`direct_io`](Drive::direct_io).
    unsafe fn bounce(
        &self,
        start: NonNull<u8>,
        len: usize,
        drive_offset: u64,
        direction: Direction,
    ) -> std::result::Result<(), Errno> {
        let kept = self.bounce.lock().take();
        let arena = match kept {
            Some(arena) => arena,
            None => Arena::shared("devpagemap-drive", BOUNCE_BYTES as u64).map_err(|_| Errno::NOMEM)?,
        };
        let pages = arena.address(0, BOUNCE_BYTES as u64).expect("all of the arena");
        let mut done = 0;
        while done < len {
            let (part, offset) = (BOUNCE_BYTES.min(len - done), drive_offset + done as u64);
            let at = start.as_ptr().wrapping_add(done);
            // SAFETY: the caller vouches for `len` bytes from `start`, of which these are a part; the pages are ours alone while the arena
            // is taken out.
            unsafe {
                if direction == Direction::ToDrive {
                    copy::copy(pages.as_ptr(), at, part);
                }
                self.direct_io(pages, part, offset, direction)?;
                if direction == Direction::FromDrive {
                    copy::copy(at, pages.as_ptr(), part);
                }
            }
            done += part;
        }
        copy::publish();
        *self.bounce.lock() = Some(arena);
        Ok(())
    }
}

impl Importer for Drive {
    fn name(&self) -> &str {
        &self.name
    }

    fn profile(&self) -> Profile {
        let profile = Profile::dynamic().named(&self.name);
        match self.address {
            Some(address) => profile.at(address),
            None => profile,
        }
    }

    /// What it has begun it ends. It begins nothing else with these maps, which are stale.
    fn invalidate(&self, _: &Invalidated) -> Option<Fence> {
        let mut running = self.running.lock().clone();
        running.prune();
        (!running.is_empty()).then(|| AllOf::new(running).fence().clone())
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("len_bytes", &self.len_bytes)
            .field("sector_bytes", &self.sector_bytes)
            .finish_non_exhaustive()
    }
}

/// Why the kernel did not go the direct way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NoPages,
    NoWay,
}

impl Refusal {
    /// `None` for an error that another way would not cure.
    fn of(errno: Errno) -> Option<Refusal> {
        match errno {
            Errno::FAULT => Some(Refusal::NoPages),
            Errno::REMOTEIO | Errno::OPNOTSUPP => Some(Refusal::NoWay),
            _ => None,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Refusal::NoPages => "drive: bounced, as the kernel has no pages for this memory (EFAULT)",
            Refusal::NoWay => "drive: bounced, as the kernel knows of no way between the two (EREMOTEIO)",
        }
    }
}

/// A transfer that others queue behind. One that is dropped has failed.
struct Use {
    timeline: Timeline,
    fence: Fence,
}

impl Use {
    fn end(self, moved: &Result<Transfer>) {
        match moved {
            Ok(_) => self.timeline.signal(self.fence.seqno()),
            Err(error) => self.timeline.fail(self.fence.seqno(), FenceError::failed(error.to_string())),
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.fence.is_signaled() {
            self.timeline.fail(self.fence.seqno(), FenceError::failed("a drive's transfer was given up"));
        }
    }
}

/// What sysfs tells of the block device that bytes are on.
struct BlockDevice {
    address: Option<PciAddress>,
    sector_bytes: u64,
}

impl BlockDevice {
    /// A page, where it is not known: no drive has larger ones that is to be reached page by page.
    const UNKNOWN_SECTOR_BYTES: u64 = 4096;

    fn of(number: u64) -> BlockDevice {
        let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        let dir = fs::canonicalize(link).unwrap_or_default();
        BlockDevice {
            address: last_function(&dir),
            sector_bytes: sector_bytes(&dir).unwrap_or(Self::UNKNOWN_SECTOR_BYTES),
        }
    }
}

/// The PCI function whose directory is the nearest above.
fn last_function(dir: &Path) -> Option<PciAddress> {
    let parts: Vec<&str> = dir.iter().filter_map(|part| part.to_str()).collect();
    parts.iter().rev().find_map(|part| part.parse().ok())
}

/// A partition has no queue of its own.
fn sector_bytes(dir: &Path) -> Option<u64> {
    let whole = dir.parent().map(PathBuf::from).unwrap_or_default();
    let of = |dir: &Path| text(&dir.join("queue/logical_block_size"))?.parse().ok();
    of(dir).or_else(|| of(&whole)).filter(|bytes: &u64| bytes.is_power_of_two())
}

fn mode_of(found: &fs::Metadata) -> u32 {
    use std::os::unix::fs::MetadataExt;
    found.mode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_of_a_drive_is_the_nearest_above_it() {
        let path = "/sys/devices/pci0000:00/0000:00:03.0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1";
        assert_eq!(last_function(Path::new(path)), "0000:01:00.0".parse().ok());
        assert_eq!(last_function(Path::new("/sys/devices/virtual/block/loop0")), None);
    }

    #[test]
    fn what_is_no_drive_is_refused_by_what_it_is() {
        let refused = |path: &str| Drive::open(path).expect_err("it is no drive").to_string();
        assert!(refused("/dev/null").contains("neither a block device nor a file"));
        assert!(refused("/").contains("neither"));
        assert!(refused("/dev/nvme99n9").contains("not there"));
    }

    #[test]
    fn only_a_refusal_of_the_way_is_gone_around() {
        assert_eq!(Refusal::of(Errno::REMOTEIO), Some(Refusal::NoWay));
        assert_eq!(Refusal::of(Errno::FAULT), Some(Refusal::NoPages));
        assert_eq!(Refusal::of(Errno::IO), None, "a drive that fails fails on every way");
        assert_eq!(Refusal::of(Errno::INVAL), None);
    }
}
