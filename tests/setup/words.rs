//! The words of a CPU map, as threads touch them.

use std::sync::atomic::{AtomicU64, Ordering};

use devpagemap::CpuMap;

/// A part of a map, word by word. It borrows the map, so the address is good.
#[derive(Clone, Copy)]
pub struct Words<'a>(&'a [AtomicU64]);

/// All whole words of a map that begins at a word.
pub fn words(map: &CpuMap) -> Words<'_> {
    let len = (map.len_bytes() / 8) as usize;
    // SAFETY: the map is borrowed and its address good for `len_bytes`; it begins at a page, or where a test put it, at a word. Nobody
    // makes references to these bytes but through atomics.
    Words(unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), len) })
}

impl<'a> Words<'a> {
    pub fn len(self) -> usize {
        self.0.len()
    }

    pub fn get(self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    pub fn set(self, index: usize, value: u64) {
        self.0[index].store(value, Ordering::Relaxed);
    }

    /// The first and the second part.
    pub fn halves(self) -> [Words<'a>; 2] {
        let (first, second) = self.0.split_at(self.0.len() / 2);
        [Words(first), Words(second)]
    }
}
