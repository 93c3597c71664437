//! Scenarios on the public API, one module a theme. What counts the threads of the process has a process of its own
//! (`tests/teardown.rs`, `tests/stress.rs`).

mod arbiter;
#[path = "../setup/child.rs"]
mod child;
mod contention;
mod cpu_access;
mod cpu_maps;
mod cpu_windows;
mod demotion;
mod dense_cpu_access;
mod determinism;
mod drives;
mod events;
mod eviction;
mod faults;
mod importers;
mod lock_order;
mod model;
mod moving_maps;
mod pci_bars;
mod pci_maps;
mod peer_faults;
mod peer_windows;
mod pinned_importers;
mod pipelining;
mod reach;
#[path = "../setup/refusing.rs"]
mod refusing;
mod relocation;
mod revoke;
mod revoke_faults;

mod seed_2016_exporter_decides;
mod seed_2016_memory;
mod seed_2019;
mod seed_2020;
#[path = "../setup/mod.rs"]
mod setup;
mod sharing;
mod staged;
mod staged_model;
mod staging;
mod validate;
mod window_model;
mod windows;
#[path = "../setup/words.rs"]
mod words;
