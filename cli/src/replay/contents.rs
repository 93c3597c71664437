//! What every buffer of a replay must hold, while writers are still queued, run, or have failed.
//!
//! ```text
//!   version 0 ◄── version 1 ◄── version 2 ◄── version 3      each with the fence of the batch that writes it
//!    zeros        uploaded       failed        queued
//!                 └────── what readers after batch 2 must find: a failed batch wrote nothing
//! ```
//!
//! A batch learns at its submission which versions it builds on, and only looks at their fences when it runs: by then
//! every earlier writer has ended, one way or the other. Had the memory manager run it too early, the version that it
//! expects is not there yet, and the check says so.

use super::pattern::{Pattern, Wrong};
use devpagemap::{Buffer, Fence};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bytes that are checked and filled in one go, small enough to stay in a core's cache.
const CHUNK_BYTES: usize = 64 << 10;
/// Mismatches that are kept in full; all are counted.
const MAX_KEPT: usize = 16;

/// One version of a buffer's contents.
#[derive(Debug)]
struct Version {
    number: u32,
    /// Of the batch that writes it; none if the CPU wrote it. Set once, before anybody can build on this version.
    fence: OnceLock<Fence>,
    /// What holds if that batch fails; dropped once it is known not to have.
    previous: Mutex<Option<Arc<Version>>>,
}

impl Version {
    fn new(number: u32, previous: Option<Arc<Version>>) -> Arc<Version> {
        Arc::new(Version { number, fence: OnceLock::new(), previous: Mutex::new(previous) })
    }

    fn has_failed(&self) -> bool {
        self.fence.get().and_then(Fence::status).is_some_and(|status| status.is_err())
    }

    fn is_written(&self) -> bool {
        self.fence.get().is_none_or(|fence| fence.status().is_some_and(|status| status.is_ok()))
    }

    fn previous(&self) -> Option<Arc<Version>> {
        self.previous.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The last version whose batch has not failed.
fn standing(mut version: Arc<Version>) -> Arc<Version> {
    while version.has_failed() {
        match version.previous() {
            Some(previous) => version = previous,
            None => break,
        }
    }
    version
}

/// The contents of one buffer, as the submitting thread sees them.
#[derive(Debug)]
pub struct Contents {
    seed: u64,
    bo: u32,
    size_bytes: u64,
    next: u32,
    head: Arc<Version>,
}

/// What one batch must find in a buffer.
#[derive(Clone, Debug)]
pub struct Expected {
    seed: u64,
    bo: u32,
    size_bytes: u64,
    version: Arc<Version>,
}

/// A version that a batch is about to write.
#[derive(Debug)]
pub struct Coming {
    version: Arc<Version>,
    pattern: Pattern,
}

impl Coming {
    /// The bytes to write.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }
}

impl Contents {
    /// Of a new buffer: zeros.
    pub fn zeros(seed: u64, bo: u32, size_bytes: u64) -> Contents {
        Contents { seed, bo, size_bytes, next: 1, head: Version::new(0, None) }
    }

    /// What a reader that is submitted now must find.
    pub fn expected(&self) -> Expected {
        let version = standing(self.head.clone());
        Expected { seed: self.seed, bo: self.bo, size_bytes: self.size_bytes, version }
    }

    /// What the CPU must find once all work on `buffer` has ended, well or not; waits for that.
    pub fn settled(&self, buffer: &Buffer) -> Expected {
        // A batch that failed wrote nothing, which is what `expected` answers to.
        let _failures_count_as_unwritten = buffer.wait();
        self.expected()
    }

    /// The version after this one. It counts once it is handed to [`Contents::written_by`] or [`Contents::written`].
    pub fn coming(&mut self) -> Coming {
        let previous = standing(self.head.clone());
        if previous.is_written() {
            *previous.previous.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let number = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        let pattern = Pattern::of(self.seed, self.bo, number);
        Coming { version: Version::new(number, Some(previous)), pattern }
    }

    /// A batch that writes it is queued, and this is its fence.
    pub fn written_by(&mut self, coming: Coming, fence: &Fence) {
        let fresh = coming.version.fence.set(fence.clone()).is_ok();
        debug_assert!(fresh, "a version has one writer");
        self.head = coming.version;
    }

    /// The CPU has written it.
    pub fn written(&mut self, coming: Coming) {
        self.head = coming.version;
    }
}

impl Expected {
    /// The bytes, as far as is known now.
    pub fn pattern(&self) -> Pattern {
        let version = standing(self.version.clone());
        Pattern::of(self.seed, self.bo, version.number)
    }

    /// The part of `bytes` (at `offset_bytes` of the buffer's pages) that belongs to the buffer.
    fn within(&self, offset_bytes: u64, len: usize) -> usize {
        self.size_bytes.saturating_sub(offset_bytes).min(len as u64) as usize
    }
}

/// A buffer that did not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The buffer's name.
    pub buffer: String,
    /// The batch that noticed; `None`: the check when it was freed or mapped.
    pub batch: Option<u32>,
    /// The first wrong word.
    pub wrong: Wrong,
}

/// Counts what was checked, from all threads.
#[derive(Debug, Default)]
pub struct Checker {
    bytes_checked: AtomicU64,
    mismatches: AtomicU64,
    kept: Mutex<Vec<Mismatch>>,
}

/// One pass over the bytes of one buffer.
pub struct Pass<'a> {
    checker: &'a Checker,
    expected: &'a Expected,
    pattern: Pattern,
    bytes: u64,
    wrong: Option<Wrong>,
}

impl Checker {
    /// Begins to check a buffer.
    pub fn pass<'a>(&'a self, expected: &'a Expected) -> Pass<'a> {
        Pass { checker: self, pattern: expected.pattern(), expected, bytes: 0, wrong: None }
    }

