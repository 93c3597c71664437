//! Everything is dropped in every order, on every kind of thread, with work pending; and nothing is left of it.

#[path = "setup/census.rs"]
mod census;
#[path = "setup/gate.rs"]
mod gate;
#[path = "setup/jobs.rs"]
mod jobs;
#[path = "setup/pattern.rs"]
mod pattern;

use std::any::Any;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use census::Census;
use devpagemap::{
    Buffer, CopyEngine, CpuMap, Device, DeviceMemory, Driver, Error, Place, Result, Size, SoftwareGpu,
};
use gate::Gate;
use jobs::{fill, verify};

type Lab = Device<SoftwareGpu>;

/// Long enough that only a deadlock takes longer.
const FOREVER: Duration = Duration::from_secs(30);

/// Threads and files are counted for the whole process, so one scenario runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Lab {
    let gpu = SoftwareGpu::builder().rings(2).build().expect("threads for the rings");
    Device::builder(gpu).vram(Size::mib(2)).system(Size::mib(32)).build().expect("a small device")
}

fn filled(device: &Lab, mib: u64, seed: u64) -> Buffer {
    let buffer = device.buffer(Size::mib(mib)).write_combined().create().expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

/// Runs a scenario in a thread of its own; fails when that hangs, or when afterwards anything is left.
#[track_caller]
fn leaves_nothing(scenario: impl FnOnce() + Send + 'static) {
    let (ended, end) = channel::<()>();
    let thread = thread::spawn(move || {
        let _tells_also_when_it_panics = ended;
        scenario();
    });
    let waited = end.recv_timeout(FOREVER);
    assert_ne!(waited, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "the teardown hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    // A ring that dropped the last reference ends right after; nobody can join it.
    let deadline = Instant::now() + FOREVER;
    while census::take() != Census::default() {
        assert!(Instant::now() < deadline, "left behind: {:?}", census::take());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Opens the gate from another thread, a little later.
fn open_later(gate: Gate) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(3));
        gate.open();
    })
}

/// All orders of `count` things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let insert_last = |order: Vec<usize>| {
        (0..count).map(move |at| {
            let mut order = order.clone();
            order.insert(at, last);
            order
        })
    };
    orders(last).into_iter().flat_map(insert_last).collect()
}

/// Everything one can hold of a device; with a gate, the GPU works on the buffer until it opens.
fn one_of_each(gate: Option<&Gate>) -> Vec<Option<Box<dyn Any>>> {
    let device = device();
    let (buffer, held) = (filled(&device, 1, 1), filled(&device, 1, 2));
    let maps = (buffer.map().expect("all of VRAM is visible"), held.vmap().expect("all of VRAM is visible"));
    touch(&maps.0);
    let work = |buffer: &Buffer| {
        let submission = device.submit().writes(buffer);
        let submission = gate.iter().fold(submission, |submission, gate| submission.after(gate.fence()));
        submission.run(|gpu, job| gpu.run(job, |_| Ok(()))).expect("it is there")
    };
    let (fence, _ghosts_fence) = (work(&buffer), work(&held));
    let evictor = filled(&device, 1, 3);
    let submission = device.submit().writes(&evictor);
    drop(evictor);
    let things: [Box<dyn Any>; 6] = [
        Box::new(device),
        Box::new(buffer),
        Box::new(maps),
        Box::new(fence),
        Box::new(submission),
        Box::new(held),
    ];
    things.map(Some).into()
}

#[test]
fn an_idle_device_can_be_dropped_in_every_order() {
    let _alone = alone();
    leaves_nothing(|| {
        for order in orders(6).into_iter().step_by(7) {
            let mut things = one_of_each(None);
            order.into_iter().for_each(|at| drop(things[at].take()));
        }
    });
}

#[test]
fn a_device_with_work_pending_can_be_dropped_in_every_order() {
    let _alone = alone();
    leaves_nothing(|| {
        for order in orders(6).into_iter().step_by(5) {
            let gate = Gate::closed();
            let mut things = one_of_each(Some(&gate));
            let opener = open_later(gate);
            order.into_iter().for_each(|at| drop(things[at].take()));
            opener.join().expect("opening it does not panic");
        }
    });
}

#[test]
fn a_device_whose_work_waits_for_a_fence_that_is_abandoned_goes_down_too() {
    let _alone = alone();
    leaves_nothing(|| {
        let gate = Gate::closed();
        let things = one_of_each(Some(&gate));
        let abandoner = thread::spawn(move || {
            thread::sleep(Duration::from_millis(3));
            drop(gate);
        });
        drop(things);
        abandoner.join().expect("dropping it does not panic");
    });
}

