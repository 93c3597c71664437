//! The result as one page that needs nothing else: charts as inline SVG, no scripts, light and dark.

use super::json::value_name;
use super::units::{bandwidth, count, size, time};
use crate::replay::{Outcome, Sample};
use crate::trace::Trace;
use std::fmt::Write;

/// The drawing area of a chart, in SVG units.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 12.0;
/// Bars of the eviction chart.
const BARS: usize = 96;
/// Points of a curve; more would only make the page larger.
const POINTS: usize = 800;
/// Failures that the page lists.
const LISTED: usize = 200;

const STYLE: &str = "\
:root { color-scheme: light dark; --ground: #fafaf7; --card: #ffffff; --ink: #1d1f24; --soft: #666b75; --line: #e4e4df;\
 --vram: #2f6fdb; --gtt: #1f9a83; --system: #b4873a; --evicted: #d2562f; --good: #217a44; --bad: #b3261e; }\n\
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --card: #1c1f25; --ink: #e8e9ec; --soft: #9aa0ab;\
 --line: #2e323a; --vram: #6ea3ff; --gtt: #4fc9ae; --system: #d9ad62; --evicted: #f0835e; --good: #6fd394; --bad: #ff8a80; } }\n\
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }\n\
main { max-width: 920px; margin: 0 auto; padding: 32px 20px 64px; }\n\
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 0 0 10px; }\n\
p { margin: 4px 0; color: var(--soft); }\n\
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-top: 18px; }\n\
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--soft); }\n\
.grid { stroke: var(--line); stroke-width: 1; } .limit { stroke: var(--soft); stroke-dasharray: 4 4; }\n\
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px; margin-top: 18px; }\n\
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }\n\
.tile b { display: block; font-size: 20px; font-weight: 600; white-space: nowrap; } .tile span { color: var(--soft); font-size: 13px; }\n\
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }\n\
td, th { padding: 5px 8px; border-top: 1px solid var(--line); text-align: left; vertical-align: top; overflow-wrap: anywhere; }\n\
tr:first-child > * { border-top: 0; } td.figure { text-align: right; white-space: nowrap; }\n\
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 6px 0 14px; }\n\
.good { color: var(--good); } .bad { color: var(--bad); }\n";

/// The whole page.
pub fn render(trace: &Trace, outcome: &Outcome) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _cannot_fail = write_page(&mut page, trace, outcome);
    page
}

fn write_page(page: &mut String, trace: &Trace, outcome: &Outcome) -> std::fmt::Result {
    let title = escaped(&trace.name);
    write!(page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(
        page,
        "<title>{title} - devpagemap replay</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>"
    )?;
    write_head(page, trace, outcome)?;
    write_tiles(page, trace, outcome)?;
    write_memory(page, outcome)?;
    write_evictions(page, outcome)?;
    write_table(page, outcome)?;
    write_reasons(page, outcome)?;
    write_failures(page, outcome)?;
    writeln!(page, "</main>\n</body>\n</html>")
}

fn write_head(page: &mut String, trace: &Trace, outcome: &Outcome) -> std::fmt::Result {
    let config = &outcome.config;
    writeln!(page, "<h1>{}</h1>", escaped(&trace.name))?;
    writeln!(
        page,
        "<p>{} &middot; {} buffers, {} alive at most &middot; {} batches, the largest with {}</p>",
        trace.format,
        count(u64::from(trace.bos)),
        size(trace.peak_live_bytes),
        count(u64::from(trace.batches)),
        size(trace.largest_batch_bytes)
    )?;
    writeln!(
        page,
        "<p>{} VRAM, {} of it CPU-visible, {} GTT &middot; placement {}, policy {}, data {}, scale 1/{}, seed {}</p>",
        size(config.vram_bytes),
        size(config.bar_bytes.min(config.vram_bytes)),
        size(config.gtt_bytes),
        value_name(&config.placement),
        value_name(&config.policy),
        value_name(&config.data),
        config.scale,
        config.seed
    )
}

fn write_tiles(page: &mut String, trace: &Trace, outcome: &Outcome) -> std::fmt::Result {
    let stats = &outcome.stats;
    let class = |good: bool| if good { "good" } else { "bad" };
    let checked = match outcome.verify.mismatches {
        0 => format!("{} checked, every byte right", size(outcome.verify.bytes_checked)),
        wrong => format!("{} mismatches", count(wrong)),
    };
    let tiles = [
        (
            format!("{} / {}", outcome.batches_done, trace.batches),
            "batches done",
            class(outcome.batches_failed.is_empty()),
        ),
        (count(stats.evictions), "evictions", ""),
        (size(stats.moved_bytes), "moved", ""),
        (bandwidth(outcome.copy_bytes_per_s()), "while engines were busy", ""),
        (outcome.verify.mismatches.to_string(), checked.as_str(), class(outcome.verify.mismatches == 0)),
        (time(outcome.wall_ns), "in all", ""),
    ];
    writeln!(page, "<div class=\"tiles\">")?;
    for (figure, label, class) in tiles {
        writeln!(page, "<div class=\"tile\"><b class=\"{class}\">{figure}</b><span>{label}</span></div>")?;
    }
    writeln!(page, "</div>")
}

/// Turns moments and values into places of a chart. Moments stand side by side and not where they are in time, because
/// submission waits for nothing and is over long before the copies that it queued.
struct Scale<'a> {
    samples: &'a [Sample],
    top: f64,
    height: f64,
}