    /// Bytes checked so far.
    pub fn bytes_checked(&self) -> u64 {
        self.bytes_checked.load(Ordering::Relaxed)
    }

    /// Buffers found wrong so far, once for each batch or free that noticed.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// The first of them.
    pub fn kept(&self) -> Vec<Mismatch> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Pass<'_> {
    /// Checks the bytes that lie at `offset_bytes` of the buffer.
    pub fn check(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let len = self.expected.within(offset_bytes, bytes.len());
        self.bytes += len as u64;
        if let Err(wrong) = self.pattern.check(offset_bytes, &bytes[..len]) {
            self.wrong.get_or_insert(wrong);
        }
    }

    /// Checks them and then writes the new version over them, chunk by chunk.
    pub fn check_and_fill(&mut self, offset_bytes: u64, bytes: &mut [u8], new: Pattern) {
        let len = self.expected.within(offset_bytes, bytes.len());
        let mut at = offset_bytes;
        for chunk in bytes[..len].chunks_mut(CHUNK_BYTES) {
            self.check(at, chunk);
            new.fill(at, chunk);
            at += chunk.len() as u64;
        }
    }

    /// Ends the pass; what was wrong is recorded for `buffer`.
    pub fn end(self, buffer: &str, batch: Option<u32>) {
        self.checker.bytes_checked.fetch_add(self.bytes, Ordering::Relaxed);
        let Some(wrong) = self.wrong else { return };
        self.checker.mismatches.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.checker.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push(Mismatch { buffer: buffer.to_string(), batch, wrong });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap::{FenceError, Timeline};

    fn pattern(version: u32) -> Pattern {
        Pattern::of(9, 4, version)
    }

    #[test]
    fn a_failed_writer_wrote_nothing_even_when_that_is_known_only_later() {
        let timeline = Timeline::new("test");
        let mut contents = Contents::zeros(9, 4, 4096);
        let uploaded = contents.coming();
        contents.written(uploaded);
        let (first, second) = (timeline.next_point(), timeline.next_point());
        let coming = contents.coming();
        contents.written_by(coming, &first);
        let after_first = contents.expected();
        let coming = contents.coming();
        contents.written_by(coming, &second);
        let after_second = contents.expected();
        assert_eq!((after_first.pattern(), after_second.pattern()), (pattern(2), pattern(3)));

        timeline.fail(first.seqno(), FenceError::Cancelled);
        assert_eq!((after_first.pattern(), after_second.pattern()), (pattern(1), pattern(3)));
        timeline.fail(second.seqno(), FenceError::Cancelled);
        assert_eq!(after_second.pattern(), pattern(1));
        assert_eq!(contents.expected().pattern(), pattern(1));
    }

    #[test]
    fn versions_that_are_known_to_stand_forget_what_was_before() {
        let timeline = Timeline::new("test");
        let mut contents = Contents::zeros(9, 4, 4096);
        for _ in 0..100_000 {
            let fence = timeline.next_point();
            let coming = contents.coming();
            contents.written_by(coming, &fence);
            timeline.signal(fence.seqno());
        }
        let before = contents.head.previous().expect("the last writer is not looked at yet");
        assert!(before.previous().is_none());
        assert_eq!(contents.expected().pattern(), pattern(100_000));
    }

    #[test]
    fn bytes_behind_the_end_of_the_buffer_are_nobodys_business() {
        let checker = Checker::default();
        let contents = Contents::zeros(9, 4, 5000);
        let expected = contents.expected();
        let mut page = vec![0; 8192];
        page[5000..].fill(7);
        let mut pass = checker.pass(&expected);
        pass.check(0, &page);
        pass.end("b", None);
        assert_eq!((checker.bytes_checked(), checker.mismatches()), (5000, 0));
        page[4999] = 1;
        let mut pass = checker.pass(&expected);
        pass.check(0, &page);
        pass.end("b", Some(3));
        assert_eq!(checker.mismatches(), 1);
        let kept = checker.kept();
        assert_eq!(
            (kept[0].buffer.as_str(), kept[0].batch, kept[0].wrong.offset_bytes),
            ("b", Some(3), 4992)
        );
    }
}
