//! Copy and clear loops at the speed of the machine's memory.
//!
//! What a move copies was written long ago, by a device or before an eviction, so it is cold: each cache line
//! comes from memory, goes to memory, and is not wanted in the cache. Two things make that fast.
//!
//! - *Non-temporal stores* write whole lines without reading them first, a third less traffic.
//! - *Several pages at a time*: one 4 KiB page keeps too few lines in flight, because hardware prefetchers stop at its
//!   end. Taking a line from each of several pages in turn keeps as many prefetch streams going.
//!
//! ```text
//!   page a  0 4 8 ...        order in which 64-byte lines are copied; the pages may lie anywhere,
//!   page b  1 5 9 ...        so four small extents of a scattered buffer interleave as well as
//!   page c  2 6 10 ...       four neighbours do
//!   page d  3 7 11 ...
//! ```
//!
//! How many pages, and from which length on a run is better copied straight, depends on the prefetcher: Intel's wants
//! four pages always; AMD's wants eight, but follows a long run into its next page, so that [long
//! runs](Tuning::straight_min_bytes) go straight.
//!
//! Both lose to the C library on data that is already cached, so anything smaller than a quarter of the
//! second-level cache goes there. Non-temporal stores are weakly ordered: every function here ends with a
//! store fence when it has used them, so a plain release store (a signalled fence) publishes the bytes.
//!
//! The loops are chosen once, from what the processor reports: AVX-512, AVX2, or the C library alone.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

/// The unit of interleaving.
const PAGE_BYTES: usize = 4096;
/// The largest group of interleaved pages.
const GROUP_MAX: usize = 8;
/// A cache line; streamed destinations are aligned to it.
const LINE_BYTES: usize = 64;
/// Assumed where the processor does not tell.
const TYPICAL_L2_BYTES: usize = 1 << 20;

/// A run of bytes to copy; for clearing, `src` is not looked at.
#[derive(Copy, Clone, Debug)]
pub struct Run {
    /// Where the bytes go.
    pub dst: *mut u8,
    /// Where they come from.
    pub src: *const u8,
    /// How many.
    pub len_bytes: usize,
}

/// A family of copy loops.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Non-temporal 64-byte stores.
    Avx512,
    /// Non-temporal 32-byte stores.
    Avx2,
    /// The C library's `memcpy` and `memset`.
    Portable,
}

impl Kernel {
    /// The fastest one that this processor has.
    pub fn best() -> Kernel {
        *Kernel::available().first().unwrap_or(&Kernel::Portable)
    }

    /// Those that this processor has, fastest first.
    pub fn available() -> &'static [Kernel] {
        static AVAILABLE: OnceLock<Vec<Kernel>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let mut kernels = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                if std::is_x86_feature_detected!("avx512f") {
                    kernels.push(Kernel::Avx512);
                }
                if std::is_x86_feature_detected!("avx2") {
                    kernels.push(Kernel::Avx2);
                }
            }
            kernels.push(Kernel::Portable);
            kernels
        })
    }

    /// Copies every run with this kernel's streaming loop, whatever the size.
    ///
    /// # Safety
    /// As [`copy_scattered`].
    ///
    /// # Panics
    /// When this processor does not have the kernel.
    pub unsafe fn stream(self, runs: &[Run]) {
        assert!(Kernel::available().contains(&self), "{self:?} is not available here");
        let mut gather = Gather::new(self, tuning());
        for run in runs {
            // SAFETY: the caller's promise for every run; the kernel is available (asserted above).
            unsafe { gather.add(run) };
        }
        // SAFETY: as above; the gathered pages are parts of the runs.
        unsafe { gather.finish() };
    }

    /// Sets every run to `value` with this kernel's streaming loop, whatever the size.
    ///
    /// # Safety
    /// As [`fill_scattered`].
    ///
    /// # Panics
    /// When this processor does not have the kernel.
    pub unsafe fn stream_fill(self, runs: &[Run], value: u8) {
        assert!(Kernel::available().contains(&self), "{self:?} is not available here");
        for run in runs {
            // SAFETY: the caller's promise for every run; the kernel is available (asserted above).
            unsafe { self.fill_run(run, value) };
        }
        self.publish();
    }

    /// # Safety
    /// `run.dst` is valid for writes of `run.len_bytes`; the kernel is available.
    unsafe fn fill_run(self, run: &Run, value: u8) {
        let head = head_bytes(run);
        let lines = (run.len_bytes - head) / LINE_BYTES * LINE_BYTES;
        let tail = run.len_bytes - head - lines;
        // SAFETY: head + lines + tail is the run's length, which the caller vouches for; the middle starts
        // at a line and is whole lines, as the loops want.
        unsafe {
            run.dst.write_bytes(value, head);
            let middle = run.dst.add(head);
            match self {
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => x86::fill_lines_avx512(middle, value, lines),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => x86::fill_lines_avx2(middle, value, lines),
                _ => middle.write_bytes(value, lines),
            }
            middle.add(lines).write_bytes(value, tail);
        }
    }

    /// Orders the non-temporal stores made so far before every later store.
    fn publish(self) {
        if self != Kernel::Portable {
            publish();
        }
    }
}

