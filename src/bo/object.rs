//! A buffer whose bytes survive every move.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devpagemap_fence::sync::atomic::AtomicUsize;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, Reservable, Reservation, Usage, levels, lockdep};

use super::cpu_hint::CpuHint;
use super::tags::{Tags, check_priority};
use super::{Place, Placement};
use crate::aperture::{BufferWindows, P2p};
use crate::backend::OutsidePages;
use crate::client::ClientAccount;
use crate::cpu::{Caching, Followers};
use crate::error::{Error, Result};
use crate::import::Imported;
use crate::manager::Manager;
use crate::region::{RegionKind, Resource};
use crate::share::Peers;
use crate::size::Size;
use crate::submit::Access;
use crate::sync_file::Across;

/// What the manager keeps of a buffer.
pub(crate) struct BufferObject {
    /// Constant.
    pub(crate) manager: Arc<Manager>,
    /// On whose account it is. Constant.
    pub(crate) client: Arc<ClientAccount>,
    /// Unique on its device. Constant.
    id: u64,
    /// For people. Constant.
    name: Option<Box<str>>,
    /// As asked for. Constant.
    size_bytes: u64,
    /// Rounded up to pages. Constant.
    pub(crate) footprint_bytes: u64,
    /// What the application says of it. Atomics.
    pub(crate) tags: Tags,
    /// Constant.
    placement: Placement,
    /// The slowest caching that the CPU's mappings of it may have. Constant.
    caching: Caching,
    /// Whose bytes it has, if they are somebody else's. Constant.
    pub(crate) imported: Option<Imported>,
    /// How often it was evicted. Statistics.
    pub(crate) evictions: AtomicU64,
    /// How many maps keep it where it is. Raised under the reservation, lowered anywhere.
    pub(crate) holds: AtomicUsize,
    /// How many of its dma-bufs somebody outside may have: one, but for the instant in which one is let go of. Raised under the
    /// reservation, lowered anywhere.
    pub(crate) exports: AtomicUsize,
    /// See [`WeakBuffer`](super::WeakBuffer).
    #[cfg(any(loom, shuttle))]
    pub(crate) watched: Arc<devpagemap_fence::sync::atomic::AtomicUsize>,
    /// The buffer's lock, its state and its fences.
    pub(crate) reservation: Reservation<BoState>,
}

/// The state of a buffer that its reservation protects.
#[derive(Debug, Default)]
pub(crate) struct BoState {
    /// Where the bytes are; `None` until the first use, when they are zeros that occupy nothing.
    pub(crate) resource: Option<Resource>,
    /// Why it left VRAM, until it comes back.
    pub(crate) away: Option<Away>,
    /// How the CPU has used it lately.
    pub(crate) cpu: CpuHint,
    /// What brought, or will bring, the bytes where they are: the last move and its rebind. Unlike the reservation's fences
    /// they stay when they have signalled, because a failure among them means that the bytes are lost. Every move needs the
    /// arrival before it, so a failure is handed on and the last one is enough.
    pub(crate) arrival: FenceSet,
    /// How often it has been given another place: names the one it has.
    pub(crate) generation: u64,
    /// Who maps it from other devices.
    pub(crate) peers: Peers,
    /// Where the BAR shows parts of `resource`.
    pub(crate) windows: BufferWindows,
    /// The dma-buf that it is, or was last.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) exported: Option<crate::share::Known>,
    /// The CPU mappings that show its bytes.
    pub(crate) followers: Followers,
    /// The dma-buf whose reservation object hears of its fences, and whose fences it hears of; none while nobody outside has it.
    pub(crate) across: Option<Arc<Across>>,
}

/// Why a buffer left VRAM for system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Away {
    /// Others needed room.
    Evicted,
    /// Another had to be where the CPU sees it.
    EvictedForVisibility,
    /// The CPU reaches it in system memory, as its creator or the device's policy wants.
    ForCpu,
    /// The CPU could not reach it in VRAM.
    ForLackOfVisibility,
}

impl BoState {
    /// Where the bytes are; `None` before the first use.
    pub(crate) fn region(&self) -> Option<RegionKind> {
        self.resource.as_ref().map(|resource| resource.region)
    }

    pub(crate) fn is_in_vram(&self) -> bool {
        self.region() == Some(RegionKind::Vram)
    }

    /// # Errors
    /// [`Error::FenceFailed`] when a move that has ended lost the bytes.
    pub(crate) fn check_not_lost(&self) -> Result<()> {
        self.arrival.first_error().map_or(Ok(()), |error| Err(Error::FenceFailed(error)))
    }
}

impl Reservable for BufferObject {
    type State = BoState;

    fn reservation(&self) -> &Reservation<BoState> {
        &self.reservation
    }
}

impl BufferObject {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn priority(&self) -> usize {
        self.tags.priority()
    }

    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The slowest caching that the CPU's mappings of it may have.
    pub(crate) fn caching(&self) -> Caching {
        self.caching
    }

