//! Buffer objects: what they are, where they may be, how they get there, how they leave.

mod cpu_hint;
mod evacuate;
mod evict;
mod exported;
mod gtt;
mod homes;
#[cfg(not(any(loom, shuttle)))]
mod in_arena;
mod make_way;
mod object;
mod outside;
mod placement;
mod plan;
mod reach;
mod release;
mod tags;
mod transact;
mod validate;
mod victims;
mod weak;
mod window;

pub use evict::EvictionPolicy;
pub use object::{Buffer, BufferBuilder};
pub use placement::{Place, Placement};
pub use reach::CpuAccess;

pub(crate) use object::{Away, BoState, BufferObject, check_range};
pub(crate) use reach::{CpuWish, Reached};
pub(crate) use transact::Reach;
pub(crate) use validate::{Found, Pass, Transaction};
pub(crate) use victims::member_ids;
pub(crate) use weak::WeakBuffer;
