//! A timeline in Chrome's trace event format, which Perfetto opens: one track for each context and engine with its
//! batches, and counters for the memory.

use crate::replay::Outcome;
use crate::trace::Trace;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PROCESS: u32 = 1;

/// The whole file.
pub fn render(trace: &Trace, outcome: &Outcome) -> String {
    let mut events = vec![name_of("process_name", 0, &format!("devpagemap replay {}", trace.name))];
    let mut tracks: BTreeMap<(u32, &str), u32> = BTreeMap::new();
    for slice in &outcome.slices {
        let next = tracks.len() as u32 + 1;
        tracks.entry((slice.context, &slice.engine)).or_insert(next);
    }
    for ((context, engine), track) in &tracks {
        events.push(name_of("thread_name", *track, &format!("context {context} {engine}")));
    }
    for slice in &outcome.slices {
        let track = tracks[&(slice.context, slice.engine.as_str())];
        events.push(json!({
            "name": format!("batch {}", slice.index), "cat": "batch", "ph": "X", "pid": PROCESS, "tid": track,
            "ts": us(slice.start_ns), "dur": us(slice.end_ns - slice.start_ns),
            "args": {
                "line": slice.line, "buffers": slice.buffers, "bytes": slice.bytes,
                "submitted_us": us(slice.submitted_ns),
            },
        }));
    }
    for sample in outcome.samples.iter() {
        let at = us(sample.at_ns);
        events.push(counter("VRAM", at, sample.vram_bytes));
        events.push(counter("GTT", at, sample.gtt_bytes));
        events.push(counter("System", at, sample.system_bytes));
        events.push(counter("Evictions", at, sample.evictions));
    }
    let file = json!({ "traceEvents": events, "displayTimeUnit": "ms" });
    file.to_string() + "\n"
}

/// Trace event times are microseconds.
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

fn name_of(what: &str, track: u32, name: &str) -> Value {
    json!({ "name": what, "ph": "M", "pid": PROCESS, "tid": track, "args": { "name": name } })
}

fn counter(name: &str, at_us: f64, value: u64) -> Value {
    json!({ "name": name, "ph": "C", "pid": PROCESS, "ts": at_us, "args": { "value": value } })
}
