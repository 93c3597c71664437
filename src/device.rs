//! A device: one GPU's memory, built from a driver and sizes.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use devpagemap_fence::{Held, lockdep};
use devpagemap_migrate::{MoveQueue, Space};

use crate::aperture::{Bar, P2pLimits, PressureLevel, Windows};
use crate::backend::{Arena, DeviceMemory};
use crate::bo::{BufferBuilder, CpuAccess, EvictionPolicy};
use crate::client::Client;
use crate::cpu::CpuFaults;
use crate::driver::{Driver, MemoryLayout};
use crate::error::Result;
use crate::events::Events;
use crate::import::Import;
use crate::manager::{Manager, Parts};
use crate::pagemap::{Owner, Pagemap, Phase, Registry};
use crate::region::{StagingPages, SystemRegion, VramRegion};
use crate::share::{Importer, Pagemaps, Peer, RevokeReport};
use crate::size::Size;
use crate::stats::Stats;
use crate::submit::Submission;
use crate::sync_file::{Crossing, Kernel};
use crate::topology::PciAddress;
use crate::unplug::{Revoke, Unplug};
#[cfg(not(any(loom, shuttle)))]
use crate::{
    backend::DmaBuf,
    error::Error,
    import::Foreign,
    sync_file::{FenceSource, Machine},
};

/// Long enough for what a device has queued, short enough for who has pulled its plug.
const REVOKE_BOUND: Duration = Duration::from_secs(5);
/// Shorter than the ten seconds after which vgem's fences look as if their work had been done.
const FOREIGN_FENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// One GPU's memory. Clones are the same device; it lives as long as a clone or a buffer of it.
pub struct Device<D> {
    manager: Arc<Manager>,
    /// The manager keeps the driver as what it does, the device as what it is.
    driver: PhantomData<fn() -> D>,
}

impl<D> Clone for Device<D> {
    fn clone(&self) -> Device<D> {
        Device { manager: self.manager.clone(), driver: PhantomData }
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<D> Drop for Device<D> {
    /// Exports keep the device; whether they still have to is looked at once more.
    fn drop(&mut self) {
        self.manager.exports.poke();
    }
}

impl<D> fmt::Debug for Device<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("manager", &self.manager).finish_non_exhaustive()
    }
}

