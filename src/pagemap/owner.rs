//! Owners and their pagemaps: whose memory it is, and which part of it.
//!
//! A pagemap is a range of one device's memory that everybody who reaches it reaches in one way. VRAM of which the bus sees
//! only a part is therefore two pagemaps:
//!
//! ```text
//!   VRAM     | visible                | hidden                                  |
//!   BAR      |◄──────────────────────►|
//!   bus      p2p, staging              staging
//!   link     private link              private link
//! ```
//!
//! All pagemaps of a device have one owner, and keep it for good: what changes is who reaches it, not whose it is.

use std::fmt;
use std::hash::{Hash, Hasher};

use devpagemap_fence::sync::Arc;

use crate::topology::PciAddress;
use crate::{Error, Result, Size};

/// The device that a pagemap is part of. Clones are the same one, and two that are made apart are two, whatever they are called.
#[derive(Clone)]
pub struct Owner(Arc<Identity>);

struct Identity {
    name: Arc<str>,         // constant
    at: Option<PciAddress>, // constant
}

impl Owner {
    /// An owner that is nowhere in the machine: what importers say of themselves decides.
    pub fn new(name: &str) -> Owner {
        Owner(Arc::new(Identity { name: name.into(), at: None }))
    }

    /// The device at an address, which is its name too.
    pub fn at(address: PciAddress) -> Owner {
        Owner(Arc::new(Identity { name: address.to_string().into(), at: Some(address) }))
    }

    /// What explanations call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where it is in the machine.
    pub fn place(&self) -> Option<PciAddress> {
        self.0.at
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Owner) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owner").field(&self.name()).finish()
    }
}

/// How the bus sees a pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BusWindow {
    /// All of it, through a BAR.
    Visible {
        /// Where that begins on the bus; `None` when it is not known, and then the machine is asked.
        start: Option<u64>,
    },
    /// Not at all.
    Hidden,
}

/// What a pagemap is, said once, when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PagemapSpec {
    /// Whose it is.
    pub owner: Owner,
    /// How long it is; `None` when nobody has said.
    pub len_bytes: Option<u64>,
    /// How the bus sees it.
    pub bus: BusWindow,
}

impl PagemapSpec {
    /// Memory that the bus sees.
    pub fn visible(owner: &Owner) -> PagemapSpec {
        PagemapSpec { owner: owner.clone(), len_bytes: None, bus: BusWindow::Visible { start: None } }
    }

    /// Memory that the bus does not see. Private links reach it.
    pub fn hidden(owner: &Owner) -> PagemapSpec {
        PagemapSpec { owner: owner.clone(), len_bytes: None, bus: BusWindow::Hidden }
    }

    /// The pagemaps of `vram`, of which the bus sees the first `visible`: one, or two if it sees a part.
    pub fn of_vram(owner: &Owner, vram: Size, visible: Size) -> Vec<PagemapSpec> {
        let seen = visible.as_bytes().min(vram.as_bytes());
        let hidden = vram.as_bytes() - seen;
        let parts = [(PagemapSpec::visible(owner), seen), (PagemapSpec::hidden(owner), hidden)];
        parts.into_iter().filter(|(_, len)| *len > 0).map(|(spec, len)| spec.len(Size::bytes(len))).collect()
    }

    /// How long it is.
    #[must_use]
    pub fn len(self, len: Size) -> PagemapSpec {
        PagemapSpec { len_bytes: Some(len.as_bytes()), ..self }
    }

    /// Where on the bus it begins, if the bus sees it.
    #[must_use]
    pub fn bus_start(self, start: u64) -> PagemapSpec {
        let bus = match self.bus {
            BusWindow::Visible { .. } => BusWindow::Visible { start: Some(start) },
            BusWindow::Hidden => BusWindow::Hidden,
        };
        PagemapSpec { bus, ..self }
    }

    /// Refuses what cannot be.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::InvalidPagemap { owner: self.owner.name().to_string(), why });
        if self.len_bytes == Some(0) {
            return wrong("it has no bytes".to_string());
        }
        if let (BusWindow::Visible { start: Some(start) }, Some(len)) = (self.bus, self.len_bytes)
            && start.checked_add(len).is_none()
        {
            return wrong(format!("{len} bytes from {start:#x} go past the end of all addresses"));
        }
        Ok(())
    }
}
