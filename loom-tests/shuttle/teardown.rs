//! Devices that are taken down while they are at work.
#![cfg(shuttle)]

use devpagemap_loom_tests::gpu::{buffer, cranked_device};
use devpagemap_loom_tests::storm::storm;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

/// 6 users and 2 engines, and a thread that the last of them makes if it lets go inside a callback. The engines end when the
/// device has: their threads can be joined only if everything was finished.
#[test]
fn whoever_lets_go_last_takes_the_device_down() {
    storm("whoever_lets_go_last_takes_the_device_down", 700, || {
        let (device, crank) = cranked_device(3);
        let engines = [(); 2].map(|()| {
            let crank = crank.clone();
            thread::spawn(move || while crank.turn() {})
        });
        let users: Vec<_> = (0..6)
            .map(|_| {
                let device = device.clone();
                thread::spawn(move || {
                    let used = buffer(&device);
                    used.place_now().expect("somebody makes way");
                    let moved = used.fences();
                    if thread_rng().gen_bool(0.5) {
                        // Too late for a callback: it goes here and now.
                        let _ = moved.on_signaled(move || drop((used, device)));
                    }
                })
            })
            .collect();
        drop(device);
        users.into_iter().for_each(|user| user.join().expect("no panic"));
        engines.into_iter().for_each(|engine| engine.join().expect("no panic"));
    });
}
