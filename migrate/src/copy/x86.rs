//! The loops for x86-64: some pages in turn, a line of each, with non-temporal stores.

use super::{LINE_BYTES, PAGE_BYTES, Page};
use std::arch::x86_64::{
    __cpuid, __m256i, __m512i, _mm_sfence, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_stream_si256,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_stream_si512,
};

/// Orders earlier non-temporal stores before every later store.
pub(super) fn store_fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() }
}

/// The size of one core's second-level cache, where the processor tells.
pub(super) fn l2_bytes() -> Option<usize> {
    const CACHES: u32 = 0x8000_0006;
    if __cpuid(0x8000_0000).eax < CACHES {
        return None;
    }
    let kib = __cpuid(CACHES).ecx >> 16;
    (kib > 0).then_some(kib as usize * 1024)
}

/// Whether the processor is AMD's, or of its line.
pub(super) fn is_amd() -> bool {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// # Safety
/// AVX-512F is available. Each page is valid for 4 KiB, its destination starts at a line, nothing overlaps.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy_pages_avx512<const N: usize>(pages: &[Page; N]) {
    for at in (0..PAGE_BYTES).step_by(LINE_BYTES) {
        for page in pages {
            // SAFETY: `at` + a line stays within the page, which the caller vouches for; `at` is whole lines, so the
            // destination stays aligned.
            unsafe {
                let line = _mm512_loadu_si512(page.src.add(at).cast::<__m512i>());
                _mm512_stream_si512(page.dst.add(at).cast::<__m512i>(), line);
            }
        }
    }
}

/// # Safety
/// AVX2 is available. Each page is valid for 4 KiB, its destination starts at a line, nothing overlaps.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy_pages_avx2<const N: usize>(pages: &[Page; N]) {
    const HALF_BYTES: usize = LINE_BYTES / 2;
    for at in (0..PAGE_BYTES).step_by(LINE_BYTES) {
        for page in pages {
            // SAFETY: `at` + a line stays within the page, which the caller vouches for; halves of an aligned
            // line are aligned to 32 bytes.
            unsafe {
                let (src, dst) = (page.src.add(at), page.dst.add(at));
                let low = _mm256_loadu_si256(src.cast::<__m256i>());
                let high = _mm256_loadu_si256(src.add(HALF_BYTES).cast::<__m256i>());
                _mm256_stream_si256(dst.cast::<__m256i>(), low);
                _mm256_stream_si256(dst.add(HALF_BYTES).cast::<__m256i>(), high);
            }
        }
    }
}

/// # Safety
/// AVX-512F is available; `dst` starts at a line and is valid for `len_bytes`, which is whole lines.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn fill_lines_avx512(dst: *mut u8, value: u8, len_bytes: usize) {
    let line = _mm512_set1_epi32(i32::from_ne_bytes([value; 4]));
    for at in (0..len_bytes).step_by(LINE_BYTES) {
        // SAFETY: a whole aligned line within `len_bytes`.
        unsafe { _mm512_stream_si512(dst.add(at).cast::<__m512i>(), line) };
    }
}

/// # Safety
/// AVX2 is available; `dst` starts at a line and is valid for `len_bytes`, which is whole lines.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn fill_lines_avx2(dst: *mut u8, value: u8, len_bytes: usize) {
    let half = _mm256_set1_epi8(value.cast_signed());
    for at in (0..len_bytes).step_by(LINE_BYTES / 2) {
        // SAFETY: an aligned half line within `len_bytes`.
        unsafe { _mm256_stream_si256(dst.add(at).cast::<__m256i>(), half) };
    }
}