impl<D: Driver> Device<D> {
    /// Describes a device around `driver`.
    pub fn builder(driver: D) -> DeviceBuilder<D> {
        DeviceBuilder {
            driver,
            vram: None,
            bar: None,
            gtt: Size::gib(4),
            system: None,
            policy: EvictionPolicy::default(),
            p2p_limits: None,
            registry: None,
            at: None,
            cpu_access: CpuAccess::default(),
            cpu_faults: CpuFaults::default(),
            revoke_bound: REVOKE_BOUND,
            foreign_fence_timeout: FOREIGN_FENCE_TIMEOUT,
            #[cfg(not(any(loom, shuttle)))]
            fence_source: FenceSource::default(),
            #[cfg(test)]
            kernel: None,
        }
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn manager(&self) -> &Arc<Manager> {
        &self.manager
    }

    /// The driver it was built around.
    pub fn driver(&self) -> &D {
        driver_of(&self.manager)
    }

    /// Describes a buffer of `size`.
    pub fn buffer(&self, size: Size) -> BufferBuilder {
        BufferBuilder::new(self.manager.clone(), self.manager.nobody.clone(), size)
    }

    /// Describes a buffer whose bytes are somebody else's dma-buf: a [`DmaBuf`](crate::DmaBuf), an
    /// [`OwnedFd`](std::os::fd::OwnedFd), or a [`BorrowedFd`](std::os::fd::BorrowedFd), of which a copy is taken.
    ///
    /// The bytes stay where they are, for good: jobs use them there, whatever they are used to, and nothing evicts them. They belong to
    /// somebody else, who may write them at any time that fences do not forbid.
    ///
    /// ```no_run
    /// # use devpagemap::{Device, Size, SoftwareGpu};
    /// # fn main() -> devpagemap::Result<()> {
    /// # let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
    /// # let fd: std::os::fd::OwnedFd = std::fs::File::open("frame").expect("it is there").into();
    /// let frame = device.import(fd).at_least(Size::mib(8)).read_only().name("camera frame").create()?;
    /// let mut first = [0; 16];
    /// frame.read_at(0, &mut first)?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(not(any(loom, shuttle)))]
    pub fn import<F>(&self, dma_buf: F) -> Import
    where
        F: TryInto<DmaBuf>,
        Error: From<F::Error>,
    {
        Import::new(&self.manager, dma_buf.try_into().map(Foreign::from).map_err(Error::from))
    }

    /// Imports a page of somebody else's that is known by `inode`, as a model has it.
    #[cfg(any(loom, shuttle))]
    pub fn import_page(&self, inode: u64) -> Import {
        Import::of_page(&self.manager, inode)
    }

    /// A new client, on whose account buffers can be; `name` is for people.
    pub fn client(&self, name: impl Into<String>) -> Client {
        Client::new(self.manager.clone(), name.into())
    }

    /// Lets another device in, which may then [attach](crate::Buffer::attach) to buffers of this one. It joins the device's
    /// [registry](Device::registry) too, by what it [says of itself](Importer::profile).
    ///
    /// # Errors
    /// [`Error::InvalidImporter`](crate::Error::InvalidImporter) for a profile that cannot be,
    /// [`Error::RegistryFull`](crate::Error::RegistryFull).
    pub fn join(&self, importer: Arc<dyn Importer>) -> Result<Peer> {
        Peer::join(self.manager.clone(), importer)
    }

    /// Who can reach the memory of this device, by which route, and why.
    pub fn registry(&self) -> &Registry {
        self.manager.pagemaps.registry()
    }

    /// This device in its registry. An importer that is itself a device is [of](crate::pagemap::Profile::of_device) one.
    pub fn owner(&self) -> &Owner {
        self.manager.pagemaps.owner()
    }

    /// Its memory in its registry: the part that the BAR shows, or can show, before the one that it does not.
    pub fn pagemaps(&self) -> &[Pagemap] {
        self.manager.pagemaps.all()
    }

    /// Brings buffers that had to leave the BAR back now, as far as there is room, instead of when the device's own thread gets
    /// to it. Importers are told. Returns how many came back.
    pub fn promote(&self) -> usize {
        self.manager.promote()
    }

    /// Lets go now of exported buffers whose dma-buf nobody outside has any more, instead of when the device's own thread gets to it. Returns
    /// how many those were.
    #[cfg(not(any(loom, shuttle)))]
    pub fn release_exports(&self) -> usize {
        self.manager.release_exports()
    }

    /// Tells importers whose route has changed now, instead of when the device's own thread gets to it. Returns how many were told.
    pub fn reroute(&self) -> usize {
        self.manager.reroute()
    }

    /// Subscribes to what happens to the BAR and to peers' maps, from now on.
    pub fn events(&self) -> Events {
        self.manager.events.subscribe()
    }

    /// How hard peers press on the BAR now. Who subscribes first and asks then misses no change.
    pub fn bar_pressure(&self) -> Option<PressureLevel> {
        self.manager.ledger.usage(&mut Held::in_destructor()).level
    }

    /// Starts describing work for the GPU.
    pub fn submit(&self) -> Submission<D> {
        Submission::new(self.manager.clone())
    }

    /// Waits until everything that was submitted or queued before this call is done, well or not.
    pub fn wait_idle(&self) {
        self.manager.wait_idle();
    }

    /// Takes VRAM away from everybody, because the device is unplugged: importers are told, one buffer after the other, and what is
    /// in VRAM moves to system memory, or is lost and said to be ([`Event::Lost`](crate::Event::Lost)). When this returns all have been
    /// told and all copies are queued; [`Revoke::done`](crate::Revoke::done) signals when nobody uses VRAM any more. See `docs/revoke.md`.
    ///
    /// From the call on, whatever needs VRAM is an [`Error::Revoked`](crate::Error::Revoked): submissions, maps in the BAR, places
    /// there. What is in system memory goes on working. An unplug while another is under way is that one; a surprise then makes
    /// one of it.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when an orderly unplug finds no system memory for what is in VRAM: it is called off, and
    /// nothing is lost. [`Error::Revoked`](crate::Error::Revoked) while the device is reset, [`Error::DeviceLost`](crate::Error::DeviceLost).
    ///
    /// # Panics
    /// In debug builds, within a driver's hook, an importer's or a fence callback.
    pub fn unplug(&self, how: Unplug) -> Result<Revoke> {
        self.manager.unplug(how)
    }

    /// Resets the device: importers and CPU maps let go of VRAM, what is queued has [its time](DeviceBuilder::revoke_bound) to end,
    /// then the driver [resets](Driver::reset) it and says whether VRAM has kept its bytes. If not, every buffer that had some there has
    /// lost them ([`Event::Lost`](crate::Event::Lost)). The device can be used again when this returns.
    ///
    /// # Errors
    /// [`Error::Revoked`](crate::Error::Revoked) while it is unplugged or reset, [`Error::FenceSlots`](crate::Error::FenceSlots), and then nothing has
    /// happened; what the driver says, and then the device is lost; [`Error::DeviceLost`](crate::Error::DeviceLost).
    ///
    /// # Panics
    /// As [`Device::unplug`].
    pub fn reset(&self) -> Result<RevokeReport> {
        self.manager.reset()
    }

    /// The device that was unplugged is back. Buffers that were moved out come back to VRAM when they are used, those that lost bytes
    /// stay lost. Nothing happens to a device that is there.
    ///
    /// # Errors
    /// [`Error::Revoked`](crate::Error::Revoked) when VRAM is not all taken away yet, or an importer that did not let go in time may still use
    /// windows in the BAR; what the driver says; [`Error::DeviceLost`](crate::Error::DeviceLost).
    pub fn rearm(&self) -> Result<()> {
        self.manager.rearm()
    }

    /// How far VRAM has been taken away.
    pub fn phase(&self) -> Phase {
        self.manager.revocation.phase()
    }

    /// Says that the hardware is gone: unplugged, or beyond reset. There is no way back.
    ///
    /// CPU maps show [what they were told to](crate::AfterLoss) from now on, and whatever is asked of the device is an
    /// [`Error::DeviceLost`](crate::Error::DeviceLost). What was submitted is not touched; its fences signal, or fail, as the
    /// driver says.
    pub fn declare_lost(&self) {
        self.manager.declare_lost();
    }

    /// What the device has done so far and holds now.
    pub fn stats(&self) -> Stats {
        self.manager.stats()
    }

    /// How its memory is laid out.
    pub fn layout(&self) -> MemoryLayout {
        MemoryLayout {
            vram_bytes: self.manager.vram.size_bytes,
            bar: self.manager.windows.bar(),
            visible_bytes: self.manager.vram.visible_bytes,
            gtt_bytes: self.manager.system.gtt_bytes,
        }
    }
}

/// Sizes and policy of a device to be built.
#[must_use = "a builder builds nothing until `build`"]
#[derive(Debug)]
pub struct DeviceBuilder<D> {
    driver: D,
    vram: Option<Size>,
    bar: Option<Bar>,
    gtt: Size,
    system: Option<Size>,
    policy: EvictionPolicy,
    p2p_limits: Option<P2pLimits>,
    registry: Option<Registry>,
    at: Option<PciAddress>,
    cpu_access: CpuAccess,
    cpu_faults: CpuFaults,
    revoke_bound: Duration,
    foreign_fence_timeout: Duration,
    #[cfg(not(any(loom, shuttle)))]
    fence_source: FenceSource,
    #[cfg(test)]
    kernel: Option<Arc<dyn Kernel>>,
}

impl<D: Driver> DeviceBuilder<D> {
    /// The size of VRAM, in whole pages. Without it there is as much as the [driver](Driver::vram_size) says; if that says nothing,
    /// `build` refuses.
    pub fn vram(self, size: Size) -> DeviceBuilder<D> {
        DeviceBuilder { vram: Some(size), ..self }
    }

