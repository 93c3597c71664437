//! A window: a run of pages of one buffer, and the BAR pages that show them.
//!
//! What is shown is a [`Shown`], constant once it is made. Its buffer keeps it among its windows, the table of all windows
//! keeps it for its space, and users borrow it ([`devpagemap_fence::sync::lending`]): a user costs one step on one word.

use std::ops::Range;
use std::sync::{Arc, Weak};

use devpagemap_allocator::Span;
use devpagemap_fence::sync::lending::{Lendable, Lender, Loan};
use devpagemap_fence::{FenceSet, Held};

use super::{BarAddr, BarExtent, Windows, Zap};
use crate::region::bytes_of;

/// Pages of a buffer and where the BAR shows them. Everything in it is constant.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The table that it is in.
    pub(super) windows: Arc<Windows>,
    /// Its place there, which another may have once this is taken back.
    pub(super) key: usize,
    /// Pages of the buffer.
    pub(super) pages: Range<u64>,
    /// BAR pages, in the order of the buffer's.
    pub(super) spans: Vec<Span>,
    /// What must have signalled before the first access.
    pub(super) after: FenceSet,
}

impl Lendable for Shown {
    fn returned(lender: Lender<Shown>) {
        let windows = lender.windows.clone();
        windows.returned(lender);
    }
}

impl Shown {
    /// The bytes of the buffer that it shows.
    pub(super) fn bytes(&self) -> Range<u64> {
        bytes_of(&self.pages)
    }

    /// Where the BAR shows the part of `bytes` (of the buffer) that is in this window.
    fn push_extents(&self, bytes: &Range<u64>, extents: &mut Vec<BarExtent>) {
        let mut at = self.bytes().start;
        for span in &self.spans {
            let (start, end) = (at.max(bytes.start), (at + span.len_bytes).min(bytes.end));
            if start < end {
                let addr = BarAddr(span.start_bytes + (start - at));
                push_merged(extents, BarExtent { addr, len_bytes: end - start });
            }
            at += span.len_bytes;
        }
    }
}

fn push_merged(extents: &mut Vec<BarExtent>, next: BarExtent) {
    match extents.last_mut() {
        Some(last) if last.addr.0 + last.len_bytes == next.addr.0 => last.len_bytes += next.len_bytes,
        _ => extents.push(next),
    }
}

/// Bytes of a buffer that are shown in the BAR, until dropped.
///
/// While it exists these BAR pages show these bytes or, once the buffer has moved, nothing
/// ([`is_current`](Window::is_current)); never anything else. They are not reused before it is dropped, so keep few: what is
/// let go stays shown until the space is wanted, and asking for the same range again then costs next to nothing.
///
/// ```
/// use devpagemap::{Bar, Device, Place, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// let gpu = SoftwareGpu::builder().build()?;
/// let device = Device::builder(gpu).vram(Size::mib(16)).bar(Bar::Windows(Size::mib(1))).build()?;
/// let buffer = device.buffer(Size::mib(4)).prefer(Place::VRAM).create()?;
/// buffer.write_at(2 << 20, b"hello")?;
///
/// let window = buffer.window(2 << 20..(2 << 20) + 5)?;
/// buffer.wait()?;
/// window.after().wait()?;
/// let mut bytes = [0; 5];
/// device.driver().read_bar(window.extents()[0].addr, &mut bytes)?; // as a peer on the bus would
/// assert_eq!(&bytes, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a window that is dropped keeps its place in the BAR no longer"]
pub struct Window {
    /// What was asked for, in bytes of the buffer. Constant.
    bytes: Range<u64>,
    /// The first piece, nearly always the only one.
    first: Loan<Shown>,
    /// The others, in buffer order.
    rest: Vec<Loan<Shown>>,
}

impl Window {
    /// `pieces`, in buffer order, cover `bytes`.
    pub(super) fn of_pieces(bytes: Range<u64>, pieces: Vec<Loan<Shown>>) -> Window {
        let mut pieces = pieces.into_iter();
        let first = pieces.next().expect("a window of at least one byte has a piece");
        Window { bytes, first, rest: pieces.collect() }
    }

    #[inline]
    pub(super) fn of_one_piece(bytes: Range<u64>, piece: Loan<Shown>) -> Window {
        Window { bytes, first: piece, rest: Vec::new() }
    }

    fn pieces(&self) -> impl Iterator<Item = &Loan<Shown>> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Which bytes of the buffer it shows.
    pub fn bytes(&self) -> Range<u64> {
        self.bytes.clone()
    }

    /// Where the BAR shows them, in buffer order.
    pub fn extents(&self) -> Vec<BarExtent> {
        let mut extents = Vec::new();
        self.pieces().for_each(|piece| piece.push_extents(&self.bytes, &mut extents));
        extents
    }

    /// Whether what it keeps of the BAR shows nothing but these pages of the buffer.
    pub(crate) fn keeps_only(&self, pages: &Range<u64>) -> bool {
        self.pieces().all(|piece| pages.start <= piece.pages.start && piece.pages.end <= pages.end)
    }

    /// What must have signalled before the first access: former users of these BAR pages, and the driver's programming. What
    /// the bytes themselves wait for is told by [`Buffer::fences`](crate::Buffer::fences).
    pub fn after(&self) -> FenceSet {
        let mut after = FenceSet::new();
        self.pieces().for_each(|piece| after.merge(&piece.after));
        after
    }

    /// Whether the buffer has not moved away since. A buffer moves only under its reservation.
    pub fn is_current(&self) -> bool {
        self.pieces().all(Loan::is_current)
    }

    /// Has `follower` told when a piece of this window is taken away, and does not keep the window for it: the follower goes on
    /// using the BAR pages after the window is dropped, until it is [zapped](Zap::zap). Takes the aperture lock.
    ///
    /// False when a piece is gone already, and the follower must not use it.
    pub fn follow(&self, follower: &Weak<dyn Zap>) -> bool {
        let mut held = Held::in_destructor();
        self.pieces().all(|piece| piece.windows.follow(&piece.lender(), follower, &mut held))
    }

    /// Lets go of it although `fences` are outstanding: whoever uses these BAR pages next waits for them. Takes the aperture
    /// lock.
    pub fn release_after(self, fences: &FenceSet) {
        let mut held = Held::in_destructor();
        self.pieces().for_each(|piece| piece.windows.used_until(&piece.lender(), fences, &mut held));
    }
}
