//! Reasons: the steps on the way to a decision, in words, and what would have to change for a better one.
//!
//! A reason keeps figures and addresses, and its text reads as a part of a sentence about an importer and an exporter. Whoever knows
//! what those are called says so ([`Reason::about`]); an [`Explanation`] does.

use std::fmt;

use super::decision::{Decision, Direction, Route};
use crate::topology::{LinkKind, PciAddress, PciIds, Rate};

/// One step on the way to a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Importer and exporter are one device.
    SameDevice,
    /// Nothing is known of where one of the two is; the importer says that it can.
    Declared,
    /// A private link carries the importer's requests.
    PrivateLink {
        /// What it is.
        kind: LinkKind,
        /// How many lanes or bricks.
        count: u32,
    },
    /// There is a private link, but only in the other direction.
    LinkIsOneWay {
        /// What it is.
        kind: LinkKind,
    },
    /// Both are below one switch, and nothing sends their traffic up.
    SameSwitch {
        /// The bridge that both are below; `None` when it has no address.
        switch: Option<PciAddress>,
    },
    /// The way leads through host bridges, and they are known to forward.
    HostBridgeForwards {
        /// The host bridge of the exporter, if the source names its chip.
        ids: Option<PciIds>,
        /// The family of the AMD CPU that settles it.
        amd_family: Option<u32>,
    },

    /// The importer wants no peer-to-peer access.
    Forbidden,
    /// The importer cannot use bus addresses that are not system memory.
    NotPeerCapable,
    /// The bus does not see this memory.
    Hidden,
    /// The importer cannot drive the addresses of the exporter's BAR.
    DmaMask {
        /// How many bits it can.
        bits: u8,
        /// How many it would need.
        needed_bits: u8,
    },
    /// A port between the two sends their traffic up to the host bridge.
    AcsRedirects {
        /// The port.
        port: Option<PciAddress>,
    },
    /// The host bridge is not known to forward peer traffic.
    HostBridgeNotListed {
        /// The host bridge, or the root port that stands for it.
        ids: PciIds,
    },
    /// The host bridge forwards among what is below itself, and the two are below different ones.
    HostBridgesDiffer {
        /// The host bridge that does not.
        ids: PciIds,
    },
    /// The rules in force refuse it.
    RulesRefuse {
        /// What they say.
        why: &'static str,
    },
    /// The driver says that it does not let the two at each other.
    DriverRefuses,
    /// The runtime of one of them says that it has no access to the other.
    PeerAccessRefused,
    /// It was seen that nothing arrives.
    CarriesNothing,
    /// The importer needs atomic operations, and they do not arrive as such.
    NoAtomics,
    /// Peer-to-peer access works, and is slower than staging.
    SlowerThanStaging {
        /// As measured.
        p2p_bytes_per_s: u64,
        /// As measured.
        staging_bytes_per_s: u64,
    },

    /// Something is at that address only in the importer's or the exporter's word.
    NotInMachine {
        /// Where nothing is.
        address: PciAddress,
    },
    /// It is not known whether a port redirects.
    AcsUnknown {
        /// The first such port.
        port: Option<PciAddress>,
    },
    /// It is not known whether the host bridge forwards: the source does not say which it is.
    HostBridgeUnknown,
    /// The host bridge is on no list, and the CPU, which could settle it, is not known.
    CpuUnknown {
        /// The host bridge.
        ids: PciIds,
    },
    /// It is an AMD CPU, and its family, which would settle it, is not known.
    CpuFamilyUnknown,
    /// It is not known where the exporter's BAR is, and the importer cannot drive every address.
    BusAddressUnknown {
        /// How many bits it can drive.
        bits: u8,
    },
    /// The importer needs atomic operations, and it is not known whether they arrive.
    AtomicsUnknown,
    /// The runtime of one of them says that it has access to the other, which settles what the topology leaves open.
    PeerAccessConfirmed,
    /// It was seen that only these arrive.
    Carries {
        /// What does.
        direction: Direction,
    },
    /// The importer takes it though it is slower than staging.
    TakenThoughSlower {
        /// As measured.
        p2p_bytes_per_s: u64,
        /// As measured.
        staging_bytes_per_s: u64,
    },

    /// The importer takes nothing else, so mapping fails.
    NothingElseWillDo,
    /// The memory has been taken away: its device is being unplugged or reset.
    Revoked,
    /// The importer or the pagemap has left, or belongs to another registry.
    Gone,
    /// What would have to change for peer-to-peer access, all of it together.
    Would {
        /// The changes.
        remedies: Vec<Remedy>,
        /// The route it would be then.
        route: Route,
        /// What could be expected of that.
        bandwidth_bytes_per_s: Option<u64>,
    },
}

