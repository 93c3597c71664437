//! What guests are made of: without it every other test would be skipped, and nobody would see.

use crate::setup::{Thing, guest, need, required, say_loudly};

#[test]
fn what_must_be_here_is_here() {
    let Some(guest) = guest() else {
        let there = Thing::ALL.into_iter().filter(|thing| thing.look().is_ok()).map(Thing::name);
        let there: Vec<_> = there.collect();
        say_loudly(&format!("skipped: not a guest; this machine has {}: {}", there.len(), there.join(", ")));
        return;
    };
    let required = required();
    assert!(!required.is_empty(), "{guest:?} must have nothing");
    for name in required {
        let thing = Thing::ALL.into_iter().find(|thing| thing.name() == name);
        let thing = thing.unwrap_or_else(|| panic!("nobody knows how to look for {name}"));
        assert!(need(&[thing]));
    }
}
