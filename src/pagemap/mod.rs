//! Pagemaps and the registry: who can reach whose memory, by which route, and why.
//!
//! ```text
//!   Owner ── PagemapSpec ──join──► Pagemap ─┐
//!                                           ├── Registry ──publishes──► Snapshot ──► Decision, Explanation, runs of pages
//!            Profile ──────join──► Importer ┘      ▲
//!                                                  └── Machine, Rules, Observations
//! ```

mod decide;
mod decision;
mod handles;
mod inputs;
mod kernel_view;
mod observe;
mod owner;
mod profile;
mod reason;
mod redecide;
mod registry;
mod resolve;
mod revoke;
mod rules;
mod slots;
mod snapshot;
mod table;
mod tag;
mod way;

pub use decision::{Decision, Direction, LatencyClass, Route};
pub use handles::{JoinedImporter, Pagemap, Reader};
pub use kernel_view::KernelPeer;
pub use observe::{Observation, Observed, Party};
pub use owner::{BusWindow, Owner, PagemapSpec};
pub use profile::{Holding, Policy, Profile};
pub use reason::{Explanation, Reason, Remedy};
pub use registry::{Cause, Registry, Subscription, Update};
pub use resolve::{Run, Runs};
pub use revoke::{Pass, Phase, Revocation, RevokeCause, UnderRevoke};
pub use rules::{Crossing, KernelRules, Rules, Verdict};
pub use snapshot::Snapshot;
pub use tag::{ImporterId, PageTag, PagemapId};
