//! `devpagemap topo` and `explain`: who can reach whose memory in a machine, how, and why.
//!
//! ```text
//!   source (sysfs, hwloc, NCCL)  ->  machine  ->  devices with names  ->  registry: a pagemap of each GPU, an importer of each device
//!                                                                               └──►  matrix, explanation, JSON
//! ```
//!
//! A GPU of which the bus sees only a part has two pagemaps, as it would have in a driver. Importers are taken for ones that let go when they are
//! told to and that can use addresses on the bus: what a driver could do, not what one does.

pub mod devices;
pub mod explain;
pub mod json;
pub mod matrix;
pub mod names;
pub mod source;
pub mod survey;

pub use survey::Survey;
