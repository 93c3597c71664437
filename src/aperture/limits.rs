//! How much of the BAR peers may use, and what becomes of those that come when it is full.
//!
//! ```text
//!   0            reopen        soft                 hard            BAR
//!   ├──────────────┼────────────┼────────────────────┼───────────────┤
//!   │ every buffer that allows p2p                   │  cpu_reserve: │
//!   │              └ re-opens ◄─┴─ closes for        │  never for    │
//!   │                              P2p::Allowed      │  peers        │
//! ```
//!
//! Two marks instead of one, so that a use that goes up and down by a page around the soft limit does not close and re-open
//! the gate, and send buffers to and fro, at each page.

use std::fmt;

use devpagemap_allocator::PAGE_BYTES;

use crate::error::{Error, Result};
use crate::size::Size;

/// Whether other devices may reach a buffer through the BAR, and how much that matters. Per buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum P2p {
    /// Peers get system memory, always.
    Never,
    /// Peers get the BAR while there is plenty of it: up to the soft limit.
    #[default]
    Allowed,
    /// As `Allowed`, up to the hard limit; buffers that are merely allowed make way.
    Prefer,
    /// Up to the hard limit, and an error instead of system memory. Never demoted for another buffer.
    Require,
}

/// What a map does when the BAR has no room for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnPressure {
    /// Buffers of lower rank make way; if they are not enough, as `FallBack`.
    #[default]
    Demote,
    /// The importer gets system memory.
    FallBack,
    /// An error, and nothing has changed.
    Refuse,
}

/// What has no room left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BarLimit {
    /// [`P2pLimits::soft`].
    Soft,
    /// [`P2pLimits::hard`].
    Hard,
    /// What one importer may use.
    Importer,
    /// What the buffers of one client may use.
    Client,
    /// [`P2pLimits::cpu_reserve`].
    CpuReserve,
    /// The BAR itself.
    Bar,
}

impl fmt::Display for BarLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BarLimit::Soft => "the p2p soft limit",
            BarLimit::Hard => "the p2p hard limit",
            BarLimit::Importer => "the importer's p2p limit",
            BarLimit::Client => "the client's p2p limit",
            BarLimit::CpuReserve => "the BAR reserve of the CPU",
            BarLimit::Bar => "the BAR",
        })
    }
}

/// Who makes way for whom: first by [`P2p`], then by eviction priority. Higher is kept longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) p2p: P2p,
    /// 0 to 3.
    pub(crate) priority: usize,
}

/// Thresholds for BAR pages in peer use. In whole pages: `reopen <= soft <= hard <= BAR - cpu_reserve`.
///
/// ```
/// use devpagemap::{P2pLimits, Size};
/// let limits = P2pLimits::for_bar(Size::mib(256));
/// assert_eq!(limits.cpu_reserve, Size::mib(32));
/// assert_eq!((limits.reopen, limits.soft, limits.hard), (Size::mib(140), Size::mib(168), Size::mib(224)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2pLimits {
    /// Use at which the gate closes for buffers that are merely [`P2p::Allowed`], which never take it further.
    pub soft: Size,
    /// Use at which it re-opens.
    pub reopen: Size,
    /// Use that is never exceeded.
    pub hard: Size,
    /// What peers leave to the CPU.
    pub cpu_reserve: Size,
}

impl P2pLimits {
    /// The default for a BAR of this size: an eighth for the CPU; of the rest three quarters for every buffer, and all of it
    /// for those with priority; open again at five eighths.
    pub fn for_bar(bar: Size) -> P2pLimits {
        let eighth = bar.as_bytes() / PAGE_BYTES / 8;
        let hard = bar.as_bytes() / PAGE_BYTES - eighth;
        let pages = |pages: u64| Size::bytes(pages * PAGE_BYTES);
        P2pLimits {
            soft: pages(hard - hard / 4),
            reopen: pages(hard / 8 * 5 + hard % 8 * 5 / 8),
            hard: pages(hard),
            cpu_reserve: pages(eighth),
        }
    }

