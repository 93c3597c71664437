//! Decisions: by which route an importer reaches a pagemap, and the reasons for it.

use std::fmt;

use crate::topology::{PciAddress, PciIds};

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
}

impl Route {
    /// Whether the importer reaches the exporter's own memory.
    pub fn is_p2p(self) -> bool {
        !matches!(self, Route::Staging | Route::System)
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

/// How far it is, roughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyClass {
    /// The device's own memory.
    Local,
    /// A private link or one switch away.
    Near,
    /// Through a host bridge, or several switches.
    Far,
    /// Across CPU sockets, or with a copy in between.
    Remote,
}

/// How one importer reaches one pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The way its accesses take.
    pub route: Route,
    /// Whether peer-to-peer access works; `None` when what would decide it is not known, and then it is not used.
    pub p2p: Option<bool>,
    /// What the route carries.
    pub direction: Direction,
    /// Whether atomic operations arrive as such.
    pub atomics: Option<bool>,
    /// How far it is.
    pub latency: LatencyClass,
    /// What can be expected, in one direction.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// One step on the way to a decision. The text names the devices and figures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Importer and exporter are one device.
    SameDevice,
    /// Nothing is known of where one of the two is; the importer says that it can.
    Declared,
    /// The importer wants no peer-to-peer access.
    Forbidden,
    /// The importer cannot use bus addresses that are not system memory.
    NotPeerCapable,
    /// Both are below one switch.
    SameSwitch {
        /// The switch's upper port; `None` when it has no address.
        switch: Option<PciAddress>,
    },
    /// The host bridge is not known to forward peer traffic.
    HostBridgeNotListed {
        /// The host bridge, or the root port that stands for it.
        ids: PciIds,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::SameDevice => f.write_str("it is the device itself"),
            Reason::Declared => f.write_str("the importer says that it can reach the BAR"),
            Reason::Forbidden => f.write_str("the importer wants no peer-to-peer access"),
            Reason::NotPeerCapable => f.write_str("the importer can use nothing but system memory"),
            Reason::SameSwitch { switch: Some(switch) } => write!(f, "both are below the switch {switch}"),
            Reason::SameSwitch { switch: None } => f.write_str("both are below one switch"),
            Reason::HostBridgeNotListed { ids } => {
                write!(f, "the host bridge {ids} is not known to forward peer traffic")
            }
        }
    }
}

/// A decision with all its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose memory it is.
    pub exporter: String,
    /// Who reaches it.
    pub importer: String,
    /// What was decided.
    pub decision: Decision,
    /// Why, in the order in which it was considered. What would have to change for a better route comes last.
    pub reasons: Vec<Reason>,
}