/// A change that would take away what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// Another policy of the importer.
    AnotherPolicy,
    /// An importer that can use bus addresses.
    PeerCapable,
    /// A BAR that shows all of the memory.
    LargerBar,
    /// An importer that drives this many bits of an address.
    WiderDmaMask {
        /// How many.
        bits: u8,
    },
    /// Both below one switch.
    BelowSwitch {
        /// The one that one of them is below already.
        switch: Option<PciAddress>,
    },
    /// No redirection between the two.
    AcsOff {
        /// The first port that redirects.
        port: Option<PciAddress>,
    },
    /// Knowing what is not known, if it turns out well.
    Known,
    /// A driver and a runtime that allow it.
    DriverAllows,
    /// An importer that needs no atomic operations.
    NoAtomics,
}

impl Reason {
    /// The reason, with the names of those whom it concerns.
    pub fn about<'a>(&'a self, importer: &'a str, exporter: &'a str) -> impl fmt::Display + 'a {
        About { reason: self, importer, exporter }
    }

    /// Whether it says that something is not known.
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Reason::NotInMachine { .. }
                | Reason::AcsUnknown { .. }
                | Reason::HostBridgeUnknown
                | Reason::CpuUnknown { .. }
                | Reason::CpuFamilyUnknown
                | Reason::BusAddressUnknown { .. }
                | Reason::AtomicsUnknown
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.about("the importer", "the exporter").fmt(f)
    }
}

struct About<'a> {
    reason: &'a Reason,
    importer: &'a str,
    exporter: &'a str,
}

/// An address, or what to say for want of one.
struct Named<'a>(&'a str, Option<PciAddress>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(address) => write!(f, "the {} {address}", self.0),
            None => write!(f, "a {} without an address", self.0),
        }
    }
}

impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (importer, exporter) = (self.importer, self.exporter);
        match self.reason {
            Reason::SameDevice => write!(f, "{importer} is the device itself"),
            Reason::Declared => write!(f, "{importer} says that it can reach {exporter}"),
            Reason::PrivateLink { kind, count } => {
                write!(f, "{importer} reaches {exporter} over {kind} x{count}")
            }
            Reason::LinkIsOneWay { kind } => {
                write!(f, "the {kind} between the two carries no requests of {importer}")
            }
            Reason::SameSwitch { switch } => {
                write!(f, "{importer} and {exporter} are both below {}", Named("switch", *switch))
            }
            Reason::HostBridgeForwards { amd_family: Some(family), .. } => {
                write!(f, "the host bridges of an AMD CPU of family {family:#x} forward peer traffic")
            }
            Reason::HostBridgeForwards { ids: Some(ids), .. } => {
                write!(f, "the host bridge {ids} is known to forward peer traffic")
            }
            Reason::HostBridgeForwards { .. } => f.write_str("the host bridge forwards peer traffic"),
            Reason::HostBridgeNotListed { ids } => write!(
                f,
                "{importer} reaches {exporter} only through the host bridge {ids}, which is not known to forward peer traffic"
            ),
            Reason::HostBridgesDiffer { ids } => write!(
                f,
                "{importer} and {exporter} are below different host bridges, and {ids} forwards only among what is below itself"
            ),
            Reason::HostBridgeUnknown => write!(
                f,
                "{importer} reaches {exporter} only through the host bridge, and it is not known which that is"
            ),
            Reason::AcsRedirects { port } => {
                write!(f, "{} sends peer traffic up to the host bridge", Named("port", *port))
            }
            Reason::AcsUnknown { port } => write!(
                f,
                "whether {} sends peer traffic up to the host bridge is not known",
                Named("port", *port)
            ),
            Reason::CpuUnknown { ids } => write!(
                f,
                "{importer} reaches {exporter} only through the host bridge {ids}, and it is not known whose CPU that belongs to"
            ),
            Reason::CpuFamilyUnknown => write!(
                f,
                "{importer} reaches {exporter} only through the host bridge of an AMD CPU, and its family is not known"
            ),
            Reason::NotInMachine { address } => write!(f, "nothing is known of {address}"),
            other => other.fmt_alone(f, importer, exporter),
        }
    }
}

