//! What a PCI function says of itself in its configuration space.
//!
//! ```text
//!   0x000  header: ids, class, BARs              readable by everybody (64 bytes)
//!   0x040  capabilities, a list of offsets       the administrator reads 256 bytes, or
//!   0x100  extended capabilities, another list   4096 where the function is of PCI Express
//!   0x1000
//! ```
//!
//! Whoever reads without rights gets the first bytes only. What lies behind them is [`Capability::Unread`], which is not
//! [`Capability::Absent`]: that takes a list that was read to its end. A list that loops, or leaves its half of the space, is
//! an error, as the rest of what such a function says is worth nothing.
//!
//! Layouts are those of the PCI Express Base Specification: capability 0x10 (PCI Express), extended 0x0d (access control
//! services) and 0x15 (resizable BAR).

use std::fmt;

use super::function::{Acs, BarSizes, Function, PciIds, PortKind};
use super::link::{PciLink, pci_bytes_per_s};

/// The length of the header, which can be read without rights.
const HEADER_BYTES: usize = 0x40;
/// Where extended capabilities begin.
const EXTENDED: usize = 0x100;
/// The end of all of it.
const END: usize = 0x1000;

const CAP_EXPRESS: u16 = 0x10;
const CAP_ACS: u16 = 0x0d;
const CAP_RESIZABLE_BAR: u16 = 0x15;

/// A configuration space that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongConfigSpace {
    /// Where, from its begin.
    pub offset: usize,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for WrongConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration space, offset {:#05x}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for WrongConfigSpace {}

fn wrong<T>(offset: usize, reason: impl Into<String>) -> Result<T, WrongConfigSpace> {
    Err(WrongConfigSpace { offset, reason: reason.into() })
}

/// A capability of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability<T> {
    /// It has it.
    There(T),
    /// It does not have it.
    Absent,
    /// The bytes that would tell were not read.
    Unread,
}

impl<T> Capability<T> {
    /// What is there, if something is.
    pub fn there(&self) -> Option<&T> {
        match self {
            Capability::There(what) => Some(what),
            Capability::Absent | Capability::Unread => None,
        }
    }

    /// What is there, `absent` when nothing is, and `None` when that was not read.
    pub fn or_absent(self, absent: T) -> Option<T> {
        match self {
            Capability::There(what) => Some(what),
            Capability::Absent => Some(absent),
            Capability::Unread => None,
        }
    }
}

/// The PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// What kind of bridge it is; `None` for a device.
    pub port: Option<PortKind>,
    /// The link that it reports. One that is down carries nothing that is known.
    pub link: PciLink,
    /// A bridge: whether it passes atomic operations on. A device: whether it completes those of 64 bits. `None` when the
    /// bytes were not read.
    pub atomics: Option<bool>,
}

/// A BAR that can be resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizableBar {
    /// Which, from 0.
    pub index: u8,
    /// How long it is now.
    pub len_bytes: u64,
    /// How long it can be.
    pub sizes: BarSizes,
}

/// A configuration space, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Which chip it is.
    pub ids: PciIds,
    /// Base class, sub-class and interface.
    pub class: u32,
    /// Whether its header is that of a bridge.
    pub is_bridge: bool,
    /// What it is in terms of PCI Express.
    pub express: Capability<Express>,
    /// Whether it redirects peer traffic.
    pub acs: Capability<Acs>,
    /// Which of its BARs can be resized.
    pub resizable: Capability<Vec<ResizableBar>>,
}

