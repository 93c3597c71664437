//! Without descriptors: each refusal says so, and nothing is lost. In a process of its own, whose limit of open files it lowers.

use devpagemap::{Device, Error, Size, SoftwareGpu};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn device() -> devpagemap::Result<Device<SoftwareGpu>> {
    let gpu = SoftwareGpu::builder().build()?;
    Device::builder(gpu).vram(Size::mib(1)).system(Size::mib(1)).build()
}

/// What comes of it while no descriptor is left.
fn without_descriptors<O>(body: impl FnOnce() -> O) -> O {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: limit.maximum }).expect("it is lowered");
    let outcome = body();
    setrlimit(Resource::Nofile, limit).expect("it is as it was");
    outcome
}

/// One test, because the limit is the whole process's.
#[test]
fn events_and_devices_that_get_no_descriptor_say_so_and_lose_nothing() {
    let device_before = device().expect("a small device");
    let mut events = device_before.events();
    let refused = without_descriptors(|| [events.readable().map(drop), device().map(drop)]);
    for refused in refused {
        let refused = refused.expect_err("no descriptor is left");
        assert!(matches!(refused, Error::NoDescriptorsLeft { .. }), "{refused}");
    }
    assert!(events.readable().is_ok());
    device().expect("there are descriptors again");
    drop(device_before);
    assert_eq!(events.next(), None);
}
