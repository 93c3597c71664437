//! Dumps of configuration spaces, as `lspci -xxxx` writes them.

use std::collections::BTreeMap;
use std::process::Command;

use crate::recordings::{output_of, recording};

/// The bytes of each function of a recorded dump, by its address as the dump has it. `None`, said loudly, when the recording
/// is not here.
pub fn dump(name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
    let path = recording(&format!("pci-sysfs-and-lspci/{name}"))?;
    let text = match name.ends_with(".gz") {
        true => output_of(Command::new("gzip").arg("-dc").arg(&path))?,
        false => std::fs::read(&path).expect("the recording is readable"),
    };
    Some(parse(&String::from_utf8_lossy(&text)))
}

/// A line that begins with an address begins a function; one of an offset and up to 16 bytes goes on with it. The rest is
/// for people.
fn parse(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut spaces: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let Some((first, rest)) = line.split_once(' ') else { continue };
        let offset = first.strip_suffix(':').and_then(|offset| usize::from_str_radix(offset, 16).ok());
        match (offset, &current) {
            (None, _) if first.contains('.') && first.contains(':') => current = Some(first.to_string()),
            (Some(offset), Some(name)) => {
                let bytes = spaces.entry(name.clone()).or_default();
                assert_eq!(bytes.len(), offset, "{name}: a line is missing");
                bytes.extend(rest.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")));
            }
            _ => {}
        }
    }
    spaces
}
