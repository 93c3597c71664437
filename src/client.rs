//! Clients: on whose account buffers are. A driver that serves several applications gives each its share of the BAR.

use std::fmt;
use std::sync::Arc;

use devpagemap_fence::Held;

use crate::aperture::{Account, AccountId, Ledger};
use crate::bo::BufferBuilder;
use crate::import::ImportBudget;
use crate::manager::Manager;
use crate::size::Size;

/// What buffers keep of the client that they belong to.
#[derive(Debug)]
pub(crate) struct ClientAccount {
    /// For people. Constant.
    name: Box<str>,
    /// Its own lock.
    account: Account,
    /// Its own lock.
    imports: Arc<ImportBudget>,
}

impl ClientAccount {
    pub(crate) fn open(name: impl Into<Box<str>>, ledger: &Arc<Ledger>) -> Arc<ClientAccount> {
        let account = Account::open(ledger, &mut Held::in_destructor());
        Arc::new(ClientAccount { name: name.into(), account, imports: ImportBudget::new() })
    }

    pub(crate) fn id(&self) -> AccountId {
        self.account.id
    }

    pub(crate) fn imports(&self) -> &Arc<ImportBudget> {
        &self.imports
    }
}

/// Somebody on whose account buffers are created, made by [`Device::client`](crate::Device::client). Clones are the same
/// client; it lives as long as a clone or a buffer of it. Buffers that a device creates itself are on an account of their
/// own, without limits.
///
/// ```
/// use devpagemap::{Device, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
/// let compositor = device.client("compositor").p2p_limit(Size::mib(4));
/// let frame = compositor.buffer(Size::mib(1)).create()?;
/// assert_eq!(compositor.p2p_used(), Size::bytes(0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    /// Constant.
    manager: Arc<Manager>,
    /// Constant; its own lock.
    account: Arc<ClientAccount>,
}

impl Client {
    pub(crate) fn new(manager: Arc<Manager>, name: String) -> Client {
        let account = ClientAccount::open(name, &manager.ledger);
        Client { manager, account }
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.account.name
    }

    /// As [`set_p2p_limit`](Client::set_p2p_limit), for use where the client is made.
    #[must_use = "it is the client with its limit"]
    pub fn p2p_limit(self, limit: Size) -> Client {
        self.set_p2p_limit(limit);
        self
    }

    /// How much of the BAR importers may use for the buffers of this client together, from now on; in whole pages, rounded down.
    /// What is mapped beyond that stays, but there is no more. Without a limit, that of the device is the only one.
    pub fn set_p2p_limit(&self, limit: Size) {
        self.account.account.set_limit(limit);
    }

    /// How much of the BAR importers have mapped of its buffers.
    pub fn p2p_used(&self) -> Size {
        self.account.account.used()
    }

    /// How many bytes of other people's dma-bufs its [imports](crate::Device::import) may map together, from now on. What is mapped beyond
    /// that stays, but there is no more. There is no limit unless one is set.
    pub fn set_import_limit(&self, limit: Size) {
        self.account.imports.set_limit(limit.as_bytes());
    }

    /// How many bytes of other people's dma-bufs are mapped on this account. Those of a buffer that is gone count until its last user has
    /// finished.
    pub fn imported(&self) -> Size {
        Size::bytes(self.account.imports.used_bytes())
    }

    /// Its account, if it is a client of that device.
    pub(crate) fn account_on(&self, manager: &Arc<Manager>) -> Option<Arc<ClientAccount>> {
        Arc::ptr_eq(&self.manager, manager).then(|| self.account.clone())
    }

    /// Describes a buffer of `size`, on this account.
    pub fn buffer(&self, size: Size) -> BufferBuilder {
        BufferBuilder::new(self.manager.clone(), self.account.clone(), size)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name()).finish_non_exhaustive()
    }
}