impl Reason {
    /// Reasons that have nothing to do with where the two are.
    fn fmt_alone(&self, f: &mut fmt::Formatter<'_>, importer: &str, exporter: &str) -> fmt::Result {
        match self {
            Reason::Forbidden => write!(f, "{importer} wants no peer-to-peer access"),
            Reason::NotPeerCapable => write!(f, "{importer} can use nothing but system memory"),
            Reason::Hidden => write!(f, "the bus does not see this memory of {exporter}"),
            Reason::DmaMask { bits, needed_bits } => write!(
                f,
                "{importer} drives {bits} bits of an address, and the BAR of {exporter} needs {needed_bits}"
            ),
            Reason::BusAddressUnknown { bits } => write!(
                f,
                "{importer} drives {bits} bits of an address, and where the BAR of {exporter} is is not known"
            ),
            Reason::RulesRefuse { why } => f.write_str(why),
            Reason::DriverRefuses => write!(f, "the driver does not let {importer} at {exporter}"),
            Reason::PeerAccessRefused => write!(f, "{importer} was told that it has no access to {exporter}"),
            Reason::PeerAccessConfirmed => write!(f, "{importer} was told that it has access to {exporter}"),
            Reason::CarriesNothing => write!(f, "nothing of {importer} was seen to arrive"),
            Reason::Carries { direction } => write!(f, "of {importer}, {direction} were seen to arrive"),
            Reason::NoAtomics => write!(f, "{importer} needs atomic operations, and they do not arrive"),
            Reason::AtomicsUnknown => {
                write!(f, "{importer} needs atomic operations, and whether they arrive is not known")
            }
            Reason::SlowerThanStaging { p2p_bytes_per_s: p2p, staging_bytes_per_s: staging } => {
                write!(f, "peer-to-peer access was measured at {}, staging at {}", Rate(*p2p), Rate(*staging))
            }
            Reason::TakenThoughSlower { p2p_bytes_per_s: p2p, staging_bytes_per_s: staging } => write!(
                f,
                "{importer} takes it though it was measured at {} and staging at {}",
                Rate(*p2p),
                Rate(*staging)
            ),
            Reason::NothingElseWillDo => write!(f, "{importer} takes nothing but peer-to-peer access"),
            Reason::Revoked => write!(f, "the memory of {exporter} has been taken away"),
            Reason::Gone => f.write_str("one of the two has left"),
            Reason::Would { remedies, route, bandwidth_bytes_per_s } => {
                for (index, remedy) in remedies.iter().enumerate() {
                    let joint = ["", " and "][usize::from(index > 0)];
                    write!(f, "{joint}{}", remedy.text(importer, exporter))?;
                }
                let route = if *route == Route::PrivateLink { "a private link" } else { "p2p" };
                write!(f, " it would be {route}")?;
                bandwidth_bytes_per_s.map_or(Ok(()), |rate| write!(f, " at {}", Rate(rate)))
            }
            located => unreachable!("{located:?} names places"),
        }
    }
}

impl Remedy {
    fn text(&self, importer: &str, exporter: &str) -> String {
        match self {
            Remedy::AnotherPolicy => "with another policy".to_string(),
            Remedy::PeerCapable => format!("if {importer} could use bus addresses"),
            Remedy::LargerBar => format!("with a BAR of {exporter} that shows all of its memory"),
            Remedy::WiderDmaMask { bits } => format!("with a DMA mask of {bits} bits"),
            Remedy::BelowSwitch { switch: Some(switch) } => format!("behind the switch {switch}"),
            Remedy::BelowSwitch { switch: None } => "behind one switch".to_string(),
            Remedy::AcsOff { port: Some(port) } => format!("without redirection by ACS at {port}"),
            Remedy::AcsOff { port: None } => "without redirection by ACS".to_string(),
            Remedy::Known => "if what is not known turned out well".to_string(),
            Remedy::DriverAllows => "with a driver that allows it".to_string(),
            Remedy::NoAtomics => "without atomic operations".to_string(),
        }
    }
}

/// A decision with all its reasons.
///
/// Its text is one line: `staging, 15.8 GB/s: 0000:41:00.0 reaches 0000:03:00.0 only through the host bridge 8086:3420, which is not
/// known to forward peer traffic; behind the switch 0000:3d:00.0 it would be p2p at 31.5 GB/s`.
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

impl Explanation {
    /// The reasons in words, with names.
    pub fn sentences(&self) -> Vec<String> {
        self.reasons.iter().map(|reason| reason.about(&self.importer, &self.exporter).to_string()).collect()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.decision)?;
        for (index, reason) in self.reasons.iter().enumerate() {
            write!(
                f,
                "{}{}",
                ["; ", ": "][usize::from(index == 0)],
                reason.about(&self.importer, &self.exporter)
            )?;
        }
        Ok(())
    }
}