impl ConfigSpace {
    /// Reads the first bytes of a configuration space, as many as there are.
    ///
    /// # Errors
    /// With the offset: fewer bytes than a header has or more than there can be, a function that is gone (all ones), a list
    /// of capabilities that loops or leaves its place, a BAR that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<ConfigSpace, WrongConfigSpace> {
        if !(HEADER_BYTES..=END).contains(&bytes.len()) {
            return wrong(bytes.len(), format!("it has {} bytes, not {HEADER_BYTES} to {END}", bytes.len()));
        }
        let space = Space { bytes };
        let word = |offset| u32::from(space.u16(offset).unwrap_or(u16::MAX));
        let ids = PciIds { vendor: word(0) as u16, device: word(2) as u16 };
        if ids.vendor == u16::MAX {
            return wrong(0, "it reads as ones: the function is gone");
        }
        let express = space.capability(CAP_EXPRESS)?.and_then(|at| space.express(at));
        // Only PCI Express has extended capabilities, so a function of conventional PCI lacks them all.
        let is_conventional = express == Capability::Absent && bytes.len() <= EXTENDED;
        let extended = |id| if is_conventional { Ok(Capability::Absent) } else { space.extended(id) };
        let acs = extended(CAP_ACS)?.and_then(|at| space.acs(at));
        let resizable = match extended(CAP_RESIZABLE_BAR)? {
            Capability::There(at) => space.resizable(at)?,
            Capability::Absent => Capability::Absent,
            Capability::Unread => Capability::Unread,
        };
        let class = word(0x0a) << 8 | word(0x08) >> 8;
        let is_bridge = word(0x0e) & 0x7f == 1;
        Ok(ConfigSpace { ids, class, is_bridge, express, acs, resizable })
    }

    /// Writes into `function` what it tells and `function` does not know yet. A size of a BAR is noted where `function` has
    /// the BAR.
    pub fn describe(self, function: &mut Function) {
        function.ids = function.ids.or(Some(self.ids));
        function.class = function.class.or(Some(self.class));
        if let Capability::There(express) = &self.express {
            let link = &mut function.link;
            link.bytes_per_s = link.bytes_per_s.or(express.link.bytes_per_s);
            link.max_bytes_per_s = link.max_bytes_per_s.or(express.link.max_bytes_per_s);
            function.port = function.port.or(express.port);
            function.atomics = function.atomics.or(express.atomics);
        }
        function.acs = function.acs.or(self.acs.or_absent(Acs::default()));
        for resizable in self.resizable.there().into_iter().flatten() {
            let mut bars = function.bars.iter_mut().flatten();
            if let Some(bar) = bars.find(|bar| bar.index == resizable.index) {
                bar.sizes = Some(resizable.sizes);
            }
        }
    }
}

impl<T> Capability<T> {
    /// Goes on with what is there; `None` from `read` means that its bytes were not read.
    fn and_then<U>(self, read: impl FnOnce(T) -> Option<U>) -> Capability<U> {
        match self {
            Capability::There(what) => read(what).map_or(Capability::Unread, Capability::There),
            Capability::Absent => Capability::Absent,
            Capability::Unread => Capability::Unread,
        }
    }
}

/// The bytes, as far as they were read.
struct Space<'a> {
    bytes: &'a [u8],
}

