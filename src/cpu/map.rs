//! CPU maps: one address for a buffer's bytes, wherever these are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::{Held, Outside, Usage};

use super::address_space::AddressSpace;
use super::bracket::{self, Bracket};
use super::hold::Hold;
use super::mapping::Mapping;
use super::windowed::Shown;
use super::{AfterLoss, Caching};
use crate::aperture::PinnedWindow;
use crate::bo::{Buffer, CpuWish, WeakBuffer};
use crate::error::{Error, Result};
use crate::region::{Resource, bytes_of, pages_of};
use crate::stats::Counters;
use crate::submit::Access;

/// A buffer, or a part of it, mapped for the CPU. The address stays while the buffer moves; nothing is pinned, unless the map was
/// [made so](CpuMapBuilder::pinned) or the kernel offers nothing better (see [`CpuFaults`](crate::CpuFaults)).
///
/// A touch of bytes that are on their way sleeps until they have arrived. One of bytes that the CPU does not reach where they are
/// brings the buffer where it does. What a touch does not wait for is the GPU's *work* on the bytes: as with any shared memory, it is for
/// you to wait ([`Buffer::wait`]) before you read what a job writes, and to be done before you submit the next. [`CpuMap::read`] and
/// [`CpuMap::write`] do wait.
///
/// The map keeps its buffer alive, and the buffer its device. It is for this process: a forked child does not have it.
///
/// ```
/// use devpagemap::{Device, Place, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(8)).build()?;
/// let buffer = device.buffer(Size::mib(4)).prefer(Place::VRAM).write_combined().create()?;
/// let map = buffer.map()?;
/// // SAFETY: the map is alive, these bytes lie inside, no job uses the buffer and no other thread these bytes.
/// unsafe { map.as_ptr().add(4096).write(7) };
///
/// // Another buffer needs all of VRAM: the first is evicted, and the byte is where it was.
/// device.buffer(Size::mib(8)).create()?.place_now()?;
/// assert_eq!(buffer.evictions(), 1);
/// // SAFETY: as above.
/// assert_eq!(unsafe { map.as_ptr().add(4096).read() }, 7);
/// # Ok(())
/// # }
/// ```
pub struct CpuMap {
    /// The address. Constant.
    mapping: Arc<Mapping>,
    /// Keeps the buffer where it is; `None` for a map that follows it. Constant.
    hold: Option<Hold>,
    /// Shows a buffer that is kept where only windows show it. Constant.
    window: Option<PinnedWindow>,
    /// Constant.
    buffer: Buffer,
    /// Which of the buffer's bytes. Constant.
    range: Range<u64>,
    /// Constant.
    writable: bool,
    /// Constant.
    fell_back: Option<&'static str>,
    /// Around what the CPU does with the bytes of a dma-buf, from the last time that the map was populated on. Its own lock, outside of the
    /// order.
    bracket: Outside<Option<Bracket>>,
}

impl fmt::Debug for CpuMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuMap")
            .field("buffer", &self.buffer.id())
            .field("range", &self.range)
            .field("writable", &self.writable)
            .field("is_pinned", &self.is_pinned())
            .field("fell_back", &self.fell_back)
            .finish_non_exhaustive()
    }
}

impl Buffer {
    /// Maps the buffer for the CPU: brings it where the CPU reaches it, waits until all work on it is done, and keeps it mapped from
    /// there on, wherever it moves.
    ///
    /// # Errors
    /// As [`CpuMapBuilder::map`].
    pub fn map(&self) -> Result<CpuMap> {
        self.mapping().map()
    }

    /// Maps all of the buffer at one address and keeps it where it is as long as the map lives: its touches never wait.
    ///
    /// # Errors
    /// As [`CpuMapBuilder::map`].
    pub fn vmap(&self) -> Result<CpuMap> {
        self.mapping().pinned().map()
    }

    /// Describes a map of a part, for reading only, or with another behaviour.
    pub fn mapping(&self) -> CpuMapBuilder<'_> {
        CpuMapBuilder {
            buffer: self,
            range: 0..self.size().as_bytes(),
            writable: true,
            caching: Caching::Uncached,
            after_loss: AfterLoss::default(),
            pinned: false,
            lazy: false,
        }
    }
}

