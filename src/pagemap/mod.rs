//! Pagemaps and the registry: who can reach whose memory, by which route, and why.

mod decision;
mod profile;

pub use decision::{Decision, Direction, Explanation, LatencyClass, Reason, Route};
pub use profile::{Holding, Policy, Profile};
