//! Limits, clients and events as the application sees them before any peer has come.

use std::time::Duration;

use devpagemap::{Error, P2pLimits, Size};

use crate::setup::*;

fn limits(reopen: u64, soft: u64, hard: u64, reserve: u64) -> P2pLimits {
    let [reopen, soft, hard, cpu_reserve] = [reopen, soft, hard, reserve].map(Size::mib);
    P2pLimits { soft, reopen, hard, cpu_reserve }
}

#[test]
fn limits_are_checked_against_the_bar_when_a_device_is_built() {
    let build = |limits| builder(16).visible(Size::mib(8)).p2p_limits(limits).build();
    assert!(build(limits(1, 2, 4, 4)).is_ok());
    let error = build(limits(1, 2, 5, 4)).expect_err("9 of 8 MiB");
    let wrong = ("the p2p hard limit", 5 * MIB);
    assert!(matches!(error, Error::InvalidSize { what, bytes, .. } if (what, bytes) == wrong), "{error}");
    let error = build(limits(3, 2, 4, 4)).expect_err("it would never close");
    assert!(matches!(error, Error::InvalidSize { what: "the p2p reopen mark", .. }), "{error}");
}

#[test]
fn a_device_without_a_bar_has_valid_limits_and_no_pressure() {
    let device = builder(16).visible(Size::bytes(0)).build().expect("a device without a BAR");
    assert_eq!((device.bar_pressure(), device.stats().p2p_peak_bytes), (None, 0));
}

#[test]
fn buffers_of_a_client_are_like_any_other_and_outlive_its_handle() {
    let device = device(4);
    let client = device.client("compositor").p2p_limit(Size::mib(1));
    let buffer = client.buffer(Size::mib(2)).create().expect("a buffer that fits");
    assert_eq!((client.name(), client.p2p_used()), ("compositor", Size::bytes(0)));
    drop(client);
    finished(fill(&device, &buffer, 1));
    expect_bytes(&buffer, 1);
    drop(device);
    expect_bytes(&buffer, 1);
}

#[test]
fn who_listens_hears_of_the_end_of_the_device_and_does_not_keep_it_alive() {
    let device = device(4);
    let events = device.events();
    assert_eq!((events.try_next(), events.is_over()), (None, false));
    assert_eq!(events.next_timeout(Duration::from_millis(1)), None);
    let listener = std::thread::spawn(move || events.count());
    drop(device);
    assert_eq!(listener.join().expect("no panic"), 0);
}

#[test]
fn a_subscription_may_outlive_its_device_and_be_dropped_in_any_order() {
    let device = device(4);
    let (first, second) = (device.events(), device.events());
    drop(first);
    drop(device);
    assert!(second.is_over());
    assert_eq!((&second).next(), None);
}