#[test]
fn a_fence_outlives_its_device_and_has_signalled() {
    let _alone = alone();
    leaves_nothing(|| {
        let device = device();
        let buffer = filled(&device, 1, 1);
        let fence = verify(&device, &buffer, 1).expect("it is there");
        drop(buffer);
        drop(device);
        fence.wait_timeout(FOREVER).expect("the job was queued, so it ran");
    });
}

#[test]
fn a_buffer_alone_keeps_its_bytes() {
    let _alone = alone();
    leaves_nothing(|| {
        let device = device();
        let (buffer, _evictor) = (filled(&device, 1, 1), filled(&device, 2, 2));
        drop(device);
        let mut bytes = vec![0; 1 << 20];
        buffer.read_at(0, &mut bytes).expect("it is in system memory");
        assert_eq!(pattern::check(1, 0, &bytes), Ok(()));
    });
}

#[test]
fn the_last_buffer_may_be_dropped_by_a_job() {
    let _alone = alone();
    for _ in 0..20 {
        leaves_nothing(|| {
            let device = device();
            let buffer = filled(&device, 1, 1);
            let gate = Gate::closed();
            let last = buffer.clone();
            let job = device.submit().writes(&buffer).after(gate.fence()).run(|gpu, job| {
                gpu.run(job, move |_| {
                    drop(last);
                    Ok(())
                })
            });
            let job = job.expect("it is there");
            drop(buffer);
            let opener = open_later(gate);
            drop(device);
            job.wait_timeout(FOREVER).expect("the job ran");
            opener.join().expect("opening it does not panic");
        });
    }
}

#[test]
fn the_last_device_may_be_dropped_by_a_job() {
    let _alone = alone();
    for _ in 0..20 {
        leaves_nothing(|| {
            let device = device();
            let buffer = filled(&device, 1, 1);
            let gate = Gate::closed();
            let last = device.clone();
            let job = device.submit().writes(&buffer).after(gate.fence()).run(|gpu, job| {
                gpu.run(job, move |_| {
                    drop(last);
                    Ok(())
                })
            });
            drop((buffer, device));
            gate.open();
            job.expect("it was there").wait_timeout(FOREVER).expect("the job ran");
        });
    }
}

#[test]
fn the_last_buffer_may_be_dropped_by_a_job_that_copies_are_queued_behind() {
    let _alone = alone();
    leaves_nothing(|| {
        let device = device();
        let buffer = filled(&device, 2, 1);
        let gate = Gate::closed();
        let last = buffer.clone();
        let job = device.submit().writes(&buffer).after(gate.fence()).run(|gpu, job| {
            gpu.run(job, move |_| {
                drop(last);
                Ok(())
            })
        });
        // It evicts the buffer: that copy waits for the job, and the job's end takes the device down.
        let evictor = device.buffer(Size::mib(2)).create().expect("a buffer that fits");
        evictor.place_now().expect("the first can go");
        drop((evictor, buffer, device));
        gate.open();
        job.expect("it was there")
            .wait_timeout(FOREVER)
            .expect("the job does not wait for what waits for it");
    });
}

#[test]
fn the_last_references_may_be_dropped_by_fence_callbacks() {
    let _alone = alone();
    for _ in 0..20 {
        leaves_nothing(|| {
            let device = device();
            let buffer = filled(&device, 1, 1);
            let gate = Gate::closed();
            device.submit().writes(&buffer).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
            let evictor = filled(&device, 2, 2);
            drop(evictor);
            let last = (buffer, device);
            let hung = gate.fence().on_signal(move |_| drop(last));
            assert!(hung.is_ok(), "the gate is closed");
            gate.open();
        });
    }
}

#[test]
fn the_last_references_may_be_dropped_when_a_copy_ends() {
    let _alone = alone();
    for _ in 0..50 {
        leaves_nothing(|| {
            let device = device();
            let buffer = device.buffer(Size::mib(1)).create().expect("a buffer that fits");
            buffer.place_now().expect("room");
            let cleared = buffer.fences();
            // Whoever is first, the engine's thread in this callback or this thread, the other drops the last reference.
            let theirs = (buffer.clone(), device.clone());
            cleared.when_signaled(move || drop(theirs));
            drop((buffer, device));
        });
    }
}

