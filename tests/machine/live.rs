//! The machine that the test runs on.

use std::path::Path;

use devpagemap::topology::{Label, Machine};

use crate::recordings::say_loudly;

#[test]
fn the_running_machine_is_read() {
    if !Path::new("/sys/devices").is_dir() {
        say_loudly("skipped: no /sys/devices here");
        return;
    }
    let machine = Machine::from_sysfs(Path::new("/")).expect("a machine");
    let there = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    for entry in there {
        let name = entry.file_name().into_string().expect("an address");
        let id = machine.at(name.parse().expect("an address"));
        // A device may vanish in between; then a note says so.
        assert!(
            id.is_some() || machine.notes().iter().any(|note| note.to_string().contains(&name)),
            "{name}"
        );
        id.into_iter().for_each(|id| assert_eq!(machine.path(id, id).label(), Label::Same));
    }
    assert!(machine.nodes().count() > 1, "not even a CPU: {machine}");
}

#[test]
fn sys_itself_is_a_root_as_well() {
    if !Path::new("/sys/devices").is_dir() {
        say_loudly("skipped: no /sys/devices here");
        return;
    }
    let (whole, inner) = (Machine::from_sysfs(Path::new("/")), Machine::from_sysfs(Path::new("/sys")));
    assert_eq!(whole.expect("a machine").to_string(), inner.expect("a machine").to_string());
}