    /// What the BAR shows of VRAM: a prefix, or windows. All of it, unless told otherwise.
    pub fn bar(self, bar: Bar) -> DeviceBuilder<D> {
        DeviceBuilder { bar: Some(bar), ..self }
    }

    /// How much of VRAM is visible, from its start: short for [`Bar::Prefix`].
    pub fn visible(self, size: Size) -> DeviceBuilder<D> {
        self.bar(Bar::Prefix(size))
    }

    /// How much system memory the GPU may reach at once; 4 GiB unless told otherwise.
    pub fn gtt(self, size: Size) -> DeviceBuilder<D> {
        DeviceBuilder { gtt: size, ..self }
    }

    /// How much system memory buffers may use, GTT included; as much as the machine has, unless told otherwise.
    pub fn system(self, size: Size) -> DeviceBuilder<D> {
        DeviceBuilder { system: Some(size), ..self }
    }

    /// Who is evicted.
    pub fn policy(self, policy: EvictionPolicy) -> DeviceBuilder<D> {
        DeviceBuilder { policy, ..self }
    }

    /// How much of the BAR peers may use; [`P2pLimits::for_bar`] unless told otherwise.
    pub fn p2p_limits(self, limits: P2pLimits) -> DeviceBuilder<D> {
        DeviceBuilder { p2p_limits: Some(limits), ..self }
    }