    /// The marks in pages, for a BAR of this size.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for marks that are not whole pages, or not in their order.
    pub(crate) fn marks(&self, bar_bytes: u64) -> Result<Marks> {
        let named = [
            ("the p2p reopen mark", self.reopen),
            ("the p2p soft limit", self.soft),
            ("the p2p hard limit", self.hard),
            ("the BAR reserve of the CPU", self.cpu_reserve),
        ];
        let invalid = |what, bytes, why| Err(Error::InvalidSize { what, bytes, why });
        for (what, size) in named {
            if !size.as_bytes().is_multiple_of(PAGE_BYTES) {
                return invalid(what, size.as_bytes(), "is not a number of whole 4096-byte pages");
            }
        }
        let [reopen_bytes, soft_bytes, hard_bytes, reserve_bytes] = named.map(|(_, size)| size.as_bytes());
        if reopen_bytes > soft_bytes {
            return invalid(named[0].0, reopen_bytes, "is above the soft limit");
        }
        if soft_bytes > hard_bytes {
            return invalid(named[1].0, soft_bytes, "is above the hard limit");
        }
        if reserve_bytes > bar_bytes {
            return invalid(named[3].0, reserve_bytes, "is more than the BAR has");
        }
        if hard_bytes > bar_bytes - reserve_bytes {
            return invalid(named[2].0, hard_bytes, "leaves the CPU less of the BAR than its reserve");
        }
        Ok(Marks {
            reopen_pages: reopen_bytes / PAGE_BYTES,
            soft_pages: soft_bytes / PAGE_BYTES,
            hard_pages: hard_bytes / PAGE_BYTES,
        })
    }
}

/// [`P2pLimits`] that were checked, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) reopen_pages: u64,
    pub(crate) soft_pages: u64,
    pub(crate) hard_pages: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: u64 = 16 << 20;

    fn limits(reopen: u64, soft: u64, hard: u64, reserve: u64) -> P2pLimits {
        let [reopen, soft, hard, cpu_reserve] = [reopen, soft, hard, reserve].map(Size::mib);
        P2pLimits { soft, reopen, hard, cpu_reserve }
    }

    #[test]
    fn the_default_is_valid_for_every_bar_and_leaves_the_cpu_its_reserve() {
        for pages in (0..200).chain([1 << 14, 1 << 20, 1 << 32]) {
            let bar = Size::bytes(pages * PAGE_BYTES);
            let limits = P2pLimits::for_bar(bar);
            let marks = limits.marks(bar.as_bytes()).expect("the default is in order");
            assert_eq!(marks.hard_pages + limits.cpu_reserve.as_bytes() / PAGE_BYTES, pages);
        }
    }

    #[test]
    fn marks_out_of_their_order_are_refused_with_the_one_that_is_wrong() {
        assert!(limits(4, 4, 8, 8).marks(BAR).is_ok());
        for (wrong, named) in [
            (limits(5, 4, 8, 8), "the p2p reopen mark"),
            (limits(4, 9, 8, 8), "the p2p soft limit"),
            (limits(4, 4, 9, 8), "the p2p hard limit"),
            (limits(0, 0, 0, 17), "the BAR reserve of the CPU"),
        ] {
            let error = wrong.marks(BAR).expect_err("out of order");
            assert!(matches!(error, Error::InvalidSize { what, .. } if what == named), "{error}");
        }
    }

    #[test]
    fn marks_within_a_page_are_refused() {
        let odd = P2pLimits { soft: Size::bytes(6000), ..limits(0, 0, 8, 0) };
        let error = odd.marks(BAR).expect_err("not whole pages");
        assert!(
            matches!(error, Error::InvalidSize { what: "the p2p soft limit", bytes: 6000, .. }),
            "{error}"
        );
    }
}
