//! How a CPU mapping may be cached.

/// How the CPU's accesses to some memory are cached, the slowest first.
///
/// ```
/// use devpagemap::Caching;
/// assert!(Caching::Cached > Caching::WriteCombined && Caching::WriteCombined > Caching::Uncached);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caching {
    /// Every access goes to the memory. How device registers are mapped.
    Uncached,
    /// Writes are gathered and sent in lines; every read goes to the memory. How a BAR over PCIe is mapped.
    WriteCombined,
    /// As the CPU's own memory. System memory always is; VRAM where the link is coherent.
    Cached,
}