/// Describes a map to be made.
#[must_use = "a builder maps nothing until `map`"]
#[derive(Debug)]
pub struct CpuMapBuilder<'a> {
    buffer: &'a Buffer,
    range: Range<u64>,
    writable: bool,
    caching: Caching,
    after_loss: AfterLoss,
    pinned: bool,
    lazy: bool,
}

impl CpuMapBuilder<'_> {
    /// Maps only these bytes of the buffer.
    pub fn range(self, bytes: Range<u64>) -> Self {
        CpuMapBuilder { range: bytes, ..self }
    }

    /// Maps for reading only: a write through the address raises `SIGSEGV`, and [`CpuMap::write`] is an error.
    pub fn read_only(self) -> Self {
        CpuMapBuilder { writable: false, ..self }
    }

    /// Asks for bytes that are cached at least so well, beyond what the buffer's creator asked for.
    pub fn caching(self, caching: Caching) -> Self {
        CpuMapBuilder { caching, ..self }
    }

    /// What touches meet when the bytes are lost: with the device, or by a move that failed. Zeros, unless told otherwise.
    pub fn after_loss(self, after_loss: AfterLoss) -> Self {
        CpuMapBuilder { after_loss, ..self }
    }

    /// Keeps the buffer where it is for as long as the map lives. Who needs it elsewhere meanwhile gets [`Error::Pinned`].
    pub fn pinned(self) -> Self {
        CpuMapBuilder { pinned: true, ..self }
    }

    /// Brings nothing anywhere and waits for nothing now; the first touch does.
    pub fn when_touched(self) -> Self {
        CpuMapBuilder { lazy: true, ..self }
    }

    /// Maps it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for bytes that the buffer does not have, [`Error::InvalidSize`] for none, [`Error::Pinned`] when it is
    /// pinned where the CPU does not reach it, [`Error::FenceFailed`] when its bytes are lost, [`Error::Exhausted`] when neither
    /// visible VRAM nor system memory can be had, [`Error::ApertureFull`] for a pinned map when other pinned maps and windows have the CPU's
    /// reserve of a BAR of windows, [`Error::ReadOnly`] for a map that is not [`read_only`](CpuMapBuilder::read_only) of a buffer that was
    /// imported so, [`Error::Io`] when the system gives no addresses, [`Error::DeviceLost`].
    pub fn map(self) -> Result<CpuMap> {
        self.buffer.check_range("a CPU map", &self.range)?;
        if self.writable {
            self.buffer.0.check_writable()?;
        }
        let manager = &self.buffer.0.manager;
        manager.check_present()?;
        let watcher = if self.pinned { None } else { self.watcher()? };
        let pinned = watcher.is_none();
        let pages = pages_of(&self.range);
        let in_pages = bytes_of(&pages);
        let len_bytes = in_pages.end - in_pages.start;
        let space = AddressSpace::reserve(watcher, in_pages.start, len_bytes, self.writable)?;
        let mapping = Mapping::new(
            WeakBuffer::of(&self.buffer.0),
            in_pages,
            CpuWish { caching: self.caching, pages },
            self.after_loss,
            manager.cpu.clone(),
            manager.faults.clone(),
            space,
        );
        let (hold, window, fell_back) = self.buffer.transact(|transaction, slot| {
            let mut fell_back = match self.lazy && !pinned {
                true => None,
                false => transaction.make_mappable(slot, &mapping)?.fell_back,
            };
            let (window, no_window) = match (pinned, self.lazy) {
                (true, _) => transaction.keep_window(slot, &mapping, self.pinned)?,
                (false, false) => (None, transaction.try_window(slot, &mapping)?),
                (false, true) => (None, None),
            };
            fell_back = fell_back.or(no_window);
            let hold = pinned.then(|| transaction.hold(slot));
            transaction.touch_members();
            transaction.follow(slot, &mapping, self.writable);
            Ok((hold, window, fell_back))
        })?;
        Counters::count(&manager.counters.cpu_maps);
        let buffer = self.buffer.clone();
        let CpuMapBuilder { range, writable, lazy, .. } = self;
        let bracket = Outside::new("bracket of a CPU map", None);
        let map = CpuMap { mapping, hold, window, buffer, range, writable, fell_back, bracket };
        if !lazy || pinned {
            map.settle_down()?;
        }
        // Lost meanwhile: whoever declared it has told the mappings that were there by then, and this one is told by its error.
        manager.check_present()?;
        Ok(map)
    }

    /// Who will be told of touches; `None` when this device's maps pin, which is counted with its reason.
    fn watcher(&self) -> Result<Option<Arc<super::address_space::Watcher>>> {
        let manager = &self.buffer.0.manager;
        let told = manager.faults.watcher(&manager.cpu)?;
        let watcher = told.map_err(|reason| manager.reasons.count(reason, &mut Held::in_destructor()));
        Ok(watcher.ok())
    }
}

