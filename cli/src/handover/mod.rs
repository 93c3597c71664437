//! How a dma-buf goes from one process to another: a Unix socket, a descriptor beside a header that is checked, and an answer.
//!
//! ```text
//!   devpagemap export                          devpagemap import
//!   listens at PATH                            connects
//!        │ ── Offer: size, seed, sum  + fd ──►      │   checks the header against the descriptor,
//!        │                                          │   waits until the bytes have come (poll),
//!        │                                          │   compares every one, writes its own
//!        │ ◄── Answer: what it found, what it wrote │
//!        │     compares every byte                  │
//!        │ ── Verdict: what it found ───────►       │
//! ```
//!
//! The socket keeps messages apart (`SOCK_SEQPACKET`), so one that was cut off is noticed, and a descriptor belongs to exactly one. Numbers
//! are little-endian. The bytes themselves never go through the socket.

pub mod interrupt;
pub mod messages;
pub mod refusal;
pub mod socket;
pub mod wire;

pub use interrupt::{Interrupt, Woken};
pub use messages::{Answer, Message, Offer, Verdict};
pub use refusal::Refusal;
pub use socket::{Listener, Peer};
