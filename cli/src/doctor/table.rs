//! `devpagemap doctor` on the terminal: what there is, what is missing, and what to do about it.

use super::bars::BarFound;
use super::remedy;
use super::trial::{Trial, UNLIMITED_BYTES};
use super::{Diagnosis, Node};
use crate::report::paint::Paint;
use crate::report::units::{count, size};
use devpagemap::{NodeAbilities, Via, WhyNot};
use std::fmt::{Display, Write};

/// A line: something, what is with it, and what to do.
struct Row {
    name: String,
    state: State,
    says: String,
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Works,
    Missing,
    Told,
}

impl State {
    fn sign(self, paint: Paint) -> String {
        match self {
            State::Works => paint.good("yes"),
            State::Missing => paint.bad("no "),
            State::Told => paint.dim("·  "),
        }
    }
}

/// All that was found.
pub fn render(found: &Diagnosis, paint: Paint) -> String {
    let mut out = String::new();
    let _infallible = writeln!(out, "\n  {}  Linux {}", paint.bold("this machine"), found.kernel);
    section(&mut out, "DRM nodes", nodes(found), "there are none below /dev/dri", paint);
    section(&mut out, "buffers as dma-bufs", exporters(found), "", paint);
    section(&mut out, "heaps", heaps(found), "there are none below /dev/dma_heap", paint);
    section(&mut out, "fences in the kernel", fences(found), "", paint);
    section(&mut out, "memory for peers", peer_memory(found), "no PCI function lends any (p2pmem)", paint);
    let bars = found.bars.iter().map(bar).collect();
    section(
        &mut out,
        "BARs that could be video memory",
        bars,
        "no PCI function has a large prefetchable BAR",
        paint,
    );
    section(&mut out, "limits", limits(found), "", paint);
    out
}

