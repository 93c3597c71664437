//! A subscription without a descriptor goes on without one. In a process of its own, whose limit of open files it lowers.

use devpagemap::{Device, Error, Size, SoftwareGpu};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn events_whose_descriptor_is_refused_say_so_and_lose_nothing() {
    let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
    let device =
        Device::builder(gpu).vram(Size::mib(1)).system(Size::mib(1)).build().expect("a small device");
    let mut events = device.events();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: limit.maximum }).expect("it is lowered");
    let error = events.readable().expect_err("no descriptor is left");
    setrlimit(Resource::Nofile, limit).expect("it is as it was");
    assert!(matches!(error, Error::Io { action: "make a descriptor for events", .. }), "{error}");
    assert!(events.readable().is_ok());
    drop(device);
    assert_eq!(events.next(), None);
}