impl Scale<'_> {
    fn x(&self, moment: usize) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * moment as f64 / (self.samples.len() - 1).max(1) as f64
    }

    fn y(&self, value: u64) -> f64 {
        8.0 + self.height * (1.0 - value as f64 / self.top)
    }

    fn bottom(&self) -> f64 {
        8.0 + self.height
    }

    fn write_axes(&self, page: &mut String, label: impl Fn(f64) -> String) -> std::fmt::Result {
        for quarter in 0..=4 {
            let value = self.top * f64::from(quarter) / 4.0;
            let y = self.bottom() - self.height * f64::from(quarter) / 4.0;
            writeln!(
                page,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            )?;
            writeln!(
                page,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                label(value)
            )?;
        }
        for quarter in 0..=4 {
            let moment = (self.samples.len() - 1) * quarter as usize / 4;
            let anchor = ["start", "middle", "middle", "middle", "end"][quarter as usize];
            let (x, y) = (self.x(moment), self.bottom() + 18.0);
            let batches = count(self.samples[moment].batches);
            let label = if quarter == 0 { format!("batch {batches}") } else { batches };
            writeln!(page, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>")?;
        }
        Ok(())
    }
}

fn write_memory(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let all: Vec<Sample> = outcome.samples.iter().copied().collect();
    let Some(last) = all.len().checked_sub(1) else { return Ok(()) };
    let drawn: Vec<usize> = (0..last).step_by(all.len().div_ceil(POINTS)).chain([last]).collect();
    let most =
        all.iter().map(|one| one.vram_bytes.max(one.gtt_bytes).max(one.system_bytes)).max().unwrap_or(0);
    let top = most.max(outcome.config.vram_bytes.min(most.saturating_mul(2))).max(1) as f64 * 1.05;
    let scale = Scale { samples: &all, top, height: 240.0 };
    writeln!(page, "<section>\n<h2>Memory in use")?;
    for (name, color) in [("VRAM", "vram"), ("GTT", "gtt"), ("System", "system")] {
        writeln!(page, "<span class=\"key\" style=\"background: var(--{color})\"></span>{name}")?;
    }
    writeln!(
        page,
        "</h2>\n<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Memory in use, batch by batch\">",
        scale.bottom() + 26.0
    )?;
    scale.write_axes(page, |value| size(value as u64))?;
    if outcome.config.vram_bytes as f64 <= top {
        let y = scale.y(outcome.config.vram_bytes);
        writeln!(
            page,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        )?;
        writeln!(page, "<text x=\"{}\" y=\"{:.1}\">all of VRAM</text>", LEFT + 4.0, y - 4.0)?;
    }
    write_curve(page, &scale, &drawn, "system", |sample| sample.system_bytes)?;
    write_curve(page, &scale, &drawn, "gtt", |sample| sample.gtt_bytes)?;
    write_curve(page, &scale, &drawn, "vram", |sample| sample.vram_bytes)?;
    writeln!(page, "</svg>\n</section>")
}

/// A staircase: memory changes at once, not gradually.
fn write_curve(
    page: &mut String,
    scale: &Scale<'_>,
    drawn: &[usize],
    color: &str,
    value: impl Fn(&Sample) -> u64,
) -> std::fmt::Result {
    if scale.samples.iter().all(|sample| value(sample) == 0) {
        return Ok(());
    }
    let mut path = format!("M{:.1} {:.1}", scale.x(0), scale.bottom());
    for moment in drawn {
        write!(path, "H{:.1}V{:.1}", scale.x(*moment), scale.y(value(&scale.samples[*moment])))?;
    }
    writeln!(
        page,
        "<path d=\"{path}H{:.1}V{:.1}Z\" fill=\"var(--{color})\" fill-opacity=\"0.14\"/>",
        scale.x(scale.samples.len() - 1),
        scale.bottom()
    )?;
    writeln!(page, "<path d=\"{path}\" fill=\"none\" stroke=\"var(--{color})\" stroke-width=\"1.6\"/>")
}