impl CpuMap {
    /// The address of the first mapped byte. It is good for [`CpuMap::len_bytes`] bytes until the map is dropped.
    ///
    /// A touch may sleep, as for memory that was swapped out. So touch nothing of a map from a driver's hooks, from the closure of a
    /// [`Submission`](crate::Submission) or on the way to a fence's signal: what the touch waits for may be waiting for you.
    pub fn as_ptr(&self) -> *mut u8 {
        let in_page = self.range.start % PAGE_BYTES;
        self.mapping.space.start().wrapping_add(in_page as usize)
    }

    /// How many bytes are mapped.
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Why the bytes were brought to system memory although the buffer may be reached in visible VRAM and wanted to be there; `None`
    /// when they were brought where it wanted.
    pub fn fell_back(&self) -> Option<&str> {
        self.fell_back
    }

    /// Whether the buffer stays where it is as long as this map lives.
    pub fn is_pinned(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether system calls may be handed the address: they then wait as other touches do. Where the kernel permits userfaultfd for
    /// touches from user mode only, they fail with `EFAULT` while the bytes are away; [`CpuMap::populate`] makes that seldom, a pinned
    /// map never.
    pub fn takes_system_calls(&self) -> bool {
        self.hold.is_some() || self.mapping.space.sees_kernel_mode()
    }

    /// The mapped buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Reads from byte `offset_bytes` of the map on, after all work that writes the buffer.
    ///
    /// # Errors
    /// As [`Buffer::read_at`].
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        self.buffer.read_at(self.inside(offset_bytes, into.len())?, into)
    }

