//! Configuration spaces of real functions, of made-up ones, and of none.

use devpagemap::topology::{Acs, Bar, Capability, ConfigSpace, Function, PciIds, PortKind, pci_bytes_per_s};
use proptest::prelude::*;

use crate::lspci::dump;

const TREE: &str = "lspci-tree-asus-p6t6.txt.gz";
const REBAR: &str = "lspci-cap-rebar.txt";
const CXL: &str = "lspci-cap-dvsec-cxl.txt";

/// A header with a list of capabilities that begins at `first`, and `len` bytes in all.
fn header(len: usize, first: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..4].copy_from_slice(&[0x86, 0x80, 0x30, 0x20]);
    bytes[0x06] = 1 << 4;
    bytes[0x34] = first;
    bytes
}

/// The head of an extended capability.
fn extended(bytes: &mut [u8], at: usize, id: u16, next: usize) {
    let head = u32::from(id) | 1 << 16 | (next as u32) << 20;
    bytes[at..at + 4].copy_from_slice(&head.to_le_bytes());
}

/// A function of PCI Express with one extended capability, ACS, at 0x100.
fn port_with_acs(control: u16) -> Vec<u8> {
    let mut bytes = header(0x1000, 0x40);
    bytes[0x40..0x44].copy_from_slice(&[0x10, 0, 0x62, 0]);
    extended(&mut bytes, 0x100, 0x0d, 0);
    bytes[0x106..0x108].copy_from_slice(&control.to_le_bytes());
    bytes
}

#[track_caller]
fn refused(bytes: &[u8]) -> (usize, String) {
    let error = ConfigSpace::parse(bytes).expect_err("it cannot be");
    (error.offset, error.to_string())
}

#[test]
fn the_ports_of_a_real_board_say_what_they_are() {
    let Some(spaces) = dump(TREE) else { return };
    let port = |name: &str| {
        let space = ConfigSpace::parse(&spaces[name]).expect("a real function");
        space.express.there().and_then(|express| express.port)
    };
    for name in ["00:01.0", "00:03.0", "00:07.0", "00:1c.0", "00:1c.1"] {
        assert_eq!(port(name), Some(PortKind::Root), "{name}");
    }
    assert_eq!(port("02:00.0"), Some(PortKind::Upstream), "an NF200 switch");
    assert_eq!(port("03:00.0"), Some(PortKind::Downstream));
    assert_eq!(port("03:02.0"), Some(PortKind::Downstream));
    assert_eq!(port("06:00.0"), None, "a GeForce 210 is no bridge");
}

#[test]
fn every_function_of_the_dumps_is_read() {
    for name in [TREE, REBAR, CXL] {
        let Some(spaces) = dump(name) else { return };
        assert!(!spaces.is_empty(), "{name}");
        for (address, bytes) in &spaces {
            let space =
                ConfigSpace::parse(bytes).unwrap_or_else(|error| panic!("{name}: {address}: {error}"));
            assert_ne!(space.express, Capability::Unread, "{name}: {address}: the dump has all bytes");
            assert_ne!(space.acs, Capability::Unread, "{name}: {address}");
            assert_eq!(space.is_bridge, space.class >> 8 == 0x0604, "{name}: {address}: {:06x}", space.class);
        }
    }
}

#[test]
fn the_links_of_a_real_board_are_read() {
    let Some(spaces) = dump(TREE) else { return };
    let link = |name: &str| {
        let space = ConfigSpace::parse(&spaces[name]).expect("a real function");
        space.express.there().expect("a function of PCI Express").link
    };
    assert_eq!(link("06:00.0").bytes_per_s, pci_bytes_per_s(2_500, 16), "the GeForce idles at 2.5 GT/s");
    assert_eq!(link("03:02.0").max_bytes_per_s, pci_bytes_per_s(5_000, 16));
    assert!(link("03:02.0").is_degraded());
    assert_eq!(link("00:01.0").bytes_per_s, None, "nothing is plugged in");
    assert_eq!(link("00:01.0").max_bytes_per_s, pci_bytes_per_s(5_000, 4));
}