fn write_evictions(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let mut bars = [(0u64, 0u64); BARS];
    let mut before = Sample::default();
    let samples: Vec<Sample> = outcome.samples.iter().copied().collect();
    for (moment, sample) in samples.iter().enumerate() {
        let bar = &mut bars[moment * BARS / samples.len()];
        bar.0 += sample.evicted_bytes - before.evicted_bytes;
        bar.1 += sample.evictions - before.evictions;
        before = *sample;
    }
    let most = bars.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
    if most == 0 {
        return writeln!(page, "<section>\n<h2>Evictions</h2>\n<p>Nothing had to leave.</p>\n</section>");
    }
    let scale = Scale { samples: &samples, top: most as f64 * 1.05, height: 110.0 };
    writeln!(
        page,
        "<section>\n<h2>Evicted<span class=\"key\" style=\"background: var(--evicted)\"></span>bytes</h2>"
    )?;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Evictions, batch by batch\">",
        scale.bottom() + 26.0
    )?;
    scale.write_axes(page, |value| size(value as u64))?;
    let width = (WIDTH - LEFT - RIGHT) / BARS as f64;
    for (index, (bytes, evictions)) in bars.iter().enumerate().filter(|(_, (bytes, _))| *bytes > 0) {
        let (x, y) = (LEFT + index as f64 * width, scale.y(*bytes));
        write!(
            page,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1\" fill=\"var(--evicted)\">",
            width - 1.0,
            scale.bottom() - y
        )?;
        writeln!(page, "<title>{} in {} evictions</title></rect>", size(*bytes), count(*evictions))?;
    }
    writeln!(page, "</svg>\n</section>")
}

fn write_table(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let stats = &outcome.stats;
    let waits = if stats.cpu_waits_in_validate == 0 { "none, by design" } else { "there should be none" };
    let rows = [
        ("Buffers created, freed", format!("{}, {}", count(stats.allocs), count(stats.frees)), String::new()),
        (
            "VRAM peak",
            size(stats.vram_peak_bytes),
            format!("{} in use at the end", size(outcome.vram_in_use_at_end_bytes)),
        ),
        ("Evictions", count(stats.evictions), size(stats.evicted_bytes)),
        ("Restores", count(stats.restores), size(stats.restored_bytes)),
        ("Moves", count(stats.moves), size(stats.moved_bytes)),
        ("Cleared", size(stats.cleared_bytes), "before memory changed hands".into()),
        (
            "CPU maps",
            count(stats.cpu_maps),
            format!("{} fallbacks, {} bounced", count(stats.bar_fallbacks), size(stats.bounced_bytes)),
        ),
        ("Waits while placing buffers", count(stats.cpu_waits_in_validate), waits.into()),
        ("Waits for fences", count(stats.fence_waits), time(stats.cpu_wait_ns)),
    ];
    writeln!(page, "<section>\n<h2>In figures</h2>\n<table>")?;
    for (name, figure, more) in rows {
        writeln!(
            page,
            "<tr><th scope=\"row\">{name}</th><td class=\"figure\">{figure}</td><td>{more}</td></tr>"
        )?;
    }
    writeln!(page, "</table>\n</section>")
}

fn write_reasons(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    if outcome.reasons.is_empty() {
        return Ok(());
    }
    writeln!(page, "<section>\n<h2>Fallbacks and refusals</h2>\n<table>")?;
    for (reason, times) in &outcome.reasons {
        writeln!(page, "<tr><td class=\"figure\">{}</td><td>{}</td></tr>", count(*times), escaped(reason))?;
    }
    writeln!(page, "</table>\n</section>")
}

fn write_failures(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let batches =
        outcome.batches_failed.iter().map(|failed| (format!("batch {}", failed.index), failed.error.clone()));
    let problems =
        outcome.problems.iter().map(|problem| (format!("line {}", problem.line), problem.what.clone()));
    let wrong = outcome.verify.first.iter().map(|mismatch| {
        let found = format!("byte {} begins {:#018x}", mismatch.wrong.offset_bytes, mismatch.wrong.found);
        (mismatch.buffer.clone(), format!("{found}, expected {:#018x}", mismatch.wrong.expected))
    });
    let failures: Vec<_> = batches.chain(problems).chain(wrong).collect();
    if failures.is_empty() {
        return Ok(());
    }
    writeln!(page, "<section>\n<h2 class=\"bad\">What failed</h2>\n<table>")?;
    for (place, what) in failures.iter().take(LISTED) {
        writeln!(page, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escaped(place), escaped(what))?;
    }
    writeln!(page, "</table>")?;
    if failures.len() > LISTED {
        writeln!(page, "<p>and {} more</p>", count((failures.len() - LISTED) as u64))?;
    }
    writeln!(page, "</section>")
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
