//! What this process and the kernel have now, and waiting until that is as it should be.

use std::time::{Duration, Instant};

/// Long enough that only what never comes takes longer.
pub const FOREVER: Duration = Duration::from_secs(30);

/// Where the kernel lists its dma-bufs.
pub const DMA_BUFS: &str = "/sys/kernel/debug/dma_buf/bufinfo";

/// Returns when it is so.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < FOREVER, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the kernel's list has a dma-buf of that name.
pub fn is_listed(name: &str) -> bool {
    let list = std::fs::read_to_string(DMA_BUFS).expect("debugfs is mounted");
    list.lines().any(|line| line.split_whitespace().any(|word| word == name))
}

/// How many descriptors this process has.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("there is /proc").count()
}
