//! Checking a buffer's bytes from the CPU's side.

use super::contents::{Checker, Expected};

/// How much the CPU reads or writes at once.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;

/// Checks a buffer through the CPU, piece by piece.
pub(super) struct CpuCheck<'a> {
    /// Room for a chunk.
    pub(super) scratch: &'a mut [u8],
    pub(super) checker: &'a Checker,
    /// The buffer's, for mismatches.
    pub(super) name: &'a str,
}

impl CpuCheck<'_> {
    /// Reads the whole buffer with `read`, which gets an offset.
    ///
    /// # Errors
    /// That of `read`.
    pub(super) fn run(
        &mut self,
        size_bytes: u64,
        expected: &Expected,
        read: impl Fn(u64, &mut [u8]) -> devpagemap::Result<()>,
    ) -> devpagemap::Result<()> {
        let mut pass = self.checker.pass(expected);
        let mut at = 0;
        while at < size_bytes {
            let len = CHUNK_BYTES.min(size_bytes - at);
            let chunk = &mut self.scratch[..len as usize];
            read(at, chunk)?;
            pass.check(at, chunk);
            at += len;
        }
        pass.end(self.name, None);
        Ok(())
    }
}
