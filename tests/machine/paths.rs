//! Paths in random machines, beside a plain model of them.

use devpagemap::topology::{Label, Machine, NodeId, NodeKind, pci_bytes_per_s};
use proptest::prelude::*;

use crate::random::sketch;

/// From the machine down to the node.
fn way_down(machine: &Machine, id: NodeId) -> Vec<NodeId> {
    let mut way = vec![id];
    while let Some(parent) = machine.node(*way.last().expect("it has one")).parent {
        way.push(parent);
    }
    way.reverse();
    way
}

/// What both ways begin with.
fn shared<'a>(a: &'a [NodeId], b: &[NodeId]) -> &'a [NodeId] {
    let len = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    &a[..len]
}

/// How many bridges are above a node, up to its host bridge.
fn bridges_above(machine: &Machine, way: &[NodeId]) -> usize {
    way[..way.len() - 1].iter().filter(|id| matches!(machine.node(**id).kind, NodeKind::Bridge(_))).count()
}

/// Whether the bridge at the end of a way begins a switch: the second, the fourth and so on from the host bridge do.
fn begins_switch(machine: &Machine, way: &[NodeId]) -> bool {
    let is_bridge = matches!(machine.node(way[way.len() - 1]).kind, NodeKind::Bridge(_));
    is_bridge && bridges_above(machine, way) % 2 == 1
}

fn numa(machine: &Machine, way: &[NodeId]) -> Option<u32> {
    way.iter().find_map(|id| match machine.node(*id).kind {
        NodeKind::Numa(number) => Some(number),
        _ => None,
    })
}

fn label(machine: &Machine, a: &[NodeId], b: &[NodeId]) -> Label {
    let common = shared(a, b);
    let kind = &machine.node(common[common.len() - 1]).kind;
    if a == b {
        return Label::Same;
    }
    if matches!(kind, NodeKind::Bridge(_) | NodeKind::Function(_)) {
        let inner = |way: &[NodeId]| {
            (common.len() + 1..way.len()).filter(|len| begins_switch(machine, &way[..*len])).count()
        };
        return if inner(a) + inner(b) == 0 { Label::Pix } else { Label::Pxb };
    }
    if matches!(kind, NodeKind::HostBridge { .. }) {
        return Label::Phb;
    }
    // Every NUMA node of these machines is in one of two packages.
    match (numa(machine, a), numa(machine, b)) {
        (Some(a), Some(b)) if a == b => Label::Node,
        (Some(_), Some(_)) => Label::Sys,
        _ => Label::Unknown,
    }
}

/// A link is above every function but those that root and downstream ports are.
fn rate(machine: &Machine, a: &[NodeId], b: &[NodeId]) -> Option<u64> {
    let common = shared(a, b).len();
    let own = |id: NodeId| machine.node(id).function().and_then(|function| function.link.bytes_per_s);
    let mut rates = Vec::new();
    for way in [a, b] {
        for len in common + 1..=way.len() {
            let (id, above) = (way[len - 1], &way[..len - 1]);
            let is_bridge = |id: NodeId| matches!(machine.node(id).kind, NodeKind::Bridge(_));
            let is_lower_port =
                |way: &[NodeId]| is_bridge(way[way.len() - 1]) && !begins_switch(machine, way);
            if machine.node(id).function().is_some() && !is_lower_port(&way[..len]) {
                let other = above.last().filter(|_| is_lower_port(above)).and_then(|above| own(*above));
                rates.push(own(id).or(other));
            }
        }
    }
    rates.into_iter().min_by_key(|rate| rate.unwrap_or(0)).flatten()
}

proptest! {
    #[test]
    fn paths_agree_with_the_plain_model(sketch in sketch()) {
        let (machine, functions) = sketch.build();
        for from in &functions {
            for to in &functions {
                let (a, b) = (way_down(&machine, *from), way_down(&machine, *to));
                let path = machine.path(*from, *to);
                let common = shared(&a, &b);
                prop_assert_eq!(Some(&path.meeting), common.last());
                prop_assert_eq!(path.bus_label, label(&machine, &a, &b));
                prop_assert_eq!(path.bus_bytes_per_s, rate(&machine, &a, &b));
                prop_assert_eq!(path.bus_hops(), a.len() + b.len() - 2 * common.len());
                let tail = |way: &[NodeId]| way[common.len()..].len().saturating_sub(1);
                prop_assert_eq!((path.up.len(), path.down.len()), (tail(&a), tail(&b)));
            }
        }
    }

    #[test]
    fn the_bus_is_the_same_both_ways(sketch in sketch()) {
        let (machine, functions) = sketch.build();
        for from in &functions {
            for to in &functions {
                let (there, back) = (machine.path(*from, *to), machine.path(*to, *from));
                prop_assert_eq!(there.bus_label, back.bus_label);
                prop_assert_eq!(there.bus_bytes_per_s, back.bus_bytes_per_s);
                prop_assert_eq!(there.meeting, back.meeting);
                let turned: Vec<NodeId> = back.between().collect();
                prop_assert!(there.between().eq(turned.into_iter().rev()));
            }
        }
    }

    #[test]
    fn every_machine_is_printed_part_by_part(sketch in sketch()) {
        let (machine, functions) = sketch.build();
        let text = machine.to_string();
        prop_assert_eq!(text.lines().count(), machine.nodes().count() + machine.links().len());
        for id in functions {
            let name = machine.name(id).to_string();
            prop_assert!(text.lines().any(|line| line.contains(&format!("─ {name} "))), "{} in {}", name, text);
        }
    }
}

#[test]
fn a_rate_is_what_generation_and_width_carry() {
    assert_eq!(pci_bytes_per_s(32_000, 16), Some(63_015_384_615));
}
