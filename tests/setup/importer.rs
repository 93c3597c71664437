//! A peer device that does what the test says, and remembers what it was told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devpagemap::{
    Attachment, BarAddr, Buffer, Device, Fence, Importer, InvalidateReason, Invalidated, Peer, PeerAddr,
    PeerMap, RegionKind, Route, SoftwareGpu,
};

use super::pattern;

pub struct Nic {
    name: &'static str,
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
        Arc::new(Nic { name, told: Mutex::default(), answer: Mutex::default(), in_use: Mutex::default() })
    }

    pub fn join(name: &'static str, device: &Device<SoftwareGpu>) -> (Arc<Nic>, Peer) {
        let nic = Nic::new(name);
        let peer = device.join(nic.clone());
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

/// Fails unless a peer that waits as it should finds the pattern of `seed` through this map.
#[track_caller]
pub fn expect_peer_reads(device: &Device<SoftwareGpu>, map: &PeerMap, seed: u64) {
    map.after().wait_timeout(super::FOREVER).expect("the bytes arrive");
    // The work of others is its business too.
    map.buffer().fences().wait_timeout(super::FOREVER).expect("the writers are done");
    let mut offset = map.range().start;
    for extent in map.extents() {
        let mut bytes = vec![0xa5; extent.len_bytes as usize];
        let read = match extent.addr {
            PeerAddr::Bar(addr) => device.driver().read_bar(addr, &mut bytes),
            PeerAddr::System(addr) => device.driver().read_system(addr, &mut bytes),
        };
        read.expect("a mapped address is one");
        // What fills up the last page is nobody's pattern.
        let end = map.buffer().size().as_bytes().min(offset + extent.len_bytes);
        bytes.truncate((end - offset) as usize);
        if let Err(wrong) = pattern::check(seed, offset, &bytes) {
            panic!("through {map:?}: {wrong}");
        }
        offset += extent.len_bytes;
    }
    assert_eq!(offset, map.range().end, "the extents cover the range");
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
        PeerAddr::System(_) => panic!("{map:?} is not in the BAR"),
    }
}
