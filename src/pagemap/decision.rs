//! Decisions: by which route an importer reaches a pagemap.
//!
//! Why it is so is told by [reasons](super::Reason), which are worked out when somebody asks.

use std::fmt;

use crate::topology::Rate;

/// The way that an importer's accesses take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// It is the device whose memory it is.
    SameDevice,
    /// A private link between the two devices.
    PrivateLink,
    /// The bus, below one switch.
    Switch,
    /// The bus, up to a host bridge and down again.
    HostBridge,
    /// The bus, in a way that nobody has described: the importer says that it can.
    Declared,
    /// A copy in system memory that is kept in step.
    Staging,
    /// The bytes live in system memory.
    System,
    /// None: the importer takes nothing but peer-to-peer access, and that cannot be had. Mapping fails.
    Refused,
}

impl Route {
    /// Whether the importer reaches the exporter's own memory.
    pub fn is_p2p(self) -> bool {
        !matches!(self, Route::Staging | Route::System | Route::Refused)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::SameDevice => "same device",
            Route::PrivateLink => "private link",
            Route::Switch => "p2p below a switch",
            Route::HostBridge => "p2p through the host bridge",
            Route::Declared => "p2p as declared",
            Route::Staging => "staging",
            Route::System => "system memory",
            Route::Refused => "refused",
        })
    }
}

/// What accesses a route carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Direction {
    /// The importer can read.
    pub reads: bool,
    /// The importer can write.
    pub writes: bool,
}

impl Direction {
    /// Reads and writes.
    pub const BOTH: Direction = Direction { reads: true, writes: true };
    /// Nothing.
    pub const NEITHER: Direction = Direction { reads: false, writes: false };

    /// What both carry.
    #[must_use]
    pub fn and(self, other: Direction) -> Direction {
        Direction { reads: self.reads && other.reads, writes: self.writes && other.writes }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.reads, self.writes) {
            (true, true) => "reads and writes",
            (true, false) => "reads only",
            (false, true) => "writes only",
            (false, false) => "nothing",
        })
    }
}

/// How far it is, roughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyClass {
    /// The device's own memory.
    Local,
    /// A private link or one switch away.
    Near,
    /// Through a host bridge, or several switches; or nobody knows.
    Far,
    /// Across CPU sockets, or with a copy in between.
    Remote,
}

/// How one importer reaches one pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The way its accesses take.
    pub route: Route,
    /// Whether that is peer-to-peer access. `None`: it is not, because what would decide whether it works is not known.
    pub p2p: Option<bool>,
    /// What the route carries.
    pub direction: Direction,
    /// Whether atomic operations arrive as such; `None` when that is not known.
    pub atomics: Option<bool>,
    /// How far it is.
    pub latency: LatencyClass,
    /// What can be expected in one direction, as it was measured or else as the links promise; `None` when neither says.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// A registry keeps one for each importer and pagemap.
const _: () = assert!(size_of::<Decision>() <= 32);

impl Decision {
    /// The bytes live in system memory, which is how far from the importer its links say.
    pub(super) fn system(bandwidth_bytes_per_s: Option<u64>) -> Decision {
        Decision {
            route: Route::System,
            p2p: Some(false),
            direction: Direction::BOTH,
            atomics: None,
            latency: LatencyClass::Far,
            bandwidth_bytes_per_s,
        }
    }

    /// One of the two has left, or never was there.
    pub(super) const GONE: Decision = Decision {
        route: Route::Refused,
        p2p: Some(false),
        direction: Direction::NEITHER,
        atomics: Some(false),
        latency: LatencyClass::Remote,
        bandwidth_bytes_per_s: None,
    };
}

impl fmt::Display for Decision {
    /// `staging, 15.8 GB/s`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.route)?;
        if let Some(rate) = self.bandwidth_bytes_per_s {
            write!(f, ", {}", Rate(rate))?;
        }
        if self.route.is_p2p() && self.direction != Direction::BOTH {
            write!(f, ", {}", self.direction)?;
        }
        Ok(())
    }
}
