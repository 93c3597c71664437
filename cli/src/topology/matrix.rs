//! `devpagemap topo` on the terminal: a row for each GPU's memory, a column for each device that reaches it.
//!
//! A cell is the label of the way, as vendors' tools print it, and a sign for the decision: `PIX+`.

use super::devices::Device;
use super::survey::Survey;
use crate::report::paint::Paint;
use crate::report::units::plural;
use devpagemap::pagemap::Decision;
use devpagemap::topology::{Function, Label, NodeKind, Rate};
use std::collections::BTreeMap;
use std::fmt::Write;

/// More columns go below in a block of their own.
const COLUMNS: usize = 24;

/// What a decision is at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sign {
    Same,
    Peer,
    Partly,
    Staged,
    Unknown,
}

impl Sign {
    fn of(decisions: &[Decision], label: Label) -> Sign {
        let peers = decisions.iter().filter(|decision| decision.p2p == Some(true)).count();
        match peers {
            _ if label == Label::Same => Sign::Same,
            0 if decisions.iter().any(|decision| decision.p2p.is_none()) => Sign::Unknown,
            0 => Sign::Staged,
            _ if peers == decisions.len() => Sign::Peer,
            _ => Sign::Partly,
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Sign::Same => "",
            Sign::Peer => "+",
            Sign::Partly => "~",
            Sign::Staged => "-",
            Sign::Unknown => "?",
        }
    }

    fn legend(self) -> &'static str {
        match self {
            Sign::Same => "",
            Sign::Peer => "peer-to-peer: the device reaches the memory itself",
            Sign::Partly => "peer-to-peer for the part of the memory that the bus sees, staging for the rest",
            Sign::Staged => "staging: through a copy in system memory",
            Sign::Unknown => "what would decide it is not known, so staging",
        }
    }

    fn painted(self, paint: Paint, text: &str) -> String {
        match self {
            Sign::Same => paint.dim(text),
            Sign::Peer => paint.good(text),
            Sign::Partly | Sign::Unknown => paint.amber(text),
            Sign::Staged => paint.bad(text),
        }
    }
}

struct Cell {
    label: Label,
    sign: Sign,
}

/// The matrix with what is needed to read it.
pub fn render(survey: &Survey, paint: Paint) -> String {
    let mut out = String::new();
    head(&mut out, survey, paint);
    let exporters: Vec<usize> = survey.exporters().collect();
    let importers: Vec<usize> = survey.importers().collect();
    if exporters.is_empty() {
        out.push_str("\n  There is no GPU whose place is known, so no memory for others to reach.\n");
    } else {
        let cells = |exporter: usize| {
            importers.iter().map(move |importer| cell(survey, exporter, *importer)).collect()
        };
        let rows: Vec<Vec<Cell>> = exporters.iter().map(|exporter| cells(*exporter)).collect();
        blocks(&mut out, survey, (&exporters, &importers), &rows, paint);
        legend(&mut out, &rows, paint);
    }
    devices(&mut out, survey, paint);
    notes(&mut out, survey, paint);
    hint(&mut out, survey, &rows_of_interest(&exporters, &importers), paint);
    out
}

fn cell(survey: &Survey, exporter: usize, importer: usize) -> Cell {
    let label = survey.label(exporter, importer);
    let decisions: Vec<Decision> =
        survey.decisions(exporter, importer).into_iter().map(|(_, decision)| decision).collect();
    Cell { label, sign: Sign::of(&decisions, label) }
}

fn head(out: &mut String, survey: &Survey, paint: Paint) {
    let origin = &survey.origin;
    let name = match origin.is_here {
        true => "this machine".to_string(),
        false => origin.path.file_name().unwrap_or(origin.path.as_os_str()).display().to_string(),
    };
    let packages = survey.count(|kind| matches!(kind, NodeKind::Package(_)));
    let memories = survey.count(|kind| matches!(kind, NodeKind::Numa(_)));
    let mut parts = vec![plural(packages as u64, "CPU package"), plural(memories as u64, "NUMA node")];
    for word in ["GPU", "NIC", "NVME"] {
        let count = survey.shown().filter(|device| device.purpose.name() == word).count();
        if count > 0 {
            parts.push(plural(count as u64, if word == "NVME" { "NVMe disk" } else { word }));
        }
    }
    let _infallible = writeln!(out, "\n  {}  {}", paint.bold(&name), paint.dim(origin.kind));
    let _infallible = writeln!(out, "  {}", parts.join(", "));
}