    /// Whether somebody outside may have it as a dma-buf.
    pub(crate) fn is_exported(&self) -> bool {
        self.exports.load(Ordering::Acquire) > 0
    }
}

impl std::fmt::Debug for BufferObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferObject")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for BufferObject {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Region>("VRAM region");
        let mut fences = self.reservation.fences(Usage::Bookkeep);
        let state = self.reservation.get_mut();
        fences.merge(&state.peers.departed());
        if mutant!("dead_bytes_lose_their_fences") {
            fences = FenceSet::new();
        }
        if !state.peers.is_empty() {
            self.manager.shared.forget(self.id);
        }
        if state.peers.away {
            self.manager.promoter.forget(self.id, &mut Held::in_destructor());
        }
        let windows = std::mem::take(&mut state.windows);
        fences.merge(&self.manager.hide_windows(windows, &mut Held::in_destructor()));
        if let Some(Imported { inode, .. }) = self.imported {
            self.manager.known_dma_bufs.leave(inode, self.id, fences.clone());
        }
        if let Some(resource) = state.resource.take() {
            self.manager.retire(resource, fences);
            self.manager.promoter.poke();
        }
        if self.imported.is_none() {
            self.manager.counters.destroyed(self.size_bytes);
        }
    }
}

/// A buffer. Clones name the same one; when the last is dropped its memory is given back, behind its fences.
///
/// ```
/// use devpagemap::{Device, Place, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
/// let buffer = device.buffer(Size::mib(1)).prefer(Place::VRAM).create()?;
/// buffer.write_at(4096, b"hello")?;
/// let mut bytes = [0; 5];
/// buffer.read_at(4096, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Buffer(pub(crate) Arc<BufferObject>);

impl Drop for Buffer {
    fn drop(&mut self) {
        #[cfg(any(loom, shuttle))]
        self.0.watched.fetch_add(1, devpagemap_fence::sync::atomic::Ordering::AcqRel);
        #[cfg(not(any(loom, shuttle)))]
        if self.0.is_exported() {
            self.0.manager.exports.poke();
        }
    }
}

/// # Errors
/// [`Error::InvalidSize`] for a range of no bytes, [`Error::OutOfBounds`] for one that is not within `size_bytes`.
pub(crate) fn check_range(what: &'static str, bytes: &Range<u64>, size_bytes: u64) -> Result<()> {
    if bytes.is_empty() {
        return Err(Error::InvalidSize { what, bytes: 0, why: "is nothing" });
    }
    if bytes.end > size_bytes {
        let (offset_bytes, len_bytes) = (bytes.start, bytes.end - bytes.start);
        return Err(Error::OutOfBounds { offset_bytes, len_bytes, size_bytes });
    }
    Ok(())
}

impl Buffer {
    /// Unique on its device; never reused.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The name it was given.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// The size that was asked for.
    pub fn size(&self) -> Size {
        Size::bytes(self.0.size_bytes)
    }

    /// Where the bytes are now; `None` before the first use. Somebody else may move them the moment after.
    pub fn region(&self) -> Option<RegionKind> {
        let mut held = Held::enter();
        self.0.reservation.lock(&mut held).region()
    }

    /// Whether the CPU reaches all bytes where they are now, through the BAR or in system memory.
    pub fn visible(&self) -> bool {
        let mut held = Held::enter();
        let visible_bytes = self.0.manager.vram.visible_bytes;
        let state = self.0.reservation.lock(&mut held);
        state.resource.as_ref().is_some_and(|resource| resource.is_cpu_visible(visible_bytes))
    }

    /// How often it has been evicted.
    pub fn evictions(&self) -> u64 {
        self.0.evictions.load(Ordering::Relaxed)
    }

    /// What must signal before the CPU may write: all work that reads or writes this buffer, its moves included.
    pub fn fences(&self) -> FenceSet {
        self.0.reservation.fences(Usage::Read)
    }

    /// Waits until all work on this buffer is done, that of other drivers included who share it.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] when work that was still outstanding failed, or a move has lost the bytes.
    pub fn wait(&self) -> Result<()> {
        self.0.manager.wait(&self.0.reservation.fences(Usage::Read))?;
        self.wait_for_others(Access::Write)?;
        self.0.reservation.lock(&mut Held::enter()).check_not_lost()
    }

    /// Checks that these are bytes of the buffer, for `what` is to have them.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for none, [`Error::OutOfBounds`] for bytes that it does not have.
    pub(crate) fn check_range(&self, what: &'static str, bytes: &Range<u64>) -> Result<()> {
        check_range(what, bytes, self.0.size_bytes)
    }

    /// Gives it a place now, instead of at its first use: the first of its placement that can be had, evicting others if
    /// it must. Queues what is needed and does not wait for it.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Fragmented`] or [`Error::TooLarge`] when no place can be had, [`Error::Pinned`] when it
    /// may not move there.
    pub fn place_now(&self) -> Result<()> {
        self.transact(|transaction, slot| transaction.validate_for_gpu(slot))
    }
}

