//! What a fence's work does to a buffer, and so who has to wait for it.

/// What a fence's work does to the buffer; the order is that of who must be waited for first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Usage {
    /// Memory management: moves and clears. Everybody waits for these.
    Kernel,
    /// Writes by submissions. Readers and writers wait for these.
    Write,
    /// Reads by submissions. Writers wait for these.
    Read,
    /// Anything that keeps the memory in use, without implicit synchronisation.
    Bookkeep,
}

impl Usage {
    /// Every usage, strongest first.
    pub const ALL: [Usage; 4] = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];

    /// The weakest usage an access has to wait for: a writer waits for readers, a reader for writers.
    pub fn waits_for(write: bool) -> Usage {
        if write { Usage::Read } else { Usage::Write }
    }
}
