//! What can go wrong with a fence, a wait or a reservation.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a point on a timeline signalled without its work having been done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FenceError {
    /// The timeline's owner went away while the point was outstanding.
    Abandoned {
        /// Name of the timeline.
        timeline: Arc<str>,
    },
    /// The point did not signal within its timeline's timeout.
    TimedOut {
        /// Name of the timeline.
        timeline: Arc<str>,
        /// The point.
        seqno: u64,
        /// For how long it was the oldest outstanding point, in nanoseconds.
        waited_ns: u64,
    },
    /// The engine that did the work reported a failure.
    EngineFailed {
        /// Name of the engine.
        engine: Arc<str>,
        /// What the engine said.
        reason: Arc<str>,
    },
    /// The work was taken back before it ran.
    Cancelled,
    /// The device is gone.
    DeviceLost,
    /// A descriptor from outside ended without ever having become readable.
    DescriptorFailed {
        /// Name of the timeline it was imported as.
        timeline: Arc<str>,
        /// What its poll reported.
        cause: Arc<str>,
    },
    /// A fence of another driver signalled with an error.
    Foreign {
        /// The driver whose fence it is.
        driver: Arc<str>,
        /// The timeline that it is on, as that driver calls it.
        timeline: Arc<str>,
        /// The system's number for what went wrong.
        errno: i32,
    },
    /// The work never ran, because what it needed had failed.
    Dependency(Box<FenceError>),
    /// The point is so old that how it ended is no longer known; it failed, or points before and after it did.
    Outdated,
    /// The work failed for a reason of its own.
    Failed {
        /// The reason.
        reason: Arc<str>,
    },
}

impl FenceError {
    /// A failure with a reason of its own.
    pub fn failed(reason: impl Into<Arc<str>>) -> FenceError {
        FenceError::Failed { reason: reason.into() }
    }

    /// The error of work that could not run because of this one; a chain of dependencies keeps only its root.
    pub fn as_dependency(&self) -> FenceError {
        FenceError::Dependency(Box::new(self.root_cause().clone()))
    }

    /// The failure a chain of dependencies began with.
    pub fn root_cause(&self) -> &FenceError {
        let mut error = self;
        while let FenceError::Dependency(inner) = error {
            error = inner;
        }
        error
    }
}

impl fmt::Display for FenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FenceError::Abandoned { timeline } => {
                write!(f, "timeline {timeline:?} was dropped by its owner before the point signalled")
            }
            FenceError::TimedOut { timeline, seqno, waited_ns } => {
                write!(f, "point {seqno} of timeline {timeline:?} hung for {waited_ns} ns and was given up")
            }
            FenceError::EngineFailed { engine, reason } => write!(f, "engine {engine:?} failed: {reason}"),
            FenceError::Cancelled => f.write_str("the work was cancelled before it ran"),
            FenceError::DeviceLost => f.write_str("the device is lost"),
            FenceError::DescriptorFailed { timeline, cause } => {
                write!(f, "the descriptor {timeline:?} will not become readable: {cause}")
            }
            FenceError::Foreign { driver, timeline, errno } => {
                let cause = io::Error::from_raw_os_error(*errno);
                write!(f, "a fence of driver {driver:?}, timeline {timeline:?}, failed: {cause}")
            }
            FenceError::Dependency(cause) => write!(f, "something it depended on failed: {cause}"),
            FenceError::Outdated => {
                f.write_str("the point is too old to know how it ended: it failed, or points around it did")
            }
            FenceError::Failed { reason } => f.write_str(reason),
        }
    }
}

impl Error for FenceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            FenceError::Dependency(cause) => Some(cause),
            _ => None,
        }
    }
}

/// Why a timed wait ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The time was up first.
    TimedOut {
        /// Name of the timeline that was waited for.
        timeline: Arc<str>,
        /// The point that had not signalled.
        seqno: u64,
        /// The last point of that timeline that had.
        completed: u64,
        /// How long the caller waited, in nanoseconds.
        waited_ns: u64,
    },
    /// It signalled with an error.
    Failed(FenceError),
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitError::TimedOut { timeline, seqno, completed, waited_ns } => write!(
                f,
                "point {seqno} of timeline {timeline:?} had not signalled after {waited_ns} ns (the timeline is at {completed})"
            ),
            WaitError::Failed(error) => write!(f, "the fence signalled with an error: {error}"),
        }
    }
}

impl Error for WaitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            WaitError::Failed(error) => Some(error),
            WaitError::TimedOut { .. } => None,
        }
    }
}

impl From<FenceError> for WaitError {
    fn from(error: FenceError) -> Self {
        WaitError::Failed(error)
    }
}

/// Room for the fences of a reservation could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsExhausted {
    /// How many slots were asked for.
    pub wanted: usize,
    /// How many fences the reservation holds.
    pub in_use: usize,
}

impl fmt::Display for SlotsExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for {} more fence slots beside the {} in use", self.wanted, self.in_use)
    }
}

impl Error for SlotsExhausted {}

/// Why an [`Exec`](crate::Exec) did not get a lock.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LockError {
    /// An older ticket wants, or has, this lock: let go of everything and begin again.
    ///
    /// [`Exec::run`](crate::Exec::run) does so by itself when its body returns an error after this was reported.
    Contended,
    /// The [`Interrupt`](crate::Interrupt) was raised that the Exec was made with.
    Interrupted,
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockError::Contended => {
                "a reservation is contended by an older ticket; let go of all and begin again"
            }
            LockError::Interrupted => "the wait for a reservation was interrupted",
        })
    }
}

impl Error for LockError {}

/// A descriptor could not be made, or not be taken in.
#[derive(Debug)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The process or the system has no descriptors or watches left, or no memory for one.
    Exhausted {
        /// What was to be made.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// What the descriptor refers to cannot be polled: a regular file or a directory.
    NotPollable {
        /// The name it was to be imported under.
        name: Arc<str>,
        /// The descriptor's number.
        fd: i32,
    },
    /// A fence must signal in finite time, and this timeout is longer than the clock can count.
    NeverTimesOut {
        /// The name it was to be imported under.
        name: Arc<str>,
        /// The timeout that was asked for.
        timeout: Duration,
    },
    /// The system refused for another reason.
    Refused {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DescriptorError::Exhausted { what, cause } => write!(f, "no room for {what}: {cause}"),
            DescriptorError::NotPollable { name, fd } => {
                write!(f, "descriptor {fd} ({name:?}) cannot be polled: it is a regular file or a directory")
            }
            DescriptorError::NeverTimesOut { name, timeout } => {
                write!(f, "a fence for {name:?} cannot wait for {timeout:?}: it must signal in finite time")
            }
            DescriptorError::Refused { what, cause } => write!(f, "the system refused {what}: {cause}"),
        }
    }
}

impl Error for DescriptorError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            DescriptorError::Exhausted { cause, .. } | DescriptorError::Refused { cause, .. } => Some(cause),
            DescriptorError::NotPollable { .. } | DescriptorError::NeverTimesOut { .. } => None,
        }
    }
}