/// Describes a buffer to be created.
#[must_use = "a builder creates nothing until `create`"]
#[derive(Debug)]
pub struct BufferBuilder {
    manager: Arc<Manager>,
    client: Arc<ClientAccount>,
    size: Size,
    name: Option<Box<str>>,
    places: Vec<Place>,
    priority: usize,
    caching: Caching,
    p2p: P2p,
}

impl BufferBuilder {
    pub(crate) fn new(manager: Arc<Manager>, client: Arc<ClientAccount>, size: Size) -> BufferBuilder {
        let (caching, p2p) = (Caching::Cached, P2p::default());
        BufferBuilder { manager, client, size, name: None, places: Vec::new(), priority: 1, caching, p2p }
    }

    /// A name for people: in traces, reports and errors.
    pub fn name(self, name: impl Into<String>) -> BufferBuilder {
        BufferBuilder { name: Some(name.into().into_boxed_str()), ..self }
    }

    /// Adds the best place.
    pub fn prefer(self, place: Place) -> BufferBuilder {
        self.or(place)
    }

    /// Adds the next best place. Without any, a buffer lives in VRAM.
    pub fn or(mut self, place: Place) -> BufferBuilder {
        self.places.push(place);
        self
    }

    /// Its eviction priority, 0 (goes first) to 3 (goes last); 1 by default.
    pub fn priority(self, priority: usize) -> BufferBuilder {
        BufferBuilder { priority, ..self }
    }

    /// Lets the CPU reach it in VRAM, where writes are combined and reads are slow. Without this, and unless VRAM is
    /// [cached](crate::Driver::vram_caching), a CPU map brings the buffer to system memory, where it reads as fast as anything.
    pub fn write_combined(self) -> BufferBuilder {
        BufferBuilder { caching: Caching::WriteCombined, ..self }
    }

    /// Lets the CPU reach it in VRAM even where every access goes to the device: an uncached BAR.
    pub fn uncached(self) -> BufferBuilder {
        BufferBuilder { caching: Caching::Uncached, ..self }
    }

    /// What other devices may do with it through the BAR; [`P2p::Allowed`] unless told otherwise.
    pub fn p2p(self, p2p: P2p) -> BufferBuilder {
        BufferBuilder { p2p, ..self }
    }

    /// Creates the buffer. It occupies nothing until its first use, and reads as zeros.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for a size of zero or one that overflows in whole pages, [`Error::InvalidPlacement`],
    /// [`Error::TooLarge`] when no place of it could ever hold the buffer.
    pub fn create(self) -> Result<Buffer> {
        let size_bytes = self.size.as_bytes();
        let footprint_bytes = checked_footprint(size_bytes)?;
        check_priority(self.priority)?;
        let places = if self.places.is_empty() { vec![Place::VRAM] } else { self.places.clone() };
        let placement = Placement::new(places)?;
        self.manager.check_fits_somewhere(&placement, footprint_bytes)?;
        self.manager.counters.created(size_bytes);
        Ok(self.build(footprint_bytes, placement, None, BoState::default()))
    }

    /// Creates a buffer that is all of somebody else's `pages`, for good. Nobody knows yet that it is there.
    ///
    /// # Errors
    /// [`Error::InvalidSize`].
    pub(crate) fn create_in(self, pages: &Arc<OutsidePages>, imported: Imported) -> Result<Buffer> {
        let footprint_bytes = checked_footprint(self.size.as_bytes())?;
        let placement = Placement::new(vec![Place::GTT])?;
        let resource = Some(Resource::in_outside(pages, footprint_bytes));
        let state = BoState { resource, ..BoState::default() };
        Ok(self.build(footprint_bytes, placement, Some(imported), state))
    }

    fn build(
        self,
        footprint_bytes: u64,
        placement: Placement,
        imported: Option<Imported>,
        state: BoState,
    ) -> Buffer {
        Buffer(Arc::new(BufferObject {
            id: self.manager.next_buffer_id(),
            manager: self.manager,
            client: self.client,
            name: self.name,
            size_bytes: self.size.as_bytes(),
            footprint_bytes,
            tags: Tags::new(self.priority, self.p2p),
            placement,
            caching: self.caching,
            imported,
            evictions: AtomicU64::new(0),
            holds: AtomicUsize::new(0),
            exports: AtomicUsize::new(0),
            #[cfg(any(loom, shuttle))]
            watched: Arc::default(),
            reservation: Reservation::new(state),
        }))
    }
}

fn checked_footprint(size_bytes: u64) -> Result<u64> {
    let error = |why| Error::InvalidSize { what: "a buffer", bytes: size_bytes, why };
    if size_bytes == 0 {
        return Err(error("is nothing"));
    }
    crate::region::round_up_to_pages(size_bytes)
        .ok_or_else(|| error("overflow when rounded up to whole pages"))
}