fn blocks(out: &mut String, survey: &Survey, ends: (&[usize], &[usize]), rows: &[Vec<Cell>], paint: Paint) {
    let (exporters, importers) = ends;
    let _infallible = writeln!(out, "\n  {}", paint.dim("rows: whose memory; columns: who reaches it"));
    let width =
        |texts: &mut dyn Iterator<Item = String>| texts.map(|text| text.chars().count()).max().unwrap_or(0);
    let head = width(&mut exporters.iter().map(|index| survey.devices[*index].short_name()));
    for first in (0..importers.len()).step_by(COLUMNS) {
        let columns = first..(first + COLUMNS).min(importers.len());
        let widths: Vec<usize> = columns
            .clone()
            .map(|column| {
                let name = survey.devices[importers[column]].short_name();
                let mut texts = rows.iter().map(|row| text(&row[column])).chain([name]);
                width(&mut texts)
            })
            .collect();
        let _infallible = write!(out, "\n  {:head$}", "");
        for (column, width) in columns.clone().zip(&widths) {
            let name = survey.devices[importers[column]].short_name();
            let _infallible = write!(out, "  {}", paint.bold(&format!("{name:width$}")));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        for (exporter, row) in exporters.iter().zip(rows) {
            let name = survey.devices[*exporter].short_name();
            let _infallible = write!(out, "  {}", paint.bold(&format!("{name:head$}")));
            for (column, width) in columns.clone().zip(&widths) {
                let cell = &row[column];
                let padded = format!("{:width$}", text(cell));
                let _infallible = write!(out, "  {}", cell.sign.painted(paint, &padded));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
    }
}

fn text(cell: &Cell) -> String {
    format!("{}{}", cell.label, cell.sign.letter())
}

fn legend(out: &mut String, rows: &[Vec<Cell>], paint: Paint) {
    let mut labels: BTreeMap<&str, (Label, &str)> = BTreeMap::new();
    let mut signs: Vec<Sign> = Vec::new();
    for cell in rows.iter().flatten() {
        labels.insert(cell.label.symbol(), (cell.label, cell.label.legend()));
        signs.push(cell.sign);
    }
    signs.sort();
    signs.dedup();
    let mut labels: Vec<(Label, &str, &str)> =
        labels.into_iter().map(|(symbol, (label, legend))| (label, symbol, legend)).collect();
    labels.sort();
    out.push('\n');
    for (_, symbol, legend) in labels {
        let _infallible = writeln!(out, "  {}  {legend}", paint.bold(&format!("{symbol:5}")));
    }
    for sign in signs.into_iter().filter(|sign| *sign != Sign::Same) {
        let _infallible =
            writeln!(out, "  {}  {}", sign.painted(paint, &format!("{:5}", sign.letter())), sign.legend());
    }
}

fn devices(out: &mut String, survey: &Survey, paint: Paint) {
    let lines: Vec<[String; 5]> = survey.shown().map(|device| line(survey, device)).collect();
    if lines.is_empty() {
        return;
    }
    let widths: [usize; 5] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    out.push('\n');
    for line in lines {
        let mut text = format!("  {}", paint.bold(&format!("{:1$}", line[0], widths[0])));
        for column in 1..line.len() {
            let _infallible = write!(text, "  {:1$}", line[column], widths[column]);
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

fn line(survey: &Survey, device: &Device) -> [String; 5] {
    let function = survey.machine.node(device.node).function().cloned().unwrap_or_default();
    let Function { ids, link, .. } = function;
    let place = device.address.map_or("address unknown".to_string(), |address| address.to_string());
    let ids = ids.map_or(String::new(), |ids| ids.to_string());
    let numa = survey.machine.numa_of(device.node).map_or(String::new(), |number| format!("NUMA {number}"));
    let rate = link.bytes_per_s.map(|rate| Rate(rate).to_string());
    let facts = rate.into_iter().chain([device.names.join(" ")]).collect::<Vec<_>>().join("  ");
    [device.short_name(), place, ids, numa, facts]
}

fn notes(out: &mut String, survey: &Survey, paint: Paint) {
    let notes = survey.machine.notes();
    if notes.is_empty() {
        return;
    }
    let _infallible = writeln!(out, "\n  {}", paint.bold("Left out"));
    for note in notes.iter().take(8) {
        let _infallible = writeln!(out, "  {note}");
    }
    if notes.len() > 8 {
        let _infallible = writeln!(out, "  and {} more", notes.len() - 8);
    }
}

/// The first two different devices.
fn rows_of_interest(exporters: &[usize], importers: &[usize]) -> Option<(usize, usize)> {
    let exporter = *exporters.first()?;
    importers.iter().rev().find(|importer| **importer != exporter).map(|importer| (exporter, *importer))
}

fn hint(out: &mut String, survey: &Survey, pair: &Option<(usize, usize)>, paint: Paint) {
    if let Some((exporter, importer)) = *pair {
        let names = [exporter, importer].map(|index| survey.devices[index].short_name());
        let command = format!("devpagemap explain {}{}", names.join(" "), survey.origin.arguments());
        let _infallible = writeln!(out, "\n  {}", paint.dim(&format!("Why: {command}")));
    }
}
