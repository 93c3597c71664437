//! The result as one JSON object: bandwidths in bytes per second. Scripts rely on the names and their order.

use super::devices::Device;
use super::survey::{Part, Question, Survey};
use devpagemap::pagemap::{Explanation, LatencyClass, Route};
use serde::Serialize;

#[derive(Serialize)]
struct Report<'a> {
    devices: Vec<DeviceReport<'a>>,
    decisions: Vec<DecisionReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Vec<String>>,
    notes: Vec<String>,
    source: SourceReport,
}

#[derive(Serialize)]
struct SourceReport {
    kind: &'static str,
    path: String,
}

#[derive(Serialize)]
struct DeviceReport<'a> {
    /// Its PCI address, where the source has it.
    name: &'a str,
    kind: String,
    /// As the matrix calls it.
    short_name: String,
    names: &'a [String],
    ids: Option<String>,
    numa: Option<u32>,
    link_bytes_per_s: Option<u64>,
    vram_bytes: Option<u64>,
    visible_vram_bytes: Option<u64>,
}

/// One for each pair. Of a GPU of which the bus sees only a part, it is about that part.
#[derive(Serialize)]
struct DecisionReport<'a> {
    exporter: &'a str,
    importer: &'a str,
    #[serde(flatten)]
    answer: AnswerReport,
    /// Of the private link, where there is one, else of the bus.
    label: String,
    bus_label: String,
    /// What goes for the part that the bus does not see, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<AnswerReport>,
}

#[derive(Serialize)]
struct AnswerReport {
    route: &'static str,
    p2p: Option<bool>,
    bandwidth_bytes_per_s: Option<u64>,
    reasons: Vec<String>,
    reads: bool,
    writes: bool,
    atomics: Option<bool>,
    latency: &'static str,
}

/// All devices and all decisions.
pub fn of_all(survey: &Survey) -> String {
    let importers: Vec<usize> = survey.importers().collect();
    let pairs =
        survey.exporters().flat_map(|exporter| importers.iter().map(move |importer| (exporter, *importer)));
    let decisions = pairs.filter_map(|(exporter, importer)| {
        decision(survey, (exporter, importer), &survey.explanations(exporter, importer))
    });
    let report = Report {
        devices: survey.shown().map(|shown| device(survey, shown)).collect(),
        decisions: decisions.collect(),
        path: None,
        notes: notes(survey),
        source: source(survey),
    };
    text(&report)
}

/// Two devices, how the one reaches the other's memory, and the way bridge by bridge.
pub fn of_one(survey: &Survey, question: &Question) -> String {
    let ends = (question.exporter, question.importer);
    let path = survey.path(question.exporter, question.importer).describe(&survey.machine).to_string();
    let mut devices = vec![device(survey, &survey.devices[question.exporter])];
    if question.importer != question.exporter {
        devices.push(device(survey, &survey.devices[question.importer]));
    }
    let report = Report {
        devices,
        decisions: decision(survey, ends, &question.answers).into_iter().collect(),
        path: Some(path.lines().map(|line| line.trim().to_string()).collect()),
        notes: notes(survey),
        source: source(survey),
    };
    text(&report)
}

fn text(report: &Report<'_>) -> String {
    let text = serde_json::to_string_pretty(report).expect("strings and numbers can be written");
    text + "\n"
}

fn device<'a>(survey: &Survey, device: &'a Device) -> DeviceReport<'a> {
    let function = survey.machine.node(device.node).function();
    let vram = function.and_then(|function| function.vram);
    DeviceReport {
        name: &device.name,
        kind: device.purpose.name().to_lowercase(),
        short_name: device.short_name(),
        names: &device.names,
        ids: function.and_then(|function| function.ids).map(|ids| ids.to_string()),
        numa: survey.machine.numa_of(device.node),
        link_bytes_per_s: function.and_then(|function| function.link.bytes_per_s),
        vram_bytes: vram.map(|vram| vram.total_bytes),
        visible_vram_bytes: vram.and_then(|vram| vram.visible_bytes),
    }
}

fn decision<'a>(
    survey: &'a Survey,
    (exporter, importer): (usize, usize),
    answers: &[(Part, Explanation)],
) -> Option<DecisionReport<'a>> {
    let of = |wanted: fn(Part) -> bool| {
        answers.iter().find(|(part, _)| wanted(*part)).map(|(_, found)| answer(found))
    };
    let hidden = of(|part| part == Part::Hidden);
    let (answer, hidden) = match of(|part| part != Part::Hidden) {
        Some(visible) => (visible, hidden),
        None => (hidden?, None),
    };
    let path = survey.path(exporter, importer);
    Some(DecisionReport {
        exporter: &survey.devices[exporter].name,
        importer: &survey.devices[importer].name,
        answer,
        label: path.label().to_string(),
        bus_label: path.bus_label.to_string(),
        hidden,
    })
}

fn answer(explanation: &Explanation) -> AnswerReport {
    let decision = &explanation.decision;
    AnswerReport {
        route: route(decision.route),
        p2p: decision.p2p,
        bandwidth_bytes_per_s: decision.bandwidth_bytes_per_s,
        reasons: explanation.sentences(),
        reads: decision.direction.reads,
        writes: decision.direction.writes,
        atomics: decision.atomics,
        latency: match decision.latency {
            LatencyClass::Local => "local",
            LatencyClass::Near => "near",
            LatencyClass::Far => "far",
            LatencyClass::Remote => "remote",
        },
    }
}

fn route(route: Route) -> &'static str {
    match route {
        Route::SameDevice => "same_device",
        Route::PrivateLink => "private_link",
        Route::Switch => "switch",
        Route::HostBridge => "host_bridge",
        Route::Declared => "declared",
        Route::Staging => "staging",
        Route::System => "system",
        Route::Refused => "refused",
    }
}

fn notes(survey: &Survey) -> Vec<String> {
    survey.machine.notes().iter().map(ToString::to_string).collect()
}

fn source(survey: &Survey) -> SourceReport {
    SourceReport { kind: survey.origin.kind, path: survey.origin.path.display().to_string() }
}