#[test]
fn everything_at_once_may_be_dropped_while_copies_and_ghosts_are_ending() {
    let _alone = alone();
    leaves_nothing(|| {
        for round in 0..200 {
            let device = device();
            let buffers: Vec<_> = (0..6).map(|seed| filled(&device, 1, seed)).collect();
            thread::sleep(Duration::from_micros(round * 20));
            match round % 3 {
                0 => drop((device, buffers)),
                1 => drop((buffers, device)),
                _ => {
                    let half = buffers.into_iter().step_by(2).collect::<Vec<_>>();
                    drop(device);
                    drop(half);
                }
            }
        }
    });
}

#[test]
fn threads_may_race_for_being_the_last() {
    let _alone = alone();
    for _ in 0..30 {
        leaves_nothing(|| {
            let device = device();
            thread::scope(|scope| {
                for seed in 0..4 {
                    let device = device.clone();
                    scope.spawn(move || {
                        let buffer = filled(&device, 1, seed);
                        verify(&device, &buffer, seed).expect("it is there");
                        drop(device);
                        drop(buffer);
                    });
                }
                drop(device);
            });
        });
    }
}

/// An importer that keeps its maps in itself, which keep the device alive.
#[derive(Default)]
struct Keeper(Mutex<Vec<devpagemap::PeerMap>>);

impl devpagemap::Importer for Keeper {
    fn name(&self) -> &str {
        "keeper"
    }

    fn invalidate(&self, _what: &devpagemap::Invalidated) -> Option<devpagemap::Fence> {
        let stale: Vec<_> = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(stale);
        None
    }
}

#[test]
fn a_device_may_go_while_it_brings_buffers_back() {
    let _alone = alone();
    for round in 0..60 {
        leaves_nothing(move || {
            let device = device();
            let keeper = std::sync::Arc::new(Keeper::default());
            let peer = device.join(keeper.clone()).expect("an importer that can be");
            let holder = device.buffer(Size::mib(1)).p2p(devpagemap::P2p::Prefer).create().expect("it fits");
            let taken = holder.attach(&peer).expect("one device").map(0..1 << 20).expect("room");
            let waiting = filled(&device, 1, 1);
            let attachment = waiting.attach(&peer).expect("one device");
            let fell_back = attachment.map(0..1 << 20).expect("system memory");
            assert!(fell_back.why_system().is_some());
            keeper.0.lock().expect("nobody panics").push(fell_back);
            // From here on the promoter is at work, and may be left with the last reference to anything.
            drop((taken, holder));
            thread::sleep(Duration::from_micros(round * 10));
            match round % 3 {
                0 => drop((device, waiting, attachment, peer, keeper)),
                1 => drop((keeper, peer, attachment, waiting, device)),
                _ => drop((waiting, peer, device, keeper, attachment)),
            }
        });
    }
}

#[test]
fn two_devices_do_not_know_each_other() {
    let _alone = alone();
    leaves_nothing(|| {
        let (first, second) = (device(), device());
        let (ours, theirs) = (filled(&first, 2, 1), filled(&second, 2, 2));
        let twice = census::take();
        drop((first, ours));
        let mut bytes = vec![0; 2 << 20];
        theirs.read_at(0, &mut bytes).expect("the other device has nothing to do with it");
        assert_eq!(pattern::check(2, 0, &bytes), Ok(()));
        assert_eq!((second.stats().vram_used_bytes, second.stats().evictions), (2 << 20, 0));
        let once = census::take();
        assert_eq!((twice.memfds, once.memfds), (4, 2), "VRAM and system memory");
        assert_eq!(twice.mappings, 2 * once.mappings);
    });
}

#[test]
fn a_fence_of_one_device_holds_back_the_other_even_if_it_goes_first() {
    let _alone = alone();
    leaves_nothing(|| {
        let (first, second) = (device(), device());
        let (ours, theirs) = (filled(&first, 2, 1), filled(&second, 2, 2));
        let earlier = verify(&first, &ours, 1).expect("it is there");
        let job = second.submit().reads(&theirs).after(&earlier);
        let job = job.run(|gpu, job| {
            gpu.run(job, move |_| match earlier.is_signaled() {
                true => Ok(()),
                false => Err("it ran too early".into()),
            })
        });
        drop((first, ours));
        job.expect("it is there").wait_timeout(FOREVER).expect("it ran behind the other device's");
    });
}

#[test]
fn a_gpu_that_never_became_a_device_leaves_nothing() {
    let _alone = alone();
    leaves_nothing(|| drop(SoftwareGpu::builder().build().expect("threads")));
}

