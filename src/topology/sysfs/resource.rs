//! A line of a function's `resource` table: where a BAR is on the bus, and what it is of.

/// A line: the first and the last byte, and the kernel's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    start: u64,
    end: u64,
    flags: u64,
}

impl Resource {
    const MEMORY: u64 = 0x200;
    // The bit of the register itself, which all kernels show, and the kernel's own, which has moved over the years.
    const PREFETCHABLE: u64 = 0x2008;
    const UNSET: u64 = 0x2000_0000;

    /// Reads a line; `None` for what is no range with flags.
    pub fn parse(line: &str) -> Option<Resource> {
        let mut numbers =
            line.split_whitespace().map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
        let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let resource = Resource { start, end, flags };
        (!resource.is_memory() || resource.len().is_some()).then_some(resource)
    }

    fn len(&self) -> Option<u64> {
        self.end.checked_sub(self.start)?.checked_add(1)
    }

    /// How long it is; 0 for one that is none.
    pub fn len_bytes(&self) -> u64 {
        if self.flags == 0 { 0 } else { self.len().unwrap_or(0) }
    }

    /// Where it begins; `None` when nobody has placed it.
    pub fn start(&self) -> Option<u64> {
        Some(self.start).filter(|_| self.flags & Self::UNSET == 0)
    }

    pub fn is_memory(&self) -> bool {
        self.flags & Self::MEMORY != 0
    }

    /// Whether reading has no side effects.
    pub fn is_prefetchable(&self) -> bool {
        self.flags & Self::PREFETCHABLE != 0
    }
}

/// What only those want to know who map it.
#[cfg(not(any(loom, shuttle)))]
impl Resource {
    const IO: u64 = 0x100;
    const OF_64_BITS: u64 = 0x10_0000;

    /// Whether it is of I/O ports.
    pub fn is_io(&self) -> bool {
        self.flags & Self::IO != 0
    }

    /// Whether the next number belongs to it too.
    pub fn takes_two(&self) -> bool {
        self.is_memory() && self.flags & Self::OF_64_BITS != 0
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_bar_is_of() {
        let memory =
            Resource::parse("0x0000004000000000 0x000000400fffffff 0x000000000014220c").expect("a line");
        assert!(memory.is_memory() && memory.is_prefetchable() && memory.takes_two() && !memory.is_io());
        assert_eq!((memory.start(), memory.len_bytes()), (Some(0x40_0000_0000), 256 << 20));
        let ports = Resource::parse("0xc040 0xc05f 0x40101").expect("a line");
        assert!(ports.is_io() && !ports.is_memory());
        assert_eq!(Resource::parse("0x0 0x0 0x0").map(|none| none.len_bytes()), Some(0));
        assert_eq!(Resource::parse("0x1000 0x1fff 0x20040200").and_then(|unset| unset.start()), None);
        for wrong in ["", "0x0 0x1", "0x10 0x0 0x200", "x y z", "0x0 0xffffffffffffffff 0x200"] {
            assert_eq!(Resource::parse(wrong), None, "{wrong:?}");
        }
    }
}