/// Orders every store that this thread has made so far before every later one: non-temporal stores, and stores to memory whose
/// writes are combined, are not ordered by themselves.
pub fn publish() {
    #[cfg(target_arch = "x86_64")]
    x86::store_fence();
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
}

/// What depends on the processor's caches and prefetchers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// From how many bytes on the streaming loops are used: a quarter of the second-level cache.
    pub streaming_min_bytes: usize,
    /// How many pages are interleaved: 1, 4 or 8.
    pub group_pages: usize,
    /// From how many bytes on one run is copied without interleaving.
    pub straight_min_bytes: usize,
}

/// The values for this processor.
pub fn tuning() -> Tuning {
    static TUNING: OnceLock<Tuning> = OnceLock::new();
    *TUNING.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let (l2_bytes, is_amd) = (x86::l2_bytes().unwrap_or(TYPICAL_L2_BYTES), x86::is_amd());
        #[cfg(not(target_arch = "x86_64"))]
        let (l2_bytes, is_amd) = (TYPICAL_L2_BYTES, false);
        let (group_pages, straight_min_bytes) = if is_amd { (8, 64 << 10) } else { (4, usize::MAX) };
        Tuning { streaming_min_bytes: l2_bytes / 4, group_pages, straight_min_bytes }
    })
}

/// Copies `len_bytes` bytes.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len_bytes`, the two do not overlap, and nobody writes the
/// source or touches the destination meanwhile.
pub unsafe fn copy(dst: *mut u8, src: *const u8, len_bytes: usize) {
    // SAFETY: the caller's promise, for the one run.
    unsafe { copy_scattered(&[Run { dst, src, len_bytes }]) }
}

/// Sets `len_bytes` bytes to `value`.
///
/// # Safety
/// `dst` is valid for writes of `len_bytes`, and nobody else touches it meanwhile.
pub unsafe fn fill(dst: *mut u8, value: u8, len_bytes: usize) {
    // SAFETY: the caller's promise, for the one run.
    unsafe { fill_scattered(&[Run { dst, src: std::ptr::null(), len_bytes }], value) }
}

/// Copies every run. The loop is chosen by the sum of the sizes, and small runs interleave with each other.
///
/// # Safety
/// Each `src` is valid for reads and each `dst` for writes of its `len_bytes`; no destination overlaps any
/// source or another destination; nobody else writes the sources or touches the destinations meanwhile.
pub unsafe fn copy_scattered(runs: &[Run]) {
    if is_cold(runs) {
        // SAFETY: the caller's promise.
        return unsafe { Kernel::best().stream(runs) };
    }
    for run in runs {
        // SAFETY: the caller's promise.
        unsafe { run.dst.copy_from_nonoverlapping(run.src, run.len_bytes) };
    }
}

/// Sets every run to `value`. The loop is chosen by the sum of the sizes.
///
/// # Safety
/// Each `dst` is valid for writes of its `len_bytes`, and nobody else touches it meanwhile.
pub unsafe fn fill_scattered(runs: &[Run], value: u8) {
    if is_cold(runs) {
        // SAFETY: the caller's promise.
        return unsafe { Kernel::best().stream_fill(runs, value) };
    }
    for run in runs {
        // SAFETY: the caller's promise.
        unsafe { run.dst.write_bytes(value, run.len_bytes) };
    }
}