    /// Where it is decided who reaches its memory; devices that are to reach each other's share one. Unless told otherwise one of its own, of
    /// a machine of which nothing is known.
    pub fn registry(self, registry: &Registry) -> DeviceBuilder<D> {
        DeviceBuilder { registry: Some(registry.clone()), ..self }
    }

    /// Where it is in the machine. Without it, what importers say of themselves decides whether they reach it.
    pub fn at(self, address: PciAddress) -> DeviceBuilder<D> {
        DeviceBuilder { at: Some(address), ..self }
    }

    /// What becomes of buffers in VRAM that the CPU wants to reach and does not see.
    pub fn cpu_access(self, policy: CpuAccess) -> DeviceBuilder<D> {
        DeviceBuilder { cpu_access: policy, ..self }
    }

    /// How CPU maps follow their buffers.
    pub fn cpu_faults(self, cpu_faults: CpuFaults) -> DeviceBuilder<D> {
        DeviceBuilder { cpu_faults, ..self }
    }

    /// For how long none of those who use VRAM may let go, when it is taken away, before all of them are overdue
    /// ([`Event::RevokeOverdue`](crate::Event::RevokeOverdue)) and waited for no more; 5 s unless told otherwise.
    pub fn revoke_bound(self, bound: Duration) -> DeviceBuilder<D> {
        DeviceBuilder { revoke_bound: bound, ..self }
    }

    /// For how long fences of other drivers are waited for; 5 s unless told otherwise. A job that has to wait for one that does not signal in
    /// that time fails ([`FenceError::TimedOut`](crate::FenceError::TimedOut)), and so does the CPU's access.
    ///
    /// vgem signals its own fences after 10 s, and then they look as if all was well. With a longer timeout than that they do so here too.
    pub fn foreign_fence_timeout(self, timeout: Duration) -> DeviceBuilder<D> {
        DeviceBuilder { foreign_fence_timeout: timeout, ..self }
    }

    /// From where it has kernel fences, so that others wait for its work on shared buffers.
    #[cfg(not(any(loom, shuttle)))]
    pub fn fence_source(self, source: FenceSource) -> DeviceBuilder<D> {
        DeviceBuilder { fence_source: source, ..self }
    }

    /// A kernel that is made up.
    #[cfg(test)]
    pub(crate) fn kernel(self, kernel: Arc<dyn Kernel>) -> DeviceBuilder<D> {
        DeviceBuilder { kernel: Some(kernel), ..self }
    }