#[test]
fn a_real_card_says_how_large_its_bar_can_be() {
    let Some(spaces) = dump(REBAR) else { return };
    let space = ConfigSpace::parse(&spaces["09:00.0"]).expect("a real function");
    let bars = space.resizable.there().expect("a Radeon R9 Fury can");
    let [bar] = &bars[..] else { panic!("{bars:?}") };
    assert_eq!((bar.index, bar.len_bytes), (0, 256 << 20));
    assert_eq!(bar.sizes.iter().collect::<Vec<_>>(), [256 << 20, 512 << 20, 1 << 30, 2 << 30, 4 << 30]);
    let plain =
        Bar { index: 0, start: Some(0xe000_0000), len_bytes: 256 << 20, prefetchable: true, sizes: None };
    let mut function = Function { bars: Some(vec![plain]), ..Function::default() };
    space.describe(&mut function);
    assert_eq!(function.ids, Some(PciIds { vendor: 0x1002, device: 0x7300 }));
    assert_eq!(function.bars.unwrap()[0].sizes.unwrap().largest_bytes(), Some(4 << 30));
    assert_eq!(function.acs, Some(Acs::default()), "the whole list was read, and ACS is not in it");
}

#[test]
fn without_rights_nothing_is_known_of_acs() {
    let bytes = port_with_acs(0b10_1100);
    for len in [64, 256] {
        let space = ConfigSpace::parse(&bytes[..len]).expect("a good function");
        assert_eq!(space.acs, Capability::Unread, "{len} bytes");
        let mut function = Function::default();
        space.describe(&mut function);
        assert_eq!(function.acs, None);
    }
    let known = ConfigSpace::parse(&bytes).expect("a good function");
    let all = Acs { request_redirect: true, completion_redirect: true, egress_control: true };
    assert_eq!(known.acs, Capability::There(all));
}

#[test]
fn conventional_pci_has_no_acs_to_be_unsure_of() {
    let mut bytes = header(256, 0x50);
    bytes[0x50] = 0x01;
    assert_eq!(ConfigSpace::parse(&bytes).expect("a good function").acs, Capability::Absent);
}

#[test]
fn a_list_that_loops_is_an_error_with_its_offset() {
    let mut bytes = header(256, 0x40);
    bytes[0x40..0x42].copy_from_slice(&[0x01, 0x48]);
    bytes[0x48..0x4a].copy_from_slice(&[0x05, 0x40]);
    let (offset, text) = refused(&bytes);
    assert_eq!(offset, 0x49);
    assert_eq!(text, "configuration space, offset 0x049: the capabilities loop back to 0x40");

    let mut bytes = port_with_acs(0);
    extended(&mut bytes, 0x100, 0x01, 0x140);
    extended(&mut bytes, 0x140, 0x02, 0x100);
    assert_eq!(refused(&bytes).0, 0x140);
}

#[test]
fn a_list_that_leaves_its_place_is_an_error_with_its_offset() {
    assert_eq!(refused(&header(256, 0x3c)).0, 0x34);
    let mut bytes = port_with_acs(0);
    extended(&mut bytes, 0x100, 0x01, 0x80);
    assert_eq!(refused(&bytes).0, 0x100);
    let mut bytes = header(256, 0x40);
    bytes[0x40] = 0xff;
    assert_eq!(refused(&bytes).0, 0x40);
    let mut bytes = port_with_acs(0);
    extended(&mut bytes, 0x100, 0x01, 0xff0);
    extended(&mut bytes, 0xff0, 0x15, 0);
    bytes[0xff8] = 7 << 5;
    assert_eq!(refused(&bytes).0, 0xff8, "seven BARs do not fit behind 0xff0");
}

