//! A peer device that does what the test says, and remembers what it was told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devpagemap::pagemap::Profile;
use devpagemap::{
    Access, Attachment, BarAddr, Buffer, Device, Fence, FenceSet, Importer, InvalidateReason, Invalidated,
    Peer, PeerAddr, PeerMap, RegionKind, Route, SoftwareGpu,
};

use super::pattern;

pub struct Nic {
    name: &'static str,
    profile: Profile,
    /// Which buffer, and why.
    told: Mutex<Vec<(u64, InvalidateReason)>>,
    /// What it answers when it is told.
    answer: Mutex<Option<Fence>>,
    /// What it drops when it is told.
    in_use: Mutex<Vec<PeerMap>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nic {
    pub fn new(name: &'static str) -> Arc<Nic> {
        Nic::like(name, Profile::dynamic())
    }

    pub fn like(name: &'static str, profile: Profile) -> Arc<Nic> {
        let (told, answer, in_use) = Default::default();
        Arc::new(Nic { name, profile, told, answer, in_use })
    }

    pub fn join(name: &'static str, device: &Device<SoftwareGpu>) -> (Arc<Nic>, Peer) {
        Nic::join_as(name, Profile::dynamic(), device)
    }

    /// One that can and wants what `profile` says.
    pub fn join_as(name: &'static str, profile: Profile, device: &Device<SoftwareGpu>) -> (Arc<Nic>, Peer) {
        let nic = Nic::like(name, profile);
        let peer = device.join(nic.clone()).expect("an importer that can be");
        (nic, peer)
    }

    /// From now on it is done with what it is told about when `fence` signals.
    pub fn is_busy_until(&self, fence: &Fence) {
        *lock(&self.answer) = Some(fence.clone());
    }

    pub fn keeps(&self, map: PeerMap) {
        lock(&self.in_use).push(map);
    }

    pub fn was_told(&self) -> Vec<(u64, InvalidateReason)> {
        std::mem::take(&mut lock(&self.told))
    }
}

impl Importer for Nic {
    fn name(&self) -> &str {
        self.name
    }

    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    fn invalidate(&self, what: &Invalidated) -> Option<Fence> {
        lock(&self.told).push((what.buffer(), what.reason()));
        lock(&self.in_use).retain(PeerMap::is_current);
        lock(&self.answer).clone()
    }
}

/// Maps all of the buffer.
#[track_caller]
pub fn map_all(attachment: &Attachment) -> PeerMap {
    attachment.map(0..attachment.buffer().size().as_bytes()).expect("a place that a peer can reach")
}

/// A peer that says what it does and waits as it should reads the pattern of `seed` through this map.
#[track_caller]
pub fn peer_uses(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    let before = map.begin(Access::Read).expect("the map is current");
    before.wait_timeout(super::FOREVER).expect("the bytes arrive");
    expect_mapped_bytes(device, map, seed);
    map.end(Access::Read, &Fence::signaled()).expect("a slot");
}

/// A peer that says what it does and waits as it should writes the pattern of `seed` through this map.
#[track_caller]
pub fn peer_writes(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    let before = map.begin(Access::Write).expect("the map is current");
    peer_writes_after(device, map, seed, &before);
}

/// The same, for who has begun and been told what to wait for.
#[track_caller]
pub fn peer_writes_after(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64, before: &FenceSet) {
    before.wait_timeout(super::FOREVER).expect("the bytes arrive");
    write_mapped_bytes(device, map, seed);
    map.end(Access::Write, &Fence::signaled()).expect("a slot");
}

/// Writes the pattern of `seed` through the addresses of a map, whoever else does what.
#[track_caller]
pub fn write_mapped_bytes(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    let mut offset = map.range().start;
    for extent in map.extents() {
        let mut bytes = vec![0; extent.len_bytes as usize];
        pattern::write(seed, offset, &mut bytes);
        let written = match extent.addr {
            PeerAddr::Bar(addr) => device.driver().write_bar(addr, &bytes),
            PeerAddr::System(addr) => device.driver().write_system(addr, &bytes),
            PeerAddr::Vram(addr) => device.driver().write_vram(addr, &bytes),
        };
        written.expect("a mapped address is one");
        offset += extent.len_bytes;
    }
}

/// Fails unless a peer that waits as it should finds the pattern of `seed` through this map.
#[track_caller]
pub fn expect_peer_reads(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    map.after().wait_timeout(super::FOREVER).expect("the bytes arrive");
    // The work of others is its business too.
    map.buffer().fences().wait_timeout(super::FOREVER).expect("the writers are done");
    expect_mapped_bytes(device, map, seed);
}

/// Fails unless the pattern of `seed` is behind the addresses of a map, whoever else does what.
#[track_caller]
pub fn expect_mapped_bytes(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    let mut bytes = mapped_bytes(device, map);
    let start = map.range().start;
    assert_eq!(start + bytes.len() as u64, map.range().end, "the extents cover the range");
    // What fills up the last page is nobody's pattern.
    bytes.truncate((map.buffer().size().as_bytes() - start) as usize);
    if let Err(wrong) = pattern::check(seed, start, &bytes) {
        panic!("through {map:?}: {wrong}");
    }
}

/// What is behind the addresses of a map, whoever else does what.
#[track_caller]
pub fn mapped_bytes(device: &Device<SoftwareGpu>, map: &PeerMap) -> Vec<u8> {
    let mut all = Vec::new();
    for extent in map.extents() {
        let mut bytes = vec![0xa5; extent.len_bytes as usize];
        let read = match extent.addr {
            PeerAddr::Bar(addr) => device.driver().read_bar(addr, &mut bytes),
            PeerAddr::System(addr) => device.driver().read_system(addr, &mut bytes),
            PeerAddr::Vram(addr) => device.driver().read_vram(addr, &mut bytes),
        };
        read.expect("a mapped address is one");
        all.extend(bytes);
    }
    all
}

/// Which way its maps go, and where it is.
pub fn way(map: &PeerMap, buffer: &Buffer) -> (Route, Option<RegionKind>) {
    (map.route(), buffer.region())
}

/// Where its first bytes are in the BAR.
#[track_caller]
pub fn bar_addr(map: &PeerMap) -> BarAddr {
    match map.extents()[0].addr {
        PeerAddr::Bar(addr) => addr,
        PeerAddr::System(_) | PeerAddr::Vram(_) => panic!("{map:?} is not in the BAR"),
    }
}
