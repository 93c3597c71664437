//! Machines at random.

use devpagemap::topology::{
    Acs, Bar, Function, Link, LinkKind, Machine, NodeId, NodeKind, PciAddress, PciIds, PciLink, Place,
    RootBus,
};
use proptest::prelude::*;

/// What a machine is built from. Equal sketches are equal machines, whatever happens to node numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    /// How many NUMA nodes there are; half of them in each of two packages.
    pub numa: u32,
    /// For each host bridge, the NUMA node it is in; a number without a node is nowhere.
    pub roots: Vec<u32>,
    /// For each function, what it hangs on: first the host bridges, then the functions before it that are bridges.
    pub parts: Vec<Piece>,
    /// From, to (among functions, wrapping), lanes.
    pub links: Vec<(usize, usize, u32)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub on: usize,
    pub is_bridge: bool,
    pub width: u32,
    pub acs: Option<bool>,
    pub bar_mib: Option<u64>,
    pub chip: u16,
}

fn piece() -> impl Strategy<Value = Piece> {
    let width = prop_oneof![Just(0), Just(4), Just(8), Just(16)];
    (any::<usize>(), any::<bool>(), width, any::<Option<bool>>(), proptest::option::of(0..4_u32), 0..3_u16)
        .prop_map(|(on, is_bridge, width, acs, bar, chip)| Piece {
            on,
            is_bridge,
            width,
            acs,
            bar_mib: bar.map(|exponent| 256 << exponent),
            chip,
        })
}

pub fn sketch() -> impl Strategy<Value = Sketch> {
    let roots = proptest::collection::vec(0..5_u32, 1..4);
    let parts = proptest::collection::vec(piece(), 1..24);
    let links = proptest::collection::vec((any::<usize>(), any::<usize>(), 1..5_u32), 0..4);
    (0..5_u32, roots, parts, links).prop_map(|(numa, roots, parts, links)| Sketch {
        numa,
        roots,
        parts,
        links,
    })
}

impl Sketch {
    /// The address of a function.
    pub fn address(index: usize) -> PciAddress {
        PciAddress { domain: 0, bus: 0x10 + index as u8, device: 0, function: 0 }
    }

    /// The machine, with its functions added in the order of the sketch.
    pub fn build(&self) -> (Machine, Vec<NodeId>) {
        let place = Place::file("at random");
        let mut builder = Machine::builder();
        let top = builder.root();
        let mut add = |parent, kind| builder.add(parent, kind, Vec::new(), &place).expect("a good part");
        let packages = [0, 1].map(|_| add(top, NodeKind::Package(Default::default())));
        let numa: Vec<NodeId> = (0..self.numa)
            .map(|number| add(packages[(number % 2) as usize], NodeKind::Numa(number)))
            .collect();
        let roots = self.roots.iter().enumerate().map(|(index, near)| {
            let bus = Some(RootBus { domain: 0, bus: index as u8 });
            add(numa.get(*near as usize).copied().unwrap_or(top), NodeKind::HostBridge { bus, ids: None })
        });
        let mut bearers: Vec<NodeId> = roots.collect();
        let mut functions = Vec::new();
        for (index, piece) in self.parts.iter().enumerate() {
            let function = piece.function(Sketch::address(index));
            let parent = bearers[piece.on % bearers.len()];
            if piece.is_bridge {
                functions.push(add(parent, NodeKind::Bridge(function)));
                bearers.extend(functions.last());
            } else {
                functions.push(add(parent, NodeKind::Function(function)));
            }
        }
        for (from, to, count) in &self.links {
            let (from, to) = (functions[from % functions.len()], functions[to % functions.len()]);
            let bytes_per_s = Some(u64::from(*count) * 25_000_000_000);
            let link = Link { from, to, kind: LinkKind::Xgmi, count: *count, bytes_per_s, atomics: None };
            if from != to {
                builder.link(link, &place).expect("a good link");
            }
        }
        (builder.build(), functions)
    }
}

impl Piece {
    fn function(&self, address: PciAddress) -> Function {
        let rate = Some(u64::from(self.width) * 1_000_000_000).filter(|rate| *rate > 0);
        let bar = |mib| Bar {
            index: 0,
            start: Some(1 << 40),
            len_bytes: mib << 20,
            prefetchable: true,
            sizes: None,
        };
        Function {
            address: Some(address),
            ids: Some(PciIds { vendor: 0x1234, device: self.chip }),
            link: PciLink { bytes_per_s: rate, max_bytes_per_s: None },
            acs: self.acs.map(|on| Acs { request_redirect: on, ..Acs::default() }),
            bars: Some(self.bar_mib.map(bar).into_iter().collect()),
            ..Function::default()
        }
    }
}