#[test]
fn a_function_that_is_gone_is_no_function() {
    let (offset, text) = refused(&[0xff; 256]);
    assert_eq!(offset, 0);
    assert!(text.contains("gone"), "{text}");
    assert_eq!(refused(&[0; 63]).0, 63);
    assert_eq!(refused(&[0; 4097]).0, 4097);
}

#[test]
fn a_port_that_blocks_atomics_passes_none_on() {
    let atomics = |can: u32, control: u16| {
        let mut bytes = port_with_acs(0);
        bytes[0x64..0x68].copy_from_slice(&can.to_le_bytes());
        bytes[0x68..0x6a].copy_from_slice(&control.to_le_bytes());
        ConfigSpace::parse(&bytes).expect("a good port").express.there().expect("a port").atomics
    };
    assert_eq!(atomics(1 << 6, 0), Some(true));
    assert_eq!(atomics(1 << 6, 1 << 7), Some(false));
    assert_eq!(atomics(1 << 8, 0), Some(false), "it completes, but does not route");
}

proptest! {
    /// Whatever the bytes are, there is an answer, and an error names a place within them.
    #[test]
    fn no_bytes_bring_the_parser_down(bytes in proptest::collection::vec(any::<u8>(), 0..4200)) {
        if let Err(error) = ConfigSpace::parse(&bytes) {
            prop_assert!(error.offset <= bytes.len());
        }
    }

    /// Random bytes seldom have a list; these always do.
    #[test]
    fn no_list_brings_the_parser_down(
        first in any::<u8>(),
        links in proptest::collection::vec((0..0xff_u8, any::<u8>()), 64),
        heads in proptest::collection::vec((0..0x20_u32, 0..0x1000_u32), 960),
        len in 64..=4096_usize,
    ) {
        let mut bytes = header(0x1000, first);
        for (slot, (id, next)) in links.into_iter().enumerate().skip(16) {
            bytes[4 * slot..4 * slot + 2].copy_from_slice(&[id, next]);
        }
        for (slot, (id, next)) in heads.into_iter().enumerate() {
            extended(&mut bytes, 0x100 + 4 * slot, id as u16, next as usize);
        }
        if let Err(error) = ConfigSpace::parse(&bytes[..len]) {
            prop_assert!(error.offset <= len, "{}", error);
        }
    }

    /// Wherever ACS is in the list, and whatever else, it is found; and of less bytes the same is said, or nothing.
    #[test]
    fn acs_is_found_anywhere_and_never_guessed(
        control in any::<u16>(),
        others in proptest::sample::subsequence((1..200_usize).collect::<Vec<_>>(), 1..40)
            .prop_flat_map(|slots| Just(slots).prop_shuffle()),
        which in any::<prop::sample::Index>(),
        cut in 64..4096_usize,
    ) {
        let mut bytes = port_with_acs(0);
        // The head at 0x100 begins the list; each other slot has 16 bytes.
        let places: Vec<usize> = std::iter::once(0x100).chain(others.iter().map(|slot| 0x100 + 16 * slot)).collect();
        let chosen = which.index(places.len());
        for (index, at) in places.iter().enumerate() {
            let id = if index == chosen { 0x0d } else { 0x0b };
            extended(&mut bytes, *at, id, places.get(index + 1).copied().unwrap_or(0));
        }
        bytes[places[chosen] + 6..places[chosen] + 8].copy_from_slice(&control.to_le_bytes());
        let bit = |bit: u16| control >> bit & 1 == 1;
        let expected = Acs { request_redirect: bit(2), completion_redirect: bit(3), egress_control: bit(5) };
        prop_assert_eq!(ConfigSpace::parse(&bytes).unwrap().acs, Capability::There(expected));
        let part = ConfigSpace::parse(&bytes[..cut]).unwrap().acs;
        prop_assert!(part == Capability::There(expected) || part == Capability::Unread, "{:?}", part);
    }
}
