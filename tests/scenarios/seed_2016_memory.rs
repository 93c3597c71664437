//! Gunthorpe and König, 2016: memory of a device moves to system memory under pressure, and every table that shows it follows; nobody pins it for
//! a map, and a processor's slow maps are asked for by name.

use std::sync::Mutex;
use std::sync::{Arc, PoisonError};

use devpagemap::{
    CopyEngine, Device, DeviceMemory, Driver, Fence, InvalidateReason, MemoryLayout, MemoryMap, Moved,
    RegionKind, Result, Route, Size, SoftwareGpu,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// A GPU with page tables of its own: where it was told that a buffer is.
struct WithTables {
    gpu: SoftwareGpu,
    told: Arc<Mutex<Vec<(u64, RegionKind)>>>,
}

impl Driver for WithTables {
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        self.gpu.copy_engines(memory)
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn rebind(&self, moved: &Moved<'_>) -> Result<Option<Fence>> {
        assert_eq!(moved.extents().len_bytes(), MIB);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push((moved.buffer(), moved.to()));
        Ok(None)
    }
}

impl RunsJobs for WithTables {
    fn gpu(&self) -> &SoftwareGpu {
        &self.gpu
    }
}

#[test]
fn vram_moves_to_system_memory_under_pressure_and_the_tables_of_cpu_and_gpu_follow() {
    let told = Arc::new(Mutex::default());
    let gpu = SoftwareGpu::builder().build().expect("threads");
    let device =
        Device::builder(WithTables { gpu, told: told.clone() }).vram(Size::mib(1)).system(Size::mib(64));
    let device = device.build().expect("a small device");
    let mine = filled(&device, 1, 1);
    let cpu = mine.map().expect("it opted in");
    let mut first = [0; 64];
    cpu.read(0, &mut first).expect("it is mapped");
    let other = filled(&device, 1, 2);
    assert_eq!((mine.region(), other.region()), (SYSTEM, VRAM), "under pressure");
    let mut again = [0; 64];
    cpu.read(0, &mut again).expect("it is mapped still, at the same address");
    assert_eq!(first, again);
    finished(verify(&device, &mine, 1));
    assert_eq!((mine.region(), other.region()), (VRAM, SYSTEM), "work brings it in when it is submitted");
    let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mine_was: Vec<_> = told.iter().filter(|(id, _)| *id == mine.id()).map(|(_, to)| *to).collect();
    assert_eq!(mine_was, [RegionKind::Vram, RegionKind::System, RegionKind::Vram]);
}

#[test]
fn a_notifier_takes_the_place_of_a_pin() {
    let device = device_for_peers(1);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 1, 1);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    peer_uses(&device, &map, 1);
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let newcomer = filled(&device, 1, 2);
    assert_eq!((buffer.region(), newcomer.region()), (SYSTEM, VRAM), "the map has pinned nothing");
    assert_eq!(nic.was_told(), [(buffer.id(), InvalidateReason::Moved)]);
    write_mapped_bytes(&device, &map, 3);
    gate.open();
    expect_bytes(&buffer, 3);
    expect_bytes(&newcomer, 2);
}

#[test]
fn slow_maps_of_vram_are_for_those_who_asked_for_them() {
    let device = device(4);
    let plain = device.buffer(Size::mib(1)).create().expect("a buffer");
    let asked = device.buffer(Size::mib(1)).write_combined().create().expect("a buffer");
    for buffer in [&plain, &asked] {
        fill(&device, buffer, 1).expect("room");
        let map = buffer.map().expect("it can be reached");
        let mut bytes = [0; 8];
        map.read(0, &mut bytes).expect("it is mapped");
    }
    assert_eq!((plain.region(), asked.region()), (SYSTEM, VRAM));
}

#[test]
fn what_a_map_shows_is_where_the_buffer_is_however_often_it_moves() {
    let device = device_for_peers(1);
    let (_, peer) = Nic::join("nic", &device);
    let buffers = [1, 2].map(|seed| filled(&device, 1, seed));
    for _ in 0..10 {
        for (seed, buffer) in (1..).zip(&buffers) {
            let map = map_all(&buffer.attach(&peer).expect("one device"));
            assert_eq!(map.route(), Route::Declared);
            expect_peer_reads(&device, &map, seed);
        }
    }
}
