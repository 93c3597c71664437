//! Sharing: other devices that reach a buffer's bytes, through the BAR or in system memory.
//!
//! An importer *joins* a device, *attaches* to a buffer and *maps* ranges of it. A map is no pin: the buffer moves when it must, and the importer is
//! told before. What it maps again shows the new place. (Importers that cannot be told are in `pinned.rs`.)
//!
//! | file | what it is about |
//! |---|---|
//! | `importer.rs`, `attachment.rs`, `peer_map.rs` | who, of which buffer, which range of it |
//! | `accord.rs`, `arbiter.rs`, `explain.rs` | which way a map takes: what the registry says, and what all who are attached agree on |
//! | `map.rs`, `in_bar.rs`, `elsewhere.rs`, `staged.rs`, `fresh.rs` | the ways: the BAR, a private link, system memory, a copy |
//! | `scatter.rs`, `group.rs` | lists of addresses, and several buffers as one |
//! | `invalidate.rs`, `reroute.rs`, `pinned.rs` | telling importers to let go, and those who cannot be told |
//! | `export/` | buffers as dma-bufs, for importers outside of this process |
//! | `demote.rs`, `promote.rs` | leaving the BAR for others, and coming back |
//!
//! ```text
//!   map:   reservation { a live map of this range? share it : choose a route ─► take BAR pages ─► bring the buffer there }
//!   move:  reservation { mark every map stale ─► invalidate() each importer ─► queue the copy behind their fences }
//!   drop:  no reservation { one user less; the last of a map that is not stale gives its BAR pages back }
//! ```
//!
//! **Who says what is over.** A map counts its users in one word, together with the mark that says it is stale. Only the holder of
//! the reservation adds users or sets the mark; anybody may drop one at any time, inside of `invalidate` too. Whichever step
//! ends a live map, the last drop or the mark, finds that out from the word and gives back what it held: exactly one of the two.
//!
//! **Why no byte is touched too late.** A mover marks first and asks afterwards, so a user that is still there when the mark is set
//! is told, and one that had gone by then has said until when it uses the bytes, if it does. Both are fences that the copy waits for, and
//! the place that the copy leaves is reused only behind the copy.

mod accord;
mod arbiter;
mod attachment;
mod demote;
mod elsewhere;
mod explain;
mod export;
mod fresh;
mod group;
mod importer;
mod in_bar;
mod invalidate;
mod map;
mod peer_map;
mod pinned;
mod promote;
mod reroute;
mod revoke;
mod scatter;
mod staged;

pub use attachment::Attachment;
#[cfg(feature = "gbm")]
pub use export::Image;
#[cfg(not(any(loom, shuttle)))]
pub use export::{Export, Offers};
pub use export::{ExportRequest, Layout, PassedOver, Plane, Via, WhyNot};
pub use group::{GroupAttachment, GroupMap};
pub use importer::{Importer, InvalidateReason, Invalidated, Peer};
pub use map::PeerMapRequest;
pub use peer_map::{PeerAddr, PeerExtent, PeerMap};

pub(crate) use attachment::Peers;
pub(crate) use explain::Pagemaps;
#[cfg(any(loom, shuttle))]
pub use export::{ExportTable, Kept};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use export::{Exports, Known};
pub(crate) use pinned::{PinWatch, ShortPins};
pub(crate) use promote::Promoter;
pub(crate) use reroute::SharedBuffers;
pub(crate) use revoke::Drain;
pub use revoke::{LostBytes, Overdue, RevokeReport};