    /// What it has for fences that cross.
    fn crossing(&self) -> Arc<Crossing> {
        #[cfg(any(loom, shuttle))]
        let kernel: Arc<dyn Kernel> = Arc::new(crate::sync_file::NoKernel);
        #[cfg(not(any(loom, shuttle)))]
        let kernel: Arc<dyn Kernel> = Arc::new(Machine::new(self.fence_source));
        #[cfg(test)]
        let kernel = self.kernel.clone().unwrap_or(kernel);
        Crossing::new(kernel, self.foreign_fence_timeout)
    }

    /// Maps the memory and starts the engines.
    ///
    /// # Errors
    /// [`Error::InvalidSize`](crate::Error::InvalidSize) for sizes that are zero or not whole pages and limits that are out of
    /// order, [`Error::RegistryFull`](crate::Error::RegistryFull), [`Error::Io`](crate::Error::Io) when the system refuses, and
    /// whatever the driver says.
    pub fn build(self) -> Result<Device<D>> {
        lockdep::prime();
        let crossing = self.crossing();
        let vram = self.vram.or_else(|| self.driver.vram_size()).unwrap_or_default();
        let vram_bytes = vram.as_bytes();
        let bar = self.bar.unwrap_or(Bar::Prefix(vram));
        bar.check(vram_bytes)?;
        let visible_bytes = bar.visible().as_bytes();
        let limits = self.p2p_limits.unwrap_or_else(|| P2pLimits::for_bar(bar.size()));
        let p2p_marks = limits.marks(bar.size().as_bytes())?;
        let vram = VramRegion::new(vram_bytes, visible_bytes)?;
        let owner = self.at.map_or_else(|| Owner::new("the device"), Owner::at);
        let registry = self.registry.unwrap_or_else(Registry::unknown);
        let pagemaps = Pagemaps::join(registry, owner, vram_bytes, bar)?;
        let layout = MemoryLayout { vram_bytes, bar, visible_bytes, gtt_bytes: self.gtt.as_bytes() };
        let system_bytes = match self.system {
            Some(size) => size.as_bytes(),
            None => machine_memory_bytes(),
        };
        let arena = Arc::new(Arena::shared("devpagemap-system", system_bytes)?);
        let system = Arc::new(SystemRegion::new(arena.clone(), layout.gtt_bytes)?);
        let driver: Arc<dyn Driver> = Arc::new(self.driver);
        let cpu = DeviceMemory::new(driver.map_vram(&layout)?, visible_bytes, arena);
        let mut queue = MoveQueue::builder().staging(StagingPages::new(system.clone()));
        let engines = driver.copy_engines(&cpu)?;
        let is_masked = engines.iter().any(|engine| engine.window(Space::System) != (0..u64::MAX));
        for engine in engines {
            queue = queue.engine(engine);
        }
        if let Some(engine) = driver.fallback_engine(&cpu) {
            queue = queue.fallback(engine);
        }
        let queue = queue.build();
        if is_masked {
            // Once buffers are there, nothing may be left of what the engines see. Untouched pages cost nothing.
            queue.staging_ring(&mut Held::enter());
        }
        let manager = Manager::new(Parts {
            driver,
            vram,
            windows: Windows::new(bar, limits.cpu_reserve.as_bytes())?,
            system,
            cpu,
            policy: self.policy,
            p2p_marks,
            pagemaps,
            cpu_access: self.cpu_access,
            queue,
            cpu_faults: self.cpu_faults,
            revoke_bound: self.revoke_bound,
            crossing,
        });
        Ok(Device { manager, driver: PhantomData })
    }
}

/// The driver behind a manager that was built from a `D`.
pub(crate) fn driver_of<D: Driver>(manager: &Manager) -> &D {
    let driver: &dyn Any = manager.driver();
    driver.downcast_ref().expect("a device is typed by the driver it was built from")
}

fn machine_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram as u64 * u64::from(info.mem_unit);
    bytes.next_multiple_of(devpagemap_allocator::PAGE_BYTES)
}