fn is_cold(runs: &[Run]) -> bool {
    runs.iter().map(|run| run.len_bytes).sum::<usize>() >= tuning().streaming_min_bytes
}

/// How many bytes come before the first whole line of the destination.
fn head_bytes(run: &Run) -> usize {
    (run.dst.addr().wrapping_neg() % LINE_BYTES).min(run.len_bytes)
}

/// One page to be copied; its destination starts at a line.
#[derive(Copy, Clone)]
struct Page {
    dst: *mut u8,
    src: *const u8,
}

impl Page {
    const NONE: Page = Page { dst: std::ptr::null_mut(), src: std::ptr::null() };
}

/// Collects pages until there are enough to interleave.
struct Gather {
    kernel: Kernel,
    tuning: Tuning,
    pages: [Page; GROUP_MAX],
    count: usize,
}

impl Gather {
    fn new(kernel: Kernel, tuning: Tuning) -> Gather {
        Gather { kernel, tuning, pages: [Page::NONE; GROUP_MAX], count: 0 }
    }

    /// # Safety
    /// The run is as [`copy_scattered`] wants it, until `finish` has returned; the kernel is available.
    unsafe fn add(&mut self, run: &Run) {
        if self.kernel == Kernel::Portable {
            // SAFETY: the caller's promise.
            return unsafe { run.dst.copy_from_nonoverlapping(run.src, run.len_bytes) };
        }
        let head = head_bytes(run);
        let pages = (run.len_bytes - head) / PAGE_BYTES;
        let tail = run.len_bytes - head - pages * PAGE_BYTES;
        let is_straight = run.len_bytes >= self.tuning.straight_min_bytes;
        // SAFETY: head + pages + tail is the run's length, which the caller vouches for; past the head the
        // destination is at a line.
        unsafe {
            run.dst.copy_from_nonoverlapping(run.src, head);
            let (dst, src) = (run.dst.add(head), run.src.add(head));
            for at in (0..pages).map(|page| page * PAGE_BYTES) {
                let page = Page { dst: dst.add(at), src: src.add(at) };
                if is_straight { self.kernel.copy_pages(&[page]) } else { self.push(page) }
            }
            let at = pages * PAGE_BYTES;
            dst.add(at).copy_from_nonoverlapping(src.add(at), tail);
        }
    }

    /// # Safety
    /// The page is part of a run given to `add`, its destination starts at a line.
    unsafe fn push(&mut self, page: Page) {
        self.pages[self.count] = page;
        self.count += 1;
        if self.count == self.tuning.group_pages {
            self.count = 0;
            let group = &self.pages[..self.tuning.group_pages];
            // SAFETY: pages of runs the caller vouches for, destinations at lines, kernel available.
            unsafe {
                match *group {
                    [a, b, c, d] => self.kernel.copy_pages(&[a, b, c, d]),
                    [a, b, c, d, e, f, g, h] => self.kernel.copy_pages(&[a, b, c, d, e, f, g, h]),
                    _ => group.iter().for_each(|page| self.kernel.copy_pages(&[*page])),
                }
            }
        }
    }

    /// # Safety
    /// As [`add`](Self::add).
    unsafe fn finish(self) {
        for page in &self.pages[..self.count] {
            // SAFETY: pages of runs the caller vouches for, destinations at lines, kernel available.
            unsafe { self.kernel.copy_pages(&[*page]) };
        }
        self.kernel.publish();
    }
}

impl Kernel {
    /// Copies N pages in turn, a line of each.
    ///
    /// # Safety
    /// The pages are valid and do not overlap, their destinations start at a line, the kernel is available.
    unsafe fn copy_pages<const N: usize>(self, pages: &[Page; N]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => x86::copy_pages_avx512(pages),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => x86::copy_pages_avx2(pages),
                _ => pages.iter().for_each(|page| page.dst.copy_from_nonoverlapping(page.src, PAGE_BYTES)),
            }
        }
    }
}
