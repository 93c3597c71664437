//! What a command tells: on the terminal, as JSON, as a page, as a timeline.

pub mod html;
pub mod json;
pub mod output;
pub mod paint;
pub mod perfetto;
pub mod progress;
pub mod summary;
pub mod units;
