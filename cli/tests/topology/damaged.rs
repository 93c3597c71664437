//! Recorded machines whose files were damaged on the way: they are read or refused with a place, and nothing hangs or panics.

use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::LazyLock;

use crate::recordings::{Recording, all};

static RECORDINGS: LazyLock<Vec<Recording>> = LazyLock::new(all);

#[derive(Clone, Debug)]
enum Damage {
    Cut(Index),
    Flip(Index, u8),
    /// Puts one line of the file at the place of another.
    Copy(Index, Index),
    /// Takes a line out.
    Drop(Index),
    /// Puts a figure between the quotation marks of an attribute.
    Say(Index, &'static str),
}

fn damage() -> impl Strategy<Value = Damage> {
    let figures = prop_oneof![
        Just(""),
        Just("0"),
        Just("-1"),
        Just("18446744073709551616"),
        Just("4294967295"),
        Just("nan"),
        Just("1e999"),
        Just("0000:00:00.0"),
        Just("0000:[ff-00]"),
        Just("0x060400"),
        Just("\u{fffd}"),
    ];
    prop_oneof![
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Copy(from, to)),
        any::<Index>().prop_map(Damage::Drop),
        (any::<Index>(), figures).prop_map(|(at, figure)| Damage::Say(at, figure)),
    ]
}

fn damaged(bytes: &[u8], damage: &Damage) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    match damage {
        Damage::Cut(at) => bytes[..at.index(bytes.len())].to_vec(),
        Damage::Flip(at, bits) => {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            bytes
        }
        Damage::Copy(from, to) => {
            let line = lines[from.index(lines.len())];
            lines.insert(to.index(lines.len()), line);
            lines.join(&b'\n')
        }
        Damage::Drop(at) => {
            lines.remove(at.index(lines.len()));
            lines.join(&b'\n')
        }
        Damage::Say(at, figure) => {
            let quotes: Vec<usize> =
                bytes.iter().enumerate().filter(|(_, byte)| **byte == b'"').map(|(at, _)| at).collect();
            let Some(first) = quotes.len().checked_sub(1).map(|last| at.index(last.max(1))) else {
                return bytes.to_vec();
            };
            let Some(end) = quotes.get(first + 1) else { return bytes.to_vec() };
            [&bytes[..=quotes[first]], figure.as_bytes(), &bytes[*end..]].concat()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_read_or_refused_with_its_name(
        which: Index,
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        if RECORDINGS.is_empty() {
            return Ok(());
        }
        let recording = &RECORDINGS[which.index(RECORDINGS.len())];
        let mut bytes = recording.bytes.clone();
        for damage in &damages {
            if !bytes.is_empty() {
                bytes = damaged(&bytes, damage);
            }
        }
        match recording.kind.read(&bytes, "damaged.xml") {
            Ok(machine) => {
                let ends: Vec<_> = machine.nodes().map(|(id, _)| id).take(40).collect();
                for end in &ends {
                    machine.path(ends[0], *end);
                }
            }
            Err(message) => prop_assert!(message.starts_with("damaged.xml:"), "{}", message),
        }
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused_with_the_line_where_it_ends() {
    for recording in RECORDINGS.iter() {
        let text = recording.bytes.trim_ascii_end();
        for end in (1..text.len()).step_by(97) {
            let message = recording.kind.read(&text[..end], "cut.xml").expect_err("it is not whole");
            if text[..end].trim_ascii().is_empty() {
                continue;
            }
            let lines = 1 + text[..end].iter().filter(|byte| **byte == b'\n').count();
            assert!(
                message.starts_with(&format!("cut.xml:{lines}: ")),
                "{} at {end}: {message}",
                recording.name
            );
        }
    }
}
