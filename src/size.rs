//! Sizes with their unit in the type.

use std::fmt;

/// A number of bytes.
///
/// ```
/// use devpagemap::Size;
/// assert_eq!(Size::mib(2).as_bytes(), 2 * 1024 * 1024);
/// assert_eq!(Size::mib(384).to_string(), "384 MiB");
/// assert_eq!(Size::bytes(348_028_928).to_string(), "331.9 MiB");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// `n` bytes.
    pub const fn bytes(n: u64) -> Size {
        Size(n)
    }

    /// `n` KiB; saturates at `u64::MAX` bytes, which every consumer refuses as too large.
    pub const fn kib(n: u64) -> Size {
        Size(n.saturating_mul(1 << 10))
    }

    /// `n` MiB; saturates like [`Size::kib`].
    pub const fn mib(n: u64) -> Size {
        Size(n.saturating_mul(1 << 20))
    }

    /// `n` GiB; saturates like [`Size::kib`].
    pub const fn gib(n: u64) -> Size {
        Size(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(unit, _)| self.0 >= *unit) {
            None => write!(f, "{} B", self.0),
            Some((unit, name)) if self.0.is_multiple_of(*unit) => write!(f, "{} {name}", self.0 / unit),
            Some((unit, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
        }
    }
}
