//! Addresses and lists of extents: what a move reads and what it writes.
//!
//! A device sees two address spaces, VRAM and the system pages it can reach. An [`Addr`] names a byte in
//! one of them and cannot be mistaken for a byte of the other. Allocators hand out scattered memory, so
//! both ends of a move are an [`ExtentList`]: the bytes of a buffer in buffer order, each extent one
//! contiguous run. Neighbours are merged on the way in, so a list is as short as its memory allows.
//!
//! ```text
//!   buffer bytes   0 ......... 8K ... 12K ............ 20K
//!   ExtentList     [vram 64K +8K][vram 4K +4K][system 0 +8K]
//! ```

use std::fmt;

/// A byte offset in the device's VRAM.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VramAddr(pub u64);

/// A byte offset in the device's system-memory arena (the pages its copy engines can reach).
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysAddr(pub u64);

/// Which of the two memories an address is in.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The device's own memory.
    Vram,
    /// System pages that the device can reach.
    System,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Vram => "vram",
            Space::System => "system",
        })
    }
}

/// A byte address in one of the device's memories.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Addr {
    /// In VRAM.
    Vram(VramAddr),
    /// In system memory.
    System(SysAddr),
}

impl Addr {
    /// The address of byte `offset_bytes` of `space`.
    pub const fn new(space: Space, offset_bytes: u64) -> Addr {
        match space {
            Space::Vram => Addr::Vram(VramAddr(offset_bytes)),
            Space::System => Addr::System(SysAddr(offset_bytes)),
        }
    }

    /// Which memory this address is in.
    pub const fn space(self) -> Space {
        match self {
            Addr::Vram(_) => Space::Vram,
            Addr::System(_) => Space::System,
        }
    }

    /// The offset in that memory, in bytes.
    pub const fn offset(self) -> u64 {
        match self {
            Addr::Vram(VramAddr(offset)) | Addr::System(SysAddr(offset)) => offset,
        }
    }

    /// The address `bytes` further on in the same memory.
    ///
    /// # Panics
    /// When the offset would pass 2^64.
    pub const fn add(self, bytes: u64) -> Addr {
        match self.offset().checked_add(bytes) {
            Some(offset) => Addr::new(self.space(), offset),
            None => panic!("the address passes the end of its space"),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.space(), self.offset())
    }
}

impl From<VramAddr> for Addr {
    fn from(addr: VramAddr) -> Addr {
        Addr::Vram(addr)
    }
}

impl From<SysAddr> for Addr {
    fn from(addr: SysAddr) -> Addr {
        Addr::System(addr)
    }
}

/// A contiguous run of bytes in one memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first byte.
    pub addr: Addr,
    /// How many bytes.
    pub len_bytes: u64,
}

impl Extent {
    /// The run of `len_bytes` bytes that starts at `addr`.
    pub const fn new(addr: Addr, len_bytes: u64) -> Extent {
        Extent { addr, len_bytes }
    }

    /// The offset of the byte after the last one.
    pub const fn end_offset(&self) -> u64 {
        self.addr.offset() + self.len_bytes
    }

    /// Whether the two runs share a byte.
    pub const fn overlaps(&self, other: &Extent) -> bool {
        self.addr.space() as u8 == other.addr.space() as u8
            && self.addr.offset() < other.end_offset()
            && other.addr.offset() < self.end_offset()
    }
}

/// The bytes of a buffer, in buffer order, as runs of memory.
///
/// ```
/// use devpagemap_migrate::{Addr, Extent, ExtentList, Space};
///
/// let mut list = ExtentList::new();
/// list.push(Extent::new(Addr::new(Space::Vram, 0x1000), 0x1000));
/// list.push(Extent::new(Addr::new(Space::Vram, 0x2000), 0x1000)); // continues the first: merged
/// list.push(Extent::new(Addr::new(Space::System, 0), 0x1000));
/// assert_eq!((list.iter().count(), list.len_bytes()), (2, 0x3000));
/// assert_eq!(list.slice(0x1800, 0x1000).iter().count(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentList {
    /// No extent is empty, none continues the one before it.
    extents: Vec<Extent>,
    /// The sum of the extents' lengths.
    len_bytes: u64,
}

impl ExtentList {
    /// A list without bytes.
    pub const fn new() -> ExtentList {
        ExtentList { extents: Vec::new(), len_bytes: 0 }
    }

    /// Appends a run; one that continues the last is merged with it, an empty one changes nothing.
    ///
    /// # Panics
    /// When the run passes the end of its space, or the list's length passes 2^64.
    pub fn push(&mut self, extent: Extent) {
        if extent.len_bytes == 0 {
            return;
        }
        let end = extent.addr.offset().checked_add(extent.len_bytes);
        assert!(end.is_some(), "an extent of {} bytes at {} passes its space", extent.len_bytes, extent.addr);
        self.len_bytes = self
            .len_bytes
            .checked_add(extent.len_bytes)
            .expect("a list of extents is shorter than 2^64 bytes");
        match self.extents.last_mut() {
            Some(last)
                if last.addr.space() == extent.addr.space() && last.end_offset() == extent.addr.offset() =>
            {
                last.len_bytes += extent.len_bytes;
            }
            _ => self.extents.push(extent),
        }
    }

    /// The extents, in buffer order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.extents.iter()
    }

    /// The extents, in buffer order.
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents
    }

    /// How many bytes the list holds in all.
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the list holds no byte.
    pub const fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// The part of the list that holds bytes `offset_bytes .. offset_bytes + len_bytes` of the buffer.
    ///
    /// # Panics
    /// When the list does not have these bytes.
    pub fn slice(&self, offset_bytes: u64, len_bytes: u64) -> ExtentList {
        let fits = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes);
        assert!(fits, "bytes {offset_bytes}+{len_bytes} are not within a list of {} bytes", self.len_bytes);
        let mut part = ExtentList::new();
        let (mut skip, mut left) = (offset_bytes, len_bytes);
        for extent in &self.extents {
            if left == 0 {
                break;
            }
            if skip >= extent.len_bytes {
                skip -= extent.len_bytes;
                continue;
            }
            let take = left.min(extent.len_bytes - skip);
            part.push(Extent::new(extent.addr.add(skip), take));
            left -= take;
            skip = 0;
        }
        part
    }

    /// Whether a byte of this list is also in `other`.
    pub fn overlaps(&self, other: &ExtentList) -> bool {
        let touches =
            |list: &ExtentList, space| list.extents.iter().any(|extent| extent.addr.space() == space);
        if ![Space::Vram, Space::System]
            .into_iter()
            .any(|space| touches(self, space) && touches(other, space))
        {
            return false;
        }
        let sorted = |list: &ExtentList| {
            let mut extents = list.extents.clone();
            extents.sort_unstable_by_key(|extent| extent.addr);
            extents
        };
        let (ours, theirs) = (sorted(self), sorted(other));
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (ours.get(i), theirs.get(j)) {
            if a.overlaps(b) {
                return true;
            }
            if a.addr < b.addr { i += 1 } else { j += 1 }
        }
        false
    }
}

impl From<Extent> for ExtentList {
    fn from(extent: Extent) -> ExtentList {
        ExtentList::from_iter([extent])
    }
}

impl FromIterator<Extent> for ExtentList {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> ExtentList {
        let mut list = ExtentList::new();
        list.extend(extents);
        list
    }
}

impl Extend<Extent> for ExtentList {
    fn extend<I: IntoIterator<Item = Extent>>(&mut self, extents: I) {
        for extent in extents {
            self.push(extent);
        }
    }
}

impl<'a> IntoIterator for &'a ExtentList {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