impl Space<'_> {
    fn u8(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset).copied()
    }

    fn u16(&self, offset: usize) -> Option<u16> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Where a capability of the first 256 bytes is.
    fn capability(&self, wanted: u16) -> Result<Capability<usize>, WrongConfigSpace> {
        const STATUS_HAS_LIST: u16 = 1 << 4;
        if self.u16(0x06).is_some_and(|status| status & STATUS_HAS_LIST == 0) {
            return Ok(Capability::Absent);
        }
        let (mut from, mut visited) = (0x34, 0_u64);
        loop {
            let Some(next) = self.u8(from) else { return Ok(Capability::Unread) };
            // The two lowest bits are reserved.
            let at = usize::from(next & 0xfc);
            match at {
                0 => return Ok(Capability::Absent),
                1..HEADER_BYTES => return wrong(from, format!("a capability at {at:#x}, within the header")),
                _ if visited >> (at / 4) & 1 == 1 => {
                    return wrong(from, format!("the capabilities loop back to {at:#x}"));
                }
                _ => visited |= 1 << (at / 4),
            }
            let Some(id) = self.u8(at) else { return Ok(Capability::Unread) };
            match u16::from(id) {
                id if id == wanted => return Ok(Capability::There(at)),
                0xff => return wrong(at, "the list of capabilities ends in ones"),
                _ => from = at + 1,
            }
        }
    }

    /// Where an extended capability is.
    fn extended(&self, wanted: u16) -> Result<Capability<usize>, WrongConfigSpace> {
        let (mut at, mut from) = (EXTENDED, EXTENDED);
        let mut visited = [0_u64; (END / 4).div_ceil(64)];
        loop {
            let (slot, bit) = (at / 4 / 64, at / 4 % 64);
            if visited[slot] >> bit & 1 == 1 {
                return wrong(from, format!("the extended capabilities loop back to {at:#x}"));
            }
            visited[slot] |= 1 << bit;
            let Some(head) = self.u32(at) else { return Ok(Capability::Unread) };
            // A space without the list begins with zeros, or with ones where nothing answers.
            if at == EXTENDED && (head == 0 || head == u32::MAX) {
                return Ok(Capability::Absent);
            }
            if head as u16 == wanted {
                return Ok(Capability::There(at));
            }
            let next = (head >> 20) as usize & 0xffc;
            match next {
                0 => return Ok(Capability::Absent),
                1..EXTENDED => {
                    return wrong(at, format!("an extended capability at {next:#x}, before {EXTENDED:#x}"));
                }
                _ => (from, at) = (at, next),
            }
        }
    }

    fn express(&self, at: usize) -> Option<Express> {
        let flags = self.u16(at + 0x02)?;
        let (best, now) = (self.u32(at + 0x0c)?, self.u16(at + 0x12)?);
        let port = match flags >> 4 & 0xf {
            0x4 => Some(PortKind::Root),
            0x5 => Some(PortKind::Upstream),
            0x6 => Some(PortKind::Downstream),
            0x7 | 0x8 => Some(PortKind::ToPci),
            _ => None,
        };
        let link = PciLink { bytes_per_s: rate(u32::from(now)), max_bytes_per_s: rate(best) };
        Some(Express { port, link, atomics: self.atomics(at, flags & 0xf, port) })
    }

    fn atomics(&self, at: usize, version: u16, port: Option<PortKind>) -> Option<bool> {
        const ROUTES: u32 = 1 << 6;
        const COMPLETES_64: u32 = 1 << 8;
        const BLOCKED: u16 = 1 << 7;
        // The first version of the capability ends before the registers that say so.
        if version < 2 {
            return Some(false);
        }
        let can = self.u32(at + 0x24)?;
        match port {
            None => Some(can & COMPLETES_64 != 0),
            Some(_) => Some(can & ROUTES != 0 && self.u16(at + 0x28)? & BLOCKED == 0),
        }
    }

    fn acs(&self, at: usize) -> Option<Acs> {
        let control = self.u16(at + 0x06)?;
        let has = |bit: u16| control >> bit & 1 == 1;
        Some(Acs { request_redirect: has(2), completion_redirect: has(3), egress_control: has(5) })
    }

    fn resizable(&self, at: usize) -> Result<Capability<Vec<ResizableBar>>, WrongConfigSpace> {
        let Some(first) = self.u32(at + 0x08) else { return Ok(Capability::Unread) };
        let count = (first >> 5 & 7) as usize;
        let mut bars = Vec::new();
        for entry in (0..count).map(|which| at + 4 + 8 * which) {
            if entry + 8 > END {
                return wrong(
                    at + 0x08,
                    format!("{count} resizable BARs, which leave the configuration space"),
                );
            }
            let (Some(can), Some(control)) = (self.u32(entry), self.u32(entry + 4)) else {
                return Ok(Capability::Unread);
            };
            let (index, exponent) = (control as u8 & 7, control >> 8 & 0x3f);
            if index > 5 || exponent > 43 {
                return wrong(entry + 4, format!("BAR {index} with a length of 2^{exponent} MiB"));
            }
            let mask = u64::from(can >> 4) | u64::from(control >> 16) << 28;
            let sizes = BarSizes::from_mib_mask(mask);
            bars.push(ResizableBar { index, len_bytes: 1 << (20 + exponent), sizes });
        }
        Ok(Capability::There(bars))
    }
}

/// The rate of a link from the lowest bits of its capabilities or status: a code for the speed, then the width.
fn rate(register: u32) -> Option<u64> {
    let speed = match register & 0xf {
        1 => 2_500,
        2 => 5_000,
        3 => 8_000,
        4 => 16_000,
        5 => 32_000,
        6 => 64_000,
        _ => return None,
    };
    pci_bytes_per_s(speed, register >> 4 & 0x3f)
}
