//! What was found as one JSON object: sizes in bytes. Scripts rely on the names and their order.

use super::remedy;
use super::trial::UNLIMITED_BYTES;
use super::{Diagnosis, Node};
use devpagemap::{NodeAbilities, Via, WhyNot};
use serde::Serialize;
use std::fmt::Display;

#[derive(Serialize)]
struct Report<'a> {
    kernel: &'a str,
    /// `null` when they cannot be looked for.
    nodes: Option<Vec<NodeReport>>,
    nodes_problem: Option<String>,
    exporters: Vec<ExporterReport>,
    heaps: Vec<UsableReport>,
    fences: FencesReport,
    peer_memory: Vec<PeerMemoryReport<'a>>,
    bars: Vec<BarReport<'a>>,
    limits: LimitsReport,
}

#[derive(Serialize)]
struct NodeReport {
    path: String,
    kind: String,
    driver: Option<String>,
    abilities: Option<NodeAbilitiesReport>,
    problem: Option<String>,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct NodeAbilitiesReport {
    imports: bool,
    exports: bool,
    dumb_buffers: bool,
    syncobjs: bool,
    timeline_syncobjs: bool,
    modifiers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtio: Option<VirtioReport>,
}

#[derive(Serialize)]
struct VirtioReport {
    blobs: bool,
    host_visible: bool,
    renders: bool,
}

#[derive(Serialize)]
struct ExporterReport {
    /// As `--via` calls it.
    via: String,
    /// Whether a page was exported through it and read back.
    usable: bool,
    in_place: Option<bool>,
    /// `null` where there is no limit.
    max_bytes: Option<u64>,
    /// The same.
    max_runs: Option<u64>,
    read_only: Option<bool>,
    problem: Option<String>,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct UsableReport {
    name: String,
    usable: bool,
    problem: Option<String>,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct FencesReport {
    /// `null` when there was no dma-buf to ask.
    sync_files: Option<bool>,
    sources: Vec<UsableReport>,
    syncobjs: UsableReport,
}

#[derive(Serialize)]
struct PeerMemoryReport<'a> {
    device: &'a str,
    size_bytes: Option<u64>,
    available_bytes: Option<u64>,
    published: bool,
    permitted: bool,
}

#[derive(Serialize)]
struct BarReport<'a> {
    device: &'a str,
    bar: usize,
    len_bytes: u64,
    driver: Option<&'a str>,
    write_combined: bool,
    permitted: bool,
    usable: bool,
}

#[derive(Serialize)]
struct LimitsReport {
    open_files: Option<u64>,
    open_files_hard: Option<u64>,
    system_files: Option<u64>,
    system_files_max: Option<u64>,
    udmabuf_pieces: Option<u64>,
    udmabuf_bytes: Option<u64>,
}

/// The object as text.
pub fn of(found: &Diagnosis) -> String {
    let limits = &found.limits;
    let report = Report {
        kernel: &found.kernel,
        nodes: nodes(found),
        nodes_problem: found.nodes.as_ref().err().map(ToString::to_string),
        exporters: exporters(found),
        heaps: heaps(found),
        fences: fences(found),
        peer_memory: peer_memory(found),
        bars: bars(found),
        limits: LimitsReport {
            open_files: limits.open_files,
            open_files_hard: limits.open_files_hard,
            system_files: limits.system_files,
            system_files_max: limits.system_files_max,
            udmabuf_pieces: limits.udmabuf_pieces,
            udmabuf_bytes: limits.udmabuf_bytes,
        },
    };
    serde_json::to_string_pretty(&report).expect("strings and numbers can be written") + "\n"
}

fn nodes(found: &Diagnosis) -> Option<Vec<NodeReport>> {
    let report = |node: &Node| NodeReport {
        path: node.found.path.display().to_string(),
        kind: node.found.kind.to_string(),
        driver: node.found.driver.as_ref().ok().cloned(),
        abilities: node.abilities.as_ref().ok().map(node_abilities),
        problem: node.problem().map(ToString::to_string),
        remedy: node.remedy(),
    };
    Some(found.nodes.as_ref().ok()?.iter().map(report).collect())
}

fn node_abilities(abilities: &NodeAbilities) -> NodeAbilitiesReport {
    NodeAbilitiesReport {
        imports: abilities.imports,
        exports: abilities.exports,
        dumb_buffers: abilities.dumb_buffers,
        syncobjs: abilities.syncobjs,
        timeline_syncobjs: abilities.timeline_syncobjs,
        modifiers: abilities.modifiers,
        virtio: abilities.virtio.map(|virtio| VirtioReport {
            blobs: virtio.blobs,
            host_visible: virtio.host_visible,
            renders: virtio.renders,
        }),
    }
}

fn exporters(found: &Diagnosis) -> Vec<ExporterReport> {
    let report = |(via, trial): &(Via, Result<super::Trial, WhyNot>)| {
        let abilities = trial.as_ref().ok().map(|trial| &trial.abilities);
        let why = trial.as_ref().err();
        ExporterReport {
            via: via.to_string(),
            usable: trial.is_ok(),
            in_place: abilities.map(|abilities| abilities.in_place),
            max_bytes: abilities.map(|it| it.max_bytes).filter(|bytes| *bytes < UNLIMITED_BYTES),
            max_runs: abilities
                .map(|it| it.max_runs)
                .filter(|runs| *runs != usize::MAX)
                .map(|runs| runs as u64),
            read_only: abilities.map(|abilities| abilities.read_only),
            problem: why.map(ToString::to_string),
            remedy: why.and_then(|why| remedy::of_exporter(via, why)),
        }
    };
    found.exporters.iter().map(report).collect()
}

fn usable<E: Display>(
    name: &str,
    state: &Result<(), E>,
    remedy: impl Fn(&E) -> Option<String>,
) -> UsableReport {
    let why = state.as_ref().err();
    UsableReport {
        name: name.to_owned(),
        usable: why.is_none(),
        problem: why.map(ToString::to_string),
        remedy: why.and_then(remedy),
    }
}

fn heaps(found: &Diagnosis) -> Vec<UsableReport> {
    let report = |heap: &devpagemap::HeapFound| {
        let remedy =
            |why: &WhyNot| matches!(why, WhyNot::NoRights { .. }).then(|| remedy::of_rights(&heap.path));
        usable(&heap.name, &heap.usable, remedy)
    };
    found.heaps.iter().map(report).collect()
}

fn fences(found: &Diagnosis) -> FencesReport {
    let vgem = usable("vgem", &found.vgem_fences, |why| remedy::of_exporter(&Via::Vgem, why));
    let sw_sync = usable("sw_sync", &found.sw_sync, remedy::of_sw_sync);
    let syncobjs = usable("syncobj", &found.syncobjs, remedy::of_syncobjs);
    FencesReport { sync_files: found.sync_files, sources: vec![vgem, sw_sync], syncobjs }
}

fn peer_memory(found: &Diagnosis) -> Vec<PeerMemoryReport<'_>> {
    let memories = found.peer_memory.iter().map(|memory| PeerMemoryReport {
        device: &memory.device,
        size_bytes: memory.size_bytes,
        available_bytes: memory.available_bytes,
        published: memory.published,
        permitted: memory.permitted,
    });
    memories.collect()
}

fn bars(found: &Diagnosis) -> Vec<BarReport<'_>> {
    let bars = found.bars.iter().map(|bar| BarReport {
        device: &bar.device,
        bar: bar.number,
        len_bytes: bar.len_bytes,
        driver: bar.driver.as_deref(),
        write_combined: bar.write_combined,
        permitted: bar.permitted,
        usable: bar.driver.is_none() && bar.permitted,
    });
    bars.collect()
}
