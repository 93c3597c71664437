//! What is told: the events, and the reasons that they name.

use std::fmt;
use std::sync::Arc;

use crate::aperture::{BarLimit, PressureLevel};
use crate::pagemap::RevokeCause;

/// Why a peer does not get the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PeerReason {
    /// A limit is reached.
    Over(BarLimit),
    /// A buffer of higher rank needed the room.
    Outranked {
        /// That buffer.
        by: u64,
    },
    /// The buffer is [`P2p::Never`](crate::P2p::Never).
    Never,
    /// The placement of the buffer has it in system memory.
    LivesInSystemMemory,
    /// Other importers have mapped it in system memory.
    SharedInSystemMemory,
    /// The part of VRAM that the BAR shows has no room for the buffer.
    NoVisibleRoom,
    /// The importer does not reach the BAR, or had better not. [`Buffer::explain`](crate::Buffer::explain) tells the whole of it.
    NoPeerAccess,
}

impl PeerReason {
    /// As it is counted: without the buffer's name.
    fn kind(&self) -> String {
        match self {
            PeerReason::Over(limit) => format!("{limit} is reached"),
            PeerReason::Outranked { .. } => "a buffer of higher rank needs the BAR".to_string(),
            PeerReason::Never => "the buffer is not for peers".to_string(),
            PeerReason::LivesInSystemMemory => "the buffer lives in system memory".to_string(),
            PeerReason::SharedInSystemMemory => "others have mapped the buffer in system memory".to_string(),
            PeerReason::NoVisibleRoom => "the visible part of VRAM has no room".to_string(),
            PeerReason::NoPeerAccess => "the importer does not reach the BAR".to_string(),
        }
    }
}

impl fmt::Display for PeerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerReason::Outranked { by } => write!(f, "buffer {by}, of higher rank, needs the BAR"),
            _ => f.write_str(&self.kind()),
        }
    }
}

/// Something that happened. Pages are of 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Peers' use of the BAR has reached a mark.
    BarPressure {
        /// Which.
        level: PressureLevel,
        /// The use that reached it.
        used_pages: u64,
        /// The mark.
        limit_pages: u64,
    },
    /// It has fallen to where that level ends.
    BarRelief {
        /// Which level has ended.
        level: PressureLevel,
        /// The use that ended it.
        used_pages: u64,
        /// Where it ends.
        limit_pages: u64,
    },
    /// A buffer that an importer had reached through the BAR was moved to system memory.
    Demoted {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// A demoted buffer can be reached through the BAR again.
    Promoted {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// How many pages that are.
        pages: u64,
    },
    /// A map was given system memory instead of the BAR.
    FellBack {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// A map was refused.
    Refused {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// An attachment was taken away from an importer that cannot be told to let go otherwise.
    AttachmentRevoked {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        why: &'static str,
    },
    /// VRAM was taken away, and nobody uses it any more but those who are overdue.
    Revoked {
        /// Why.
        cause: RevokeCause,
        /// How many buffers lost bytes. There is an event for each.
        lost: usize,
        /// How many did not let go in time. There is an event for each.
        overdue: usize,
    },
    /// Somebody was told to let go and did not in time; nobody waits for it any more.
    RevokeOverdue {
        /// An importer, or the timeline of work that did not end.
        who: Arc<str>,
        /// Which buffer it was told about; `None` for work of the device's own.
        buffer: Option<u64>,
        /// How many bytes of VRAM nobody is given again because of that.
        quarantined_bytes: u64,
    },
    /// A buffer has lost bytes, and says so to whoever asks for them.
    Lost {
        /// The buffer.
        buffer: u64,
        /// How many bytes.
        bytes: u64,
        /// Why.
        why: Arc<str>,
    },
    /// VRAM that was taken away can be used again.
    Rearmed {
        /// How often that has happened.
        epoch: u32,
    },
    /// The subscriber did not keep up, and the oldest events were dropped.
    Missed {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// The reason under which a statistic counts it; `None` when nothing was kept from anybody.
    pub(crate) fn counted_as(&self) -> Option<String> {
        let (what, reason) = match self {
            Event::Demoted { reason, .. } => ("demoted from the BAR", reason),
            Event::FellBack { reason, .. } => ("peer map in system memory", reason),
            Event::Refused { reason, .. } => ("peer map refused", reason),
            Event::BarPressure { .. }
            | Event::BarRelief { .. }
            | Event::Promoted { .. }
            | Event::Revoked { .. }
            | Event::RevokeOverdue { .. }
            | Event::Lost { .. }
            | Event::Rearmed { .. }
            | Event::Missed { .. } => return None,
            Event::AttachmentRevoked { why, .. } => return Some(format!("attachment revoked: {why}")),
        };
        Some(format!("{what}: {}", reason.kind()))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::BarPressure { level, used_pages, limit_pages } => {
                write!(f, "BAR pressure: peers use {used_pages} pages, the {level} limit is {limit_pages}")
            }
            Event::BarRelief { level, used_pages, limit_pages } => {
                write!(f, "BAR relief: peers use {used_pages} pages, {level} pressure ends at {limit_pages}")
            }
            Event::Demoted { buffer, importer, reason, missing_pages } => {
                write!(f, "buffer {buffer} demoted for {importer}: {reason}; {missing_pages} pages missing")
            }
            Event::Promoted { buffer, importer, pages } => {
                write!(f, "buffer {buffer} promoted for {importer}: {pages} pages")
            }
            Event::FellBack { buffer, importer, reason, missing_pages } => write!(
                f,
                "buffer {buffer} in system memory for {importer}: {reason}; {missing_pages} pages missing"
            ),
            Event::Refused { buffer, importer, reason, missing_pages } => {
                write!(f, "buffer {buffer} refused to {importer}: {reason}; {missing_pages} pages missing")
            }
            Event::AttachmentRevoked { buffer, importer, why } => {
                write!(f, "buffer {buffer} taken away from {importer}: {why}")
            }
            Event::Revoked { cause, lost, overdue } => {
                write!(
                    f,
                    "VRAM revoked, as {cause}: {lost} buffers lost bytes, {overdue} did not let go in time"
                )
            }
            Event::RevokeOverdue { who, buffer, quarantined_bytes } => {
                match buffer {
                    Some(buffer) => write!(f, "{who} did not let go of buffer {buffer} in time")?,
                    None => write!(f, "{who} did not end in time")?,
                }
                write!(f, "; {quarantined_bytes} bytes of VRAM are not used again")
            }
            Event::Lost { buffer, bytes, why } => write!(f, "buffer {buffer} lost {bytes} bytes: {why}"),
            Event::Rearmed { epoch } => write!(f, "VRAM can be used again, for the {epoch}. time"),
            Event::Missed { count } => write!(f, "{count} events missed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_reads_as_a_sentence_with_its_figures() {
        let importer: Arc<str> = "nic".into();
        let reason = PeerReason::Over(BarLimit::Hard);
        let event = Event::FellBack { buffer: 7, importer, reason, missing_pages: 3 };
        let text = "buffer 7 in system memory for nic: the p2p hard limit is reached; 3 pages missing";
        assert_eq!(event.to_string(), text);
        let counted = "peer map in system memory: the p2p hard limit is reached";
        assert_eq!(event.counted_as().as_deref(), Some(counted));
        let pressure = Event::BarPressure { level: PressureLevel::Soft, used_pages: 8, limit_pages: 8 };
        assert_eq!(pressure.to_string(), "BAR pressure: peers use 8 pages, the soft limit is 8");
        assert_eq!(pressure.counted_as(), None);
    }
}
