//! The BAR aperture: which peers may use how much of it, and who is told when it runs short.
//!
//! ```text
//!   pressure   what the rest of the manager calls: admits, gives back, tells
//!      └─ ledger   BAR pages in peer use, by buffer, importer and client; one lock
//!           ├─ book    its arithmetic
//!           ├─ users   who uses which pages of a buffer
//!           ├─ gate    the marks with hysteresis
//!           └─ limits  what the application chose
//! ```

mod book;
mod gate;
mod ledger;
mod limits;
#[cfg(any(loom, shuttle))]
mod model;
#[cfg(test)]
mod plain_model;
mod pressure;
mod users;

pub use gate::PressureLevel;
pub use limits::{BarLimit, OnPressure, P2p, P2pLimits};
#[cfg(any(loom, shuttle))]
pub use model::{LedgerMap, LedgerUser};

pub(crate) use ledger::{Account, AccountId, Candidate, Charge, Ledger, Over, PlaceKey, Wish};
pub(crate) use limits::{Marks, Rank};
pub(crate) use pressure::{Admitted, Room};
