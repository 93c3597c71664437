//! The aperture: what of VRAM can be reached over the bus, by the CPU and by peer devices, and who may use how much of it.
//!
//! ```text
//!   Bar::Prefix    BAR  ├──────────┤           the start of VRAM, always; nothing to program
//!                  VRAM ├──────────┼─────────────────────────────────────┤
//!
//!   Bar::Windows   BAR  ├─A─┼B┼────┼──C──┤    each page shows the page of VRAM that the driver was told
//!                  VRAM ├─────────B──────A──────────────────C─────────────┤
//! ```
//!
//! `bar.rs` has the two shapes and addresses in them, `change.rs` what a driver is told. Windows:
//!
//! ```text
//!   show            shows a buffer in the BAR, and hides it; what the rest of the manager calls
//!      ├─ of_buffer    a buffer's windows, by page; its reservation
//!      ├─ hunt         a search for space that is going on; the hunter's own
//!      └─ windows      all space, all windows; one lock
//!           ├─ table      who is taken back first
//!           └─ window     a window, and a user's handle of it
//!                └─ zap      those who follow a window without keeping it
//! ```
//!
//! Which peers may use how much of it, and who is told when it runs short:
//!
//! ```text
//!   pressure   what the rest of the manager calls: admits, gives back, tells
//!      └─ ledger   BAR pages in peer use, by buffer, importer and client; one lock
//!           ├─ book    its arithmetic; tally: the sums in it
//!           ├─ users   who uses which pages of a buffer
//!           ├─ gate    the marks with hysteresis
//!           └─ limits  what the application chose
//! ```

mod bar;
mod book;
mod change;
mod gate;
mod hunt;
mod ledger;
mod limits;
#[cfg(any(loom, shuttle))]
mod model;
mod of_buffer;
mod pinned;
#[cfg(test)]
mod plain_model;
mod pressure;
mod show;
mod table;
mod tally;
mod users;
mod window;
mod windows;
mod zap;

pub use bar::{Bar, BarAddr, BarExtent, BarMemory};
pub use change::{WindowChange, WindowEntry};
pub use gate::PressureLevel;
pub use limits::{BarLimit, OnPressure, P2p, P2pLimits};
#[cfg(any(loom, shuttle))]
pub use model::{LedgerMap, LedgerUser};
pub use pinned::PinnedWindow;
pub use window::Window;
pub use zap::Zap;

pub(crate) use ledger::{Account, AccountId, Charge, Ledger, Over, PlaceKey, Wish};
pub(crate) use limits::{Marks, Rank};
pub(crate) use of_buffer::BufferWindows;
pub(crate) use pressure::{Admitted, Room};
pub(crate) use show::Kept;
pub(crate) use windows::Windows;
