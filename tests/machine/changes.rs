//! What is said when a machine is not what it was.

use devpagemap::topology::{Change, Machine, Part};
use proptest::prelude::*;

use crate::random::{Sketch, sketch};
use crate::tree::Tree;

const GPU: u32 = 0x030200;

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| change.to_string()).collect()
}

fn between(old: &Sketch, new: &Sketch) -> Vec<String> {
    texts(&old.build().0.changes(&new.build().0))
}

/// A switch with two devices below it, the first of which has a link to the other.
fn board() -> Sketch {
    use crate::random::Piece;
    let piece =
        |on, is_bridge| Piece { on, is_bridge, width: 16, acs: Some(false), bar_mib: Some(256), chip: 1 };
    Sketch {
        numa: 1,
        roots: vec![0],
        parts: vec![piece(0, true), piece(1, true), piece(2, false), piece(2, false)],
        links: vec![(2, 3, 2)],
    }
}

#[test]
fn hot_plug_is_told_by_address() {
    let (old, mut new) = (board(), board());
    new.parts.pop();
    new.links.clear();
    assert_eq!(
        between(&old, &new),
        ["0000:13:00.0 vanished", "xGMI from 0000:12:00.0 to 0000:13:00.0 is lost; it was x2, 50.0 GB/s"]
    );
    assert_eq!(
        between(&new, &old),
        [
            "0000:13:00.0 appeared below 0000:11:00.0",
            "xGMI from 0000:12:00.0 to 0000:13:00.0 is there, x2, 50.0 GB/s"
        ]
    );
}

#[test]
fn links_get_slower_are_lost_and_come_back() {
    let at = |width| {
        let mut board = board();
        board.parts[2].width = width;
        board
    };
    assert_eq!(between(&at(16), &at(4)), ["the link of 0000:12:00.0 is slower: 4.0 GB/s, not 16.0 GB/s"]);
    assert_eq!(between(&at(4), &at(8)), ["the link of 0000:12:00.0 is faster: 8.0 GB/s, not 4.0 GB/s"]);
    assert_eq!(between(&at(16), &at(0)), ["the link of 0000:12:00.0 is lost; it had 16.0 GB/s"]);
    assert_eq!(between(&at(0), &at(16)), ["the link of 0000:12:00.0 is back at 16.0 GB/s"]);
}

#[test]
fn acs_bars_and_chips_are_told_with_what_they_were() {
    let old = board();
    let mut new = board();
    new.parts[1].acs = Some(true);
    new.parts[2].bar_mib = Some(16 << 10);
    new.parts[3].chip = 2;
    assert_eq!(
        between(&old, &new),
        [
            "ACS of 0000:11:00.0 is now ReqRedir+ CmpltRedir- EgressCtrl-, \
             and was ReqRedir- CmpltRedir- EgressCtrl-",
            "BAR 0 of 0000:12:00.0 is now 16 GiB, and was 256 MiB",
            "the chip at 0000:13:00.0 is now 1234:0002, and was 1234:0001",
        ]
    );
    new.parts[1].acs = None;
    assert!(between(&old, &new)[0].contains("is now unknown"));
}

#[test]
fn a_private_link_that_loses_lanes_is_no_lost_link() {
    let (old, mut new) = (board(), board());
    new.links = vec![(2, 3, 1)];
    assert_eq!(
        between(&old, &new),
        ["xGMI from 0000:12:00.0 to 0000:13:00.0 is now x1, 25.0 GB/s, and was x2, 50.0 GB/s"]
    );
}

#[test]
fn a_card_in_another_slot_has_moved() {
    let (old, mut new) = (board(), board());
    new.parts[3].on = 0;
    assert_eq!(between(&old, &new), ["0000:13:00.0 is now below pci0000:00, and was below 0000:11:00.0"]);
}

/// As the system shows it: a directory goes, a link trains slower.
#[test]
fn a_tree_that_is_read_again_tells_what_happened() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    let read = || Machine::from_sysfs(tree.path()).expect("a machine");
    tree.function("pci0000:00/0000:00:01.0", 0x060400, (1, 1));
    let dir = tree.function("pci0000:00/0000:00:01.0/0000:01:00.0", GPU, (1, 2));
    tree.write(&format!("{dir}/current_link_width"), b"16\n");
    tree.write(&format!("{dir}/current_link_speed"), b"16.0 GT/s PCIe\n");
    let before = read();
    assert_eq!(before.changes(&read()), []);
    tree.write(&format!("{dir}/current_link_speed"), b"2.5 GT/s PCIe\n");
    let slower = read();
    assert_eq!(
        texts(&before.changes(&slower)),
        ["the link of 0000:01:00.0 is slower: 4.0 GB/s, not 31.5 GB/s"]
    );
    std::fs::remove_file(tree.path().join("sys/bus/pci/devices/0000:01:00.0")).expect("it was there");
    let gone = Change::Vanished { part: Part::Function("01:00.0".parse().unwrap()) };
    assert_eq!(slower.changes(&read()), [gone]);
}

/// What a change and its opposite say of each other.
fn part_of(change: &Change) -> String {
    match change {
        Change::Appeared { part, .. } | Change::Vanished { part } => format!("{part} is there"),
        Change::Moved { part, .. } => format!("{part} moved"),
        Change::Replaced { part, .. } => format!("{part} replaced"),
        Change::Link { part, .. } => format!("{part} link"),
        Change::Acs { part, .. } => format!("{part} ACS"),
        Change::Bar { part, index, .. } => format!("{part} BAR {index}"),
        Change::Private { link, .. } => link.to_string(),
        other => panic!("random machines do not differ by {other:?}"),
    }
}

proptest! {
    #[test]
    fn nothing_is_said_of_a_machine_that_is_the_same(sketch in sketch()) {
        prop_assert_eq!(sketch.build().0.changes(&sketch.build().0), []);
    }

    /// The way back tells of the same parts as the way there.
    #[test]
    fn changes_can_be_told_backwards(old in sketch(), new in sketch()) {
        let (old, new) = (old.build().0, new.build().0);
        let sorted = |changes: Vec<Change>| {
            let mut parts: Vec<String> = changes.iter().map(part_of).collect();
            parts.sort();
            parts
        };
        prop_assert_eq!(sorted(old.changes(&new)), sorted(new.changes(&old)));
    }

    /// One thing is changed, and exactly that is told.
    #[test]
    fn one_change_is_told_once(sketch in sketch(), which in any::<prop::sample::Index>(), what in 0..4) {
        let mut changed = sketch.clone();
        let index = which.index(sketch.parts.len());
        let (old, piece) = (&sketch.parts[index], &mut changed.parts[index]);
        let kind = match what {
            0 => { piece.width = old.width + 1; "link" }
            1 => { piece.acs = if old.acs == Some(true) { None } else { Some(true) }; "ACS" }
            2 => { piece.bar_mib = Some(old.bar_mib.unwrap_or(0) + 1); "BAR 0" }
            _ => { piece.chip = old.chip + 1; "replaced" }
        };
        let changes = sketch.build().0.changes(&changed.build().0);
        // The chip at device 0 of a root bus stands for its host bridge, but no function here is on bus 0 to 4.
        let told: Vec<String> = changes.iter().map(part_of).collect();
        prop_assert_eq!(told, [format!("{} {kind}", Sketch::address(index))]);
    }
}
