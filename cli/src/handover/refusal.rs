//! Why a message of the other side was not taken.

use devpagemap::Size;
use std::fmt;

/// What is wrong with a message. Nothing of it is used, and descriptors that came with it are closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The other side went away before the message.
    Left {
        /// The message that was waited for.
        awaited: &'static str,
    },
    /// It begins as no such message begins.
    WrongMagic {
        /// The message that it should be.
        awaited: &'static str,
        /// How it begins.
        found: [u8; 8],
    },
    /// It comes from a newer program.
    FutureVersion {
        /// Its version.
        version: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// Version 0, which never was.
    NoVersion,
    /// It ends before its end.
    Truncated {
        /// The message that it should be.
        awaited: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it should be.
        wanted_bytes: usize,
    },
    /// It goes on after its end.
    TooLong {
        /// The message that it should be.
        awaited: &'static str,
        /// How long it should be.
        wanted_bytes: usize,
    },
    /// The length that it says it has is not that of its version.
    WrongLength {
        /// What it says.
        says_bytes: u32,
        /// What it should say.
        wanted_bytes: usize,
    },
    /// It came without a descriptor.
    NoDescriptor,
    /// It came with several.
    ManyDescriptors {
        /// How many.
        count: usize,
    },
    /// It came with one that this process had no room for.
    NoRoomForDescriptor,
    /// The size that it says is not that of the dma-buf.
    LyingSize {
        /// What it says.
        says_bytes: u64,
        /// The size of the dma-buf.
        dma_buf_bytes: u64,
    },
    /// No dma-buf has such a size.
    ImpossibleSize {
        /// What it says.
        says_bytes: u64,
    },
    /// It says that the dma-buf may be written, and it may not.
    LyingRights,
    /// The sum is not that of the bytes that its seed stands for.
    WrongSum {
        /// What it says.
        says: u64,
        /// What it should say.
        wanted: u64,
    },
    /// A name that is no text.
    NoText {
        /// Which name.
        what: &'static str,
    },
    /// A number that stands for nothing.
    UnknownStatus {
        /// The number.
        status: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: &u64| Size::bytes(*bytes);
        match self {
            Refusal::Left { awaited } => write!(f, "the other side left before its {awaited}"),
            Refusal::WrongMagic { awaited, found } => write!(
                f,
                "the message is no {awaited} of devpagemap: it begins with `{}`",
                found.escape_ascii()
            ),
            Refusal::FutureVersion { version, known } => {
                write!(f, "the message is of version {version}; this command knows versions up to {known}")
            }
            Refusal::NoVersion => write!(f, "the message says it is of version 0, which there never was"),
            Refusal::Truncated { awaited, bytes, wanted_bytes } => {
                write!(f, "the {awaited} is truncated: {bytes} bytes of {wanted_bytes}")
            }
            Refusal::TooLong { awaited, wanted_bytes } => {
                write!(f, "the {awaited} is longer than its {wanted_bytes} bytes")
            }
            Refusal::WrongLength { says_bytes, wanted_bytes } => {
                write!(f, "the header says it has {says_bytes} bytes; in its version it has {wanted_bytes}")
            }
            Refusal::NoDescriptor => write!(f, "the header came without a descriptor"),
            Refusal::ManyDescriptors { count } => {
                write!(f, "the header came with {count} descriptors; it has to come with one")
            }
            Refusal::NoRoomForDescriptor => {
                write!(
                    f,
                    "the header came with a descriptor, but this process has none left for it (ulimit -n)"
                )
            }
            Refusal::LyingSize { says_bytes, dma_buf_bytes } => write!(
                f,
                "the header says {says_bytes} bytes ({}), but the dma-buf has {dma_buf_bytes} ({})",
                size(says_bytes),
                size(dma_buf_bytes)
            ),
            Refusal::ImpossibleSize { says_bytes } => {
                write!(f, "the header says {says_bytes} bytes, which are not whole pages of 4096 bytes")
            }
            Refusal::LyingRights => {
                write!(
                    f,
                    "the header says that the dma-buf may be written, but its descriptor is for reading only"
                )
            }
            Refusal::WrongSum { says, wanted } => write!(
                f,
                "the header contradicts itself: the sum is {says:#018x}, but the seed stands for bytes whose sum is {wanted:#018x}"
            ),
            Refusal::NoText { what } => write!(f, "the {what} in the header is no text"),
            Refusal::UnknownStatus { status } => write!(f, "the answer has the unknown status {status}"),
        }
    }
}

impl std::error::Error for Refusal {}
