//! One PCI function of sysfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::file::{bytes, entries, hex, text};
use super::resource::Resource;
use crate::topology::config_space::{Capability, ConfigSpace};
use crate::topology::function::{Bar, Function, PciIds, Vram};
use crate::topology::link::{PciLink, parse_pci_speed, pci_bytes_per_s};

/// What was read of a function.
pub struct Read {
    pub function: Function,
    pub names: Vec<String>,
    pub notes: Vec<String>,
    /// Whether its configuration space was not read far enough to know of ACS.
    pub is_guarded: bool,
}

/// Reads the function whose directory is `dir`; `None` when it is gone.
pub fn read(dir: &Path) -> Option<Read> {
    let (mut notes, mut is_guarded) = (Vec::new(), false);
    let before = identity(dir)?;
    let ids = PciIds { vendor: id(dir, "vendor")?, device: id(dir, "device")? };
    let mut function = Function {
        address: dir.file_name()?.to_str()?.parse().ok(),
        class: Some(hex(&dir.join("class"))?),
        ids: Some(ids),
        link: PciLink { bytes_per_s: rate(dir, "current"), max_bytes_per_s: rate(dir, "max") },
        // The kernel says -1 for a node that it does not know.
        numa: text(&dir.join("numa_node")).and_then(|number| number.parse().ok()),
        bars: bars(dir, &mut notes),
        vram: vram(dir),
        ..Function::default()
    };
    match bytes(&dir.join("config")).map(|bytes| ConfigSpace::parse(&bytes)) {
        Some(Ok(space)) => {
            is_guarded = space.acs == Capability::Unread;
            space.describe(&mut function);
        }
        Some(Err(error)) => notes.push(format!("{error}; nothing of it is believed")),
        None => is_guarded = true,
    }
    let names = names(dir);
    // A function that went away half-way has answered the later questions with nothing, and one that came in its place for
    // itself.
    let read = Read { function, names, notes, is_guarded };
    (identity(dir) == Some(before)).then_some(read)
}

/// What tells a function from the next one at its address: each has a directory of its own.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|found| (found.dev(), found.ino()))
}

/// Whether other functions can be below it, by its class: bridges to PCI, CardBus and partly transparent ones.
pub fn is_bridge(function: &Function) -> bool {
    matches!(function.class.map(|class| class >> 8), Some(0x0604 | 0x0607 | 0x0609))
}

fn id(dir: &Path, name: &str) -> Option<u16> {
    hex(&dir.join(name)).and_then(|id| id.try_into().ok())
}

/// The rate of the link: what it runs at (`current`), or could (`max`).
fn rate(dir: &Path, which: &str) -> Option<u64> {
    let speed = parse_pci_speed(&text(&dir.join(format!("{which}_link_speed")))?)?;
    let width = text(&dir.join(format!("{which}_link_width")))?.parse().ok()?;
    pci_bytes_per_s(speed, width)
}

/// The memory BARs; `None`, with a note, when the table is not one.
fn bars(dir: &Path, notes: &mut Vec<String>) -> Option<Vec<Bar>> {
    const BARS: usize = 6;
    let table = text(&dir.join("resource"))?;
    let mut bars = Vec::new();
    for (index, line) in table.lines().take(BARS).enumerate() {
        let Some(bar) = bar(index as u8, line) else {
            notes.push(format!(
                "resource, line {}: `{line}` is no range with flags; its BARs are not known",
                index + 1
            ));
            return None;
        };
        bars.extend(bar);
    }
    Some(bars)
}

/// One line. `None` for what is no such line, `Some(None)` for no memory.
fn bar(index: u8, line: &str) -> Option<Option<Bar>> {
    let resource = Resource::parse(line)?;
    let (start, len_bytes, prefetchable) =
        (resource.start(), resource.len_bytes(), resource.is_prefetchable());
    Some(resource.is_memory().then_some(Bar { index, start, len_bytes, prefetchable, sizes: None }))
}

/// What amdgpu says of its memory.
fn vram(dir: &Path) -> Option<Vram> {
    let bytes = |name: &str| text(&dir.join(name)).and_then(|bytes| bytes.parse::<u64>().ok());
    let total_bytes = bytes("mem_info_vram_total")?;
    let visible_bytes = bytes("mem_info_vis_vram_total").filter(|visible| *visible <= total_bytes);
    Some(Vram { total_bytes, visible_bytes })
}

/// What the system calls it: network interfaces, DRM nodes, InfiniBand devices, NVMe controllers and their disks.
fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for class in ["accel", "block", "drm", "infiniband", "net", "nvme"] {
        names.extend(entries(&dir.join(class)).into_iter().filter(|name| !name.starts_with("controlD")));
    }
    for controller in entries(&dir.join("nvme")) {
        let disks = entries(&dir.join("nvme").join(&controller)).into_iter();
        let is_disk = |name: &String| {
            let rest = name.strip_prefix(&controller).and_then(|rest| rest.strip_prefix('n'));
            rest.is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
            })
        };
        names.extend(disks.filter(is_disk).filter(|name| {
            fs::metadata(dir.join("nvme").join(&controller).join(name)).is_ok_and(|found| found.is_dir())
        }));
    }
    names
}
