//! What the library's operations cost, beside what they would cost at least and beside what others ask for the same,
//! measured in the same run.
//!
//! | file | what it holds |
//! |---|---|
//! | `contest.rs` | several ways to do one thing, in interleaved rounds |
//! | `session.rs` | the command line, and the rows of the table at the end |
//! | `spread.rs`, `report.rs` | medians; figures and tables as people read them |
//! | `ours.rs` | every call into the library that is measured, each a small function |
//! | `floors.rs` | what fences and locks would cost at least |
//! | `peers.rs` | others' events and ordered locks |
//! | `cores.rs`, `pair.rs` | putting threads on cores of their own; two threads that run at the same time |
//! | `inert.rs` | a device whose driver does nothing at all |
//! | `picks.rs` | random numbers, and random choices of objects |
//! | `sleeper.rs` | a thread that is put to sleep and says when it woke |
//! | `lock_policy.rs` | wound-wait and wait-die locks to compare the two rules |
//!
//! The programs are in `benches/`: `aperture`, `fences`, `locks`, `shared_locks`, `wake_ups`, `history`, `lock_policy`, `mappings`, `staging`. What they measure and what
//! they found is on the page `docs/benchmarks.md`.

pub mod contest;
pub mod cores;
pub mod floors;
pub mod inert;
pub mod lock_policy;
pub mod ours;
pub mod pair;
pub mod peers;
pub mod picks;
pub mod report;
pub mod session;
pub mod sleeper;
pub mod spread;
