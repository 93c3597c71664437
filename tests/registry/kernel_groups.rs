//! The kernel's groups beside ours: theirs depend on who came first.

use devpagemap::pagemap::{
    Decision, JoinedImporter, KernelPeer, Owner, Pagemap, PagemapSpec, Profile, Registry, Route,
};
use devpagemap::topology::Machine;
use proptest::prelude::*;

use crate::sketch::{Sketch, UNLISTED, XEON, address};

const DEVICES: [&str; 5] = ["01:00.0", "02:00.0", "03:00.0", "04:00.0", "05:00.0"];

/// Devices that reach each other over private links only, from the first of a pair to the second.
fn machine(links: &[(usize, usize)]) -> Machine {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    for (index, device) in DEVICES.iter().enumerate() {
        sketch.slot(host, &format!("00:{:02x}.0", index + 1), device);
    }
    for (from, to) in links {
        sketch.link(DEVICES[*from], DEVICES[*to], 25_000_000_000);
    }
    sketch.build()
}

struct Joined {
    registry: Registry,
    peers: Vec<(Pagemap, JoinedImporter)>,
}

/// All devices, joined in that order; kept by device.
fn joined(links: &[(usize, usize)], order: &[usize]) -> Joined {
    let registry = Registry::new(machine(links));
    let mut peers: Vec<(usize, (Pagemap, JoinedImporter))> = Vec::new();
    for device in order {
        let owner = Owner::at(address(DEVICES[*device]));
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&owner)).expect("joins");
        let importer = registry.join(Profile::dynamic().at(address(DEVICES[*device]))).expect("joins");
        peers.push((*device, (pagemap, importer)));
    }
    peers.sort_by_key(|(device, _)| *device);
    Joined { registry, peers: peers.into_iter().map(|(_, peer)| peer).collect() }
}

impl Joined {
    /// The kernel's groups, of devices, for an order of joining.
    fn groups(&self, order: &[usize]) -> Vec<Vec<usize>> {
        let peers: Vec<KernelPeer> = order
            .iter()
            .map(|device| &self.peers[*device])
            .map(|(pagemap, importer)| KernelPeer { pagemap: pagemap.id(), importer: importer.id() })
            .collect();
        let mut groups = self.registry.snapshot().kernel_groups(&peers);
        for group in &mut groups {
            group.iter_mut().for_each(|index| *index = order[*index]);
            group.sort_unstable();
        }
        groups.sort();
        groups
    }

    fn decisions(&self) -> Vec<Decision> {
        let pairs = self.peers.iter().flat_map(|(pagemap, _)| {
            self.peers.iter().map(move |(_, importer)| (pagemap.id(), importer.id()))
        });
        pairs.map(|(pagemap, importer)| self.registry.decision(pagemap, importer)).collect()
    }
}

const CHAIN: [(usize, usize); 4] = [(0, 1), (1, 0), (1, 2), (2, 1)];

#[test]
fn groups_of_a_chain_depend_on_the_order_of_joining_and_decisions_do_not() {
    let orders = [[0, 1, 2], [1, 2, 0]];
    let registries = orders.map(|order| joined(&CHAIN, &order));
    assert_eq!(registries[0].groups(&orders[0]), [vec![0, 1], vec![2]]);
    assert_eq!(registries[1].groups(&orders[1]), [vec![0], vec![1, 2]]);
    let [one, other] = registries.map(|registry| registry.decisions());
    assert_eq!(one, other);
    let linked = one.iter().filter(|decision| decision.route == Route::PrivateLink).count();
    assert_eq!(linked, 4, "both links of the chain, in both directions");
}

#[test]
fn groups_cannot_say_that_a_link_goes_one_way() {
    let one_way = joined(&[(0, 1)], &[0, 1, 2]);
    // The newcomer is asked, and it depends on who that is.
    assert_eq!(one_way.groups(&[0, 1]), [vec![0], vec![1]]);
    assert_eq!(one_way.groups(&[1, 0]), [vec![0, 1]]);
    let route = |exporter: usize, importer: usize| {
        let (pagemap, importer) = (one_way.peers[exporter].0.id(), one_way.peers[importer].1.id());
        one_way.registry.decision(pagemap, importer).route
    };
    assert_eq!((route(1, 0), route(0, 1)), (Route::PrivateLink, Route::Staging));
}

proptest! {
    /// Whatever the links and the orders: groups are cliques as their members were asked, and decisions are the same.
    #[test]
    fn decisions_do_not_depend_on_the_order_of_joining(
        links in prop::collection::vec((0..5usize, 0..5usize), 0..16),
        one in Just(vec![0usize, 1, 2, 3, 4]).prop_shuffle(),
        other in Just(vec![0usize, 1, 2, 3, 4]).prop_shuffle(),
    ) {
        let links: Vec<_> = links.into_iter().filter(|(from, to)| from != to).collect();
        let (first, second) = (joined(&links, &one), joined(&links, &other));
        prop_assert_eq!(first.decisions(), second.decisions());
        // From one registry or the other, the same order makes the same groups.
        prop_assert_eq!(first.groups(&one), second.groups(&one));
        let mut members: Vec<usize> = first.groups(&one).concat();
        members.sort_unstable();
        prop_assert_eq!(members, vec![0, 1, 2, 3, 4], "each device is in one group");
    }
}

#[test]
fn five_in_a_row_have_other_groups_in_each_of_three_orders() {
    let chain: Vec<(usize, usize)> = (0..4).flat_map(|at| [(at, at + 1), (at + 1, at)]).collect();
    let joined = joined(&chain, &[0, 1, 2, 3, 4]);
    let orders = [[0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [0, 1, 3, 4, 2]];
    let mut found: Vec<_> = orders.iter().map(|order| joined.groups(order)).collect();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 3, "{found:?}");
}