fn section(out: &mut String, title: &str, rows: Vec<Row>, when_empty: &str, paint: Paint) {
    let _infallible = writeln!(out, "\n  {}", paint.bold(title));
    if rows.is_empty() {
        let _infallible = writeln!(out, "    {}", paint.dim(when_empty));
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    for row in rows {
        let sign = row.state.sign(paint);
        let _infallible = writeln!(out, "    {sign}  {:width$}  {}", row.name, row.says);
        if let Some(remedy) = row.remedy {
            let _infallible =
                writeln!(out, "         {:width$}  {}", "", paint.amber(&format!("→ {remedy}")));
        }
    }
}

fn nodes(found: &Diagnosis) -> Vec<Row> {
    let row = |node: &Node| {
        let name = node.found.path.display().to_string();
        match (&node.found.driver, &node.abilities) {
            (Ok(driver), Ok(abilities)) => {
                let says = format!("{driver}, {}: {}", node.found.kind, can(abilities));
                Row { name, state: State::Works, says, remedy: None }
            }
            (Err(error), _) | (_, Err(error)) => {
                Row { name, state: State::Missing, says: error.to_string(), remedy: node.remedy() }
            }
        }
    };
    match &found.nodes {
        Ok(nodes) => nodes.iter().map(row).collect(),
        Err(why) => {
            let remedy = remedy::of_nodes(why);
            vec![Row { name: "/dev/dri".into(), state: State::Missing, says: why.to_string(), remedy }]
        }
    }
}

fn can(abilities: &NodeAbilities) -> String {
    let virtio = abilities.virtio;
    let all = [
        (abilities.imports, "imports"),
        (abilities.exports, "exports"),
        (abilities.dumb_buffers, "dumb buffers"),
        (abilities.syncobjs, "syncobjs"),
        (abilities.timeline_syncobjs, "timelines"),
        (abilities.modifiers, "modifiers"),
        (virtio.is_some_and(|virtio| virtio.blobs), "blobs"),
        (virtio.is_some_and(|virtio| virtio.host_visible), "blobs of the host"),
        (virtio.is_some_and(|virtio| virtio.renders), "rendering by the host"),
    ];
    let words: Vec<&str> = all.into_iter().filter(|(has, _)| *has).map(|(_, word)| word).collect();
    words.join(", ")
}

fn exporters(found: &Diagnosis) -> Vec<Row> {
    let row = |(via, trial): &(Via, Result<Trial, WhyNot>)| {
        let name = via.to_string();
        match trial {
            Ok(trial) => Row { name, state: State::Works, says: tried(trial), remedy: None },
            Err(why) => Row {
                name,
                state: State::Missing,
                says: why.to_string(),
                remedy: remedy::of_exporter(via, why),
            },
        }
    };
    found.exporters.iter().map(row).collect()
}

fn tried(trial: &Trial) -> String {
    let abilities = &trial.abilities;
    let mut words = vec![match abilities.in_place {
        true => "in place, nothing is copied".to_owned(),
        false => "with pages of its own".to_owned(),
    }];
    words.push(match abilities.max_bytes {
        UNLIMITED_BYTES.. => "of any size".to_owned(),
        bytes => format!("up to {}", size(bytes)),
    });
    if abilities.max_runs != usize::MAX {
        words.push(format!("in up to {} pieces", count(abilities.max_runs as u64)));
    }
    if abilities.read_only {
        words.push("read-only too".to_owned());
    }
    words.join(", ")
}

fn heaps(found: &Diagnosis) -> Vec<Row> {
    let row = |heap: &devpagemap::HeapFound| {
        let name = heap.name.clone();
        match &heap.usable {
            Ok(()) => Row { name, state: State::Works, says: heap.path.display().to_string(), remedy: None },
            Err(why) => {
                let rights = matches!(why, WhyNot::NoRights { .. });
                let remedy = rights.then(|| remedy::of_rights(&heap.path));
                Row { name, state: State::Missing, says: why.to_string(), remedy }
            }
        }
    };
    found.heaps.iter().map(row).collect()
}

fn fences(found: &Diagnosis) -> Vec<Row> {
    let of_vgem = found.vgem_fences.as_ref().err().and_then(|why| remedy::of_exporter(&Via::Vgem, why));
    let of_sw_sync = found.sw_sync.as_ref().err().and_then(remedy::of_sw_sync);
    let of_syncobjs = found.syncobjs.as_ref().err().and_then(remedy::of_syncobjs);
    let (state, says) = match found.sync_files {
        Some(true) => (State::Works, "dma-bufs take fences as descriptors, and give them"),
        Some(false) => (State::Missing, "dma-bufs take no fences as descriptors: that came with Linux 6.0"),
        None => (State::Told, "not known: there is nobody to make a dma-buf that could be asked"),
    };
    vec![
        Row { name: "sync_file".into(), state, says: says.into(), remedy: None },
        tried_out("vgem", "a program signals them; they expire after 10 s", &found.vgem_fences, of_vgem),
        tried_out("sw_sync", "a program signals them; for debugging", &found.sw_sync, of_sw_sync),
        tried_out("syncobj", "points go from one device to another", &found.syncobjs, of_syncobjs),
    ]
}

fn tried_out<E: Display>(name: &str, says: &str, usable: &Result<(), E>, remedy: Option<String>) -> Row {
    match usable {
        Ok(()) => Row { name: name.into(), state: State::Works, says: says.into(), remedy: None },
        Err(why) => Row { name: name.into(), state: State::Missing, says: why.to_string(), remedy },
    }
}

fn peer_memory(found: &Diagnosis) -> Vec<Row> {
    let row = |memory: &super::PeerMemory| {
        let bytes = |bytes: Option<u64>| bytes.map_or("an unknown amount".into(), size);
        let published = if memory.published { "published" } else { "for its own driver alone" };
        let says =
            format!("{} of {} free, {published}", bytes(memory.available_bytes), bytes(memory.size_bytes));
        let remedy = (!memory.permitted).then(|| "p2pmem/allocate is for root alone".to_owned());
        let state = if memory.permitted { State::Works } else { State::Missing };
        Row { name: memory.device.clone(), state, says, remedy }
    };
    found.peer_memory.iter().map(row).collect()
}

fn bar(bar: &BarFound) -> Row {
    let combined = if bar.write_combined { ", write-combined too" } else { "" };
    let (state, owner, remedy) = match (&bar.driver, bar.permitted) {
        (Some(driver), _) => (State::Missing, format!("the driver {driver} has it"), None),
        (None, true) => (State::Works, "nobody has it".to_owned(), None),
        (None, false) => {
            let remedy = format!("as root: {} is not open to this user", bar.path.display());
            (State::Missing, "nobody has it".to_owned(), Some(remedy))
        }
    };
    Row {
        name: format!("{} BAR {}", bar.device, bar.number),
        state,
        says: format!("{}{combined}, {owner}", size(bar.len_bytes)),
        remedy,
    }
}

fn limits(found: &Diagnosis) -> Vec<Row> {
    let limits = &found.limits;
    let told = |name: &str, says: String, remedy: Option<String>| Row {
        name: name.into(),
        state: State::Told,
        says,
        remedy,
    };
    let number = |value: Option<u64>| value.map_or("no limit".into(), count);
    let few =
        limits.open_files.is_some_and(|files| files < 4096) && limits.open_files != limits.open_files_hard;
    let raise = few.then(|| format!("each dma-buf needs some: ulimit -n {}", number(limits.open_files_hard)));
    let files = format!(
        "{} for this process, {} if it asks",
        number(limits.open_files),
        number(limits.open_files_hard)
    );
    let mut rows = vec![told("open files", files, raise)];
    if let (Some(now), Some(most)) = (limits.system_files, limits.system_files_max) {
        rows.push(told("of the system", format!("{} of {}", count(now), count(most)), None));
    }
    if let (Some(pieces), Some(bytes)) = (limits.udmabuf_pieces, limits.udmabuf_bytes) {
        let says = format!("a buffer of up to {} in up to {} pieces", size(bytes), count(pieces));
        let raise = "larger ones: udmabuf.size_limit_mb=1024 udmabuf.list_limit=65536 for the kernel, or in /sys/module/udmabuf/parameters";
        rows.push(told("udmabuf", says, Some(raise.to_owned())));
    }
    rows
}