    /// Writes from byte `offset_bytes` of the map on, after all work that uses the buffer.
    ///
    /// # Errors
    /// As [`Buffer::write_at`]; and [`Error::ReadOnly`].
    pub fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly { buffer: self.buffer.id() });
        }
        self.buffer.write_at(self.inside(offset_bytes, from.len())?, from)
    }

    /// Points the whole map at the bytes now, and makes what others have done with a dma-buf's bytes visible to the CPU, so that touches find them without waiting, until the buffer moves again: brings it where the
    /// CPU reaches it and waits until the bytes have arrived.
    ///
    /// # Errors
    /// As [`CpuMapBuilder::map`].
    pub fn populate(&self) -> Result<()> {
        let arrival = self.buffer.transact(|transaction, slot| {
            transaction.make_mappable(slot, &self.mapping)?;
            transaction.settle_mapping(slot, &self.mapping);
            Ok(transaction.exec.set().state(slot).arrival.clone())
        })?;
        self.buffer.0.manager.wait(&arrival)?;
        self.buffer.wait_for_others(if self.writable { Access::Write } else { Access::Read })?;
        self.announce()?;
        self.mapping.point_all(&mut Held::enter());
        self.populate_windows()
    }

    /// Tells the kernel, if these are a dma-buf's bytes, that the CPU uses them from now on.
    fn announce(&self) -> Result<()> {
        let missing = bracket::missing(&self.buffer.0.reservation.lock(&mut Held::enter()), None);
        let usage = if self.writable { Usage::Read } else { Usage::Write };
        let begun = missing.map(|missing| missing.begin(usage)).transpose()?;
        let before = std::mem::replace(&mut *self.bracket.lock(), begun);
        if let Some(before) = before {
            before.end();
        }
        Ok(())
    }

    /// Points at windows, one after the other, what only windows show.
    fn populate_windows(&self) -> Result<()> {
        let manager = &self.buffer.0.manager;
        let hidden = self.mapping.hidden_groups(true, &mut Held::enter());
        let mut hidden = hidden.into_iter().peekable();
        while let Some(range) = hidden.peek() {
            let shown = self.buffer.transact(|transaction, slot| {
                match self.mapping.hidden_groups(true, &mut transaction.exec.split().1).contains(range) {
                    true => transaction.show_range(slot, &self.mapping, range),
                    false => Ok(Shown::Done),
                }
            })?;
            match shown {
                Shown::Done => drop(hidden.next()),
                Shown::Queued(_window, after) => manager.wait(&after)?,
                Shown::FellBack => return self.populate(),
            }
        }
        self.mapping.space.wake(0..self.mapping.len_bytes());
        Ok(())
    }

    /// Takes the map's page-table entries away, as a move of the buffer does; the next touch, or [`CpuMap::populate`], brings them back.
    /// A pinned map keeps them, and so does one of a dma-buf's bytes.
    pub fn forget(&self) {
        if self.hold.is_some() {
            return;
        }
        let forgotten = self.buffer.transact(|transaction, slot| {
            if transaction.resource(slot).is_some_and(Resource::is_outside) {
                return Ok(());
            }
            let (_, mut held) = transaction.exec.split();
            self.mapping.zap(&mut held);
            transaction.settle_mapping(slot, &self.mapping);
            Ok(())
        });
        debug_assert!(matches!(forgotten, Ok(()) | Err(Error::DeviceLost)), "{forgotten:?}");
    }

    /// Waits for all work on the buffer, and points a pinned map at its bytes for good.
    fn settle_down(&self) -> Result<()> {
        // How that work ended is for whoever holds its fence.
        let _submitters_business = self.buffer.0.manager.wait(&self.buffer.fences());
        self.buffer.wait_for_others(if self.writable { Access::Write } else { Access::Read })?;
        {
            let mut held = Held::enter();
            self.buffer.0.reservation.lock(&mut held).check_not_lost()?;
        }
        self.announce()?;
        if self.hold.is_none() {
            return Ok(());
        }
        self.mapping.point_all(&mut Held::enter());
        if let Some(window) = &self.window {
            self.buffer.0.manager.wait(&window.after())?;
        }
        self.populate_windows()
    }

    fn inside(&self, offset_bytes: u64, len: usize) -> Result<u64> {
        let (len_bytes, size_bytes) = (len as u64, self.len_bytes());
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= size_bytes => Ok(self.range.start + offset_bytes),
            _ => Err(Error::OutOfBounds { offset_bytes, len_bytes, size_bytes }),
        }
    }

    /// Whether a touch goes through a window without asking anybody.
    #[cfg(any(loom, shuttle))]
    pub fn is_at_window(&self) -> bool {
        self.mapping.space.is_at_window()
    }

    /// A touch, as a model makes it: exchanges the first byte for `value`. Whoever finds the bytes away is the fault thread as well, until
    /// somebody wakes it.
    #[cfg(any(loom, shuttle))]
    pub fn touch(&self, value: u8) -> u8 {
        let faults = &self.buffer.0.manager.faults;
        loop {
            let wakes_before = match self.mapping.space.touch(value) {
                Ok(found) => return found,
                Err(wakes) => wakes,
            };
            faults.touched(&self.mapping, 0);
            while self.mapping.space.wakes() == wakes_before {
                faults.wait_for_news();
                if faults.work() {
                    devpagemap_fence::sync::thread::yield_now();
                }
            }
        }
    }
}