#[test]
fn a_device_that_was_refused_leaves_nothing() {
    struct Refusing(SoftwareGpu);
    impl Driver for Refusing {
        fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<std::sync::Arc<dyn CopyEngine>>> {
            let _started = self.0.copy_engines(memory)?;
            Err(Error::Driver { action: "start its engines", reason: "there is no firmware".into() })
        }
        fn map_vram(
            &self,
            layout: &devpagemap::MemoryLayout,
        ) -> Result<Option<std::sync::Arc<dyn devpagemap::MemoryMap>>> {
            self.0.map_vram(layout)
        }
    }
    let _alone = alone();
    leaves_nothing(|| {
        let driver = Refusing(SoftwareGpu::builder().build().expect("threads"));
        let refused = Device::builder(driver).vram(Size::mib(1)).system(Size::mib(1)).build();
        assert!(refused.is_err_and(|error| error.to_string().contains("no firmware")));
    });
}

/// A device with a buffer that jobs have moved out of the CPU's sight, and a map of it.
fn mapped_out_of_sight() -> (Lab, Buffer, CpuMap) {
    let gpu = SoftwareGpu::builder().rings(2).build().expect("threads for the rings");
    let device = Device::builder(gpu).vram(Size::mib(2)).visible(Size::bytes(0)).system(Size::mib(32));
    let device = device.build().expect("a small device");
    let buffer = filled(&device, 1, 1);
    let map = buffer.mapping().when_touched().map().expect("it asks for nothing yet");
    (device, buffer, map)
}

fn touch(map: &CpuMap) -> u8 {
    // SAFETY: the map is alive, and no job writes the buffer.
    unsafe { map.as_ptr().read_volatile() }
}

#[test]
fn the_last_map_may_be_dropped_right_after_its_bytes_were_brought() {
    let _alone = alone();
    for _ in 0..50 {
        leaves_nothing(|| {
            let (device, buffer, map) = mapped_out_of_sight();
            drop((device, buffer));
            touch(&map);
            // The fault thread may still hold the buffer, and so be the last.
            drop(map);
        });
    }
}

#[test]
fn the_last_map_may_be_dropped_while_another_of_the_same_buffer_is_served() {
    let _alone = alone();
    for _ in 0..30 {
        leaves_nothing(|| {
            let (device, buffer, map) = mapped_out_of_sight();
            let others: Vec<_> = (0..4).map(|_| buffer.map().expect("system memory is plenty")).collect();
            drop((device, buffer));
            thread::scope(|scope| {
                for other in others {
                    scope.spawn(move || touch(&other));
                }
                touch(&map);
                drop(map);
            });
        });
    }
}

#[test]
fn the_last_map_may_be_dropped_by_a_job_or_a_fence_callback() {
    let _alone = alone();
    for in_callback in [false, true] {
        leaves_nothing(move || {
            let (device, buffer, map) = mapped_out_of_sight();
            touch(&map);
            let gate = Gate::closed();
            if in_callback {
                let last = (map, buffer, device);
                let hung = gate.fence().on_signal(move |_| drop(last));
                assert!(hung.is_ok(), "the gate is closed");
                gate.open();
                return;
            }
            let job = device.submit().reads(&buffer).after(gate.fence()).run(|gpu, job| {
                gpu.run(job, move |_| {
                    drop(map);
                    Ok(())
                })
            });
            drop((buffer, device));
            gate.open();
            job.expect("it was there").wait_timeout(FOREVER).expect("the job ran");
        });
    }
}

#[test]
fn a_device_may_be_lost_and_dropped_while_its_maps_are_touched() {
    let _alone = alone();
    for _ in 0..20 {
        leaves_nothing(|| {
            let (device, buffer, map) = mapped_out_of_sight();
            thread::scope(|scope| {
                scope.spawn(|| touch(&map));
                device.declare_lost();
                drop((device, buffer));
            });
        });
    }
}

#[test]
fn a_buffer_that_was_mapped_in_gtt_and_one_that_was_never_used_leave_nothing() {
    let _alone = alone();
    leaves_nothing(|| {
        let device = device();
        let mapped = device.buffer(Size::mib(1)).prefer(Place::GTT).create().expect("a buffer that fits");
        let map = mapped.map().expect("GTT is visible");
        let _never_used = device.buffer(Size::mib(1)).create().expect("a buffer that fits");
        drop((device, mapped));
        map.write(0, b"still here").expect("the map keeps everything alive");
    });
}
