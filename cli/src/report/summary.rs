//! The summary on the terminal: what was replayed, how full VRAM was, what moved, what was checked, what failed.
//!
//! Fits 80 columns. Colour only on a terminal, and not when `NO_COLOR` is set.

use super::json::value_name;
use super::paint::Paint;
use super::units::{bandwidth, count, plural, size, time};
use crate::replay::Outcome;
use crate::trace::Trace;
use std::fmt::{self, Write};

/// How wide the strips are.
const STRIP: usize = 56;
/// Failures that are listed; the JSON has them all.
const LISTED: usize = 8;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The summary; it is its `Display`.
pub struct Summary<'a> {
    trace: &'a Trace,
    outcome: &'a Outcome,
    paint: Paint,
}

impl<'a> Summary<'a> {
    /// Of one replay.
    pub fn new(trace: &'a Trace, outcome: &'a Outcome, paint: Paint) -> Summary<'a> {
        Summary { trace, outcome, paint }
    }

    fn head(&self, f: &mut impl Write) -> fmt::Result {
        let (trace, config, paint) = (self.trace, &self.outcome.config, self.paint);
        let shape = format!(
            "{} in {}, {} up to {}",
            plural(u64::from(trace.bos), "buffer"),
            size(trace.peak_live_bytes),
            match trace.batches {
                1 => "1 batch".to_string(),
                batches => format!("{} batches", count(u64::from(batches))),
            },
            size(trace.largest_batch_bytes),
        );
        let visible = match config.bar_bytes {
            bar if bar >= config.vram_bytes => "all of it CPU-visible".to_string(),
            bar => format!("{} of it CPU-visible", size(bar)),
        };
        let scale = if config.scale > 1 { format!(", scale 1/{}", config.scale) } else { String::new() };
        writeln!(f, "\n  {}  {}", paint.bold(&shortened(&trace.name, 50)), paint.dim(trace.format))?;
        writeln!(f, "  {shape}")?;
        writeln!(
            f,
            "  {}",
            paint.dim(&format!(
                "{} VRAM, {visible}; {} GTT",
                size(config.vram_bytes),
                size(config.gtt_bytes)
            ))
        )?;
        let rules = format!(
            "placement {}, policy {}, data {}, seed {}{scale}",
            value_name(&config.placement),
            value_name(&config.policy),
            value_name(&config.data),
            config.seed
        );
        writeln!(f, "  {}\n", paint.dim(&rules))
    }

    fn strips(&self, f: &mut impl Write) -> fmt::Result {
        let slices = self.outcome.samples.sliced(STRIP);
        let vram = slices.iter().map(|(bytes, _)| level(*bytes, self.outcome.config.vram_bytes));
        let most = slices.iter().map(|(_, evictions)| *evictions).max().unwrap_or(0);
        let evictions = slices.iter().map(|(_, evictions)| level(*evictions, most));
        let full = self.outcome.stats.vram_peak_bytes * 100 / self.outcome.config.vram_bytes.max(1);
        let (vram, evictions) = (vram.collect::<String>(), evictions.collect::<String>());
        writeln!(f, "  {:<10}{}  {full}% full", "VRAM", self.paint.blue(&vram))?;
        if most > 0 {
            let text = format!("up to {}", count(most));
            writeln!(f, "  {:<10}{}  {}", "evicted", self.paint.amber(&evictions), text)?;
        }
        writeln!(f)
    }

    fn row(&self, f: &mut impl Write, name: &str, figure: &str, more: &str) -> fmt::Result {
        writeln!(f, "{}", format!("  {name:<16}{figure:>14}   {more}").trim_end())
    }

    fn table(&self, f: &mut impl Write) -> fmt::Result {
        let (outcome, stats) = (self.outcome, &self.outcome.stats);
        let failed = outcome.batches_failed.len();
        let done = format!("{} of {}", outcome.batches_done, self.trace.batches);
        let verdict = match failed {
            0 => self.paint.good("all done"),
            _ => self.paint.bad(&format!("{failed} failed")),
        };
        self.row(f, "batches", &done, &verdict)?;
        self.row(f, "VRAM peak", &size(stats.vram_peak_bytes), &self.left_behind())?;
        self.row(f, "evictions", &count(stats.evictions), &size(stats.evicted_bytes))?;
        self.row(f, "restores", &count(stats.restores), &size(stats.restored_bytes))?;
        self.row(f, "moves", &count(stats.moves), &size(stats.moved_bytes))?;
        if stats.fallback_bytes > 0 {
            let copied = self.paint.amber("copied by the CPU, no engine would");
            self.row(f, "fallback", &size(stats.fallback_bytes), &copied)?;
        }
        if stats.cleared_bytes > 0 {
            self.row(f, "cleared", &size(stats.cleared_bytes), "before they changed hands")?;
        }
        if stats.copy_busy_ns > 0 {
            let speed = bandwidth(outcome.copy_bytes_per_s());
            self.row(f, "copy engines", &speed, "each, while moving and clearing")?;
        }
        if stats.cpu_maps + stats.bounced_bytes > 0 {
            let fallbacks = plural(stats.bar_fallbacks, "fallback");
            self.row(
                f,
                "CPU maps",
                &count(stats.cpu_maps),
                &format!("{fallbacks}, {} bounced", size(stats.bounced_bytes)),
            )?;
        }
        let waits = format!(
            "while placing; {}, {}",
            plural(stats.fence_waits, "fence wait"),
            time(stats.cpu_wait_ns)
        );
        self.row(f, "stalls", &count(stats.cpu_waits_in_validate), &waits)?;
        self.row(f, "verified", &size(outcome.verify.bytes_checked), &self.verdict())?;
        let clock = match self.trace.span_us {
            0 => String::new(),
            us => format!("{} on the recording's clock", time(us * 1000)),
        };
        self.row(f, "took", &time(outcome.wall_ns), &clock)
    }

    fn left_behind(&self) -> String {
        match self.outcome.vram_in_use_at_end_bytes {
            0 => "nothing left at the end".into(),
            left => self.paint.bad(&format!("{} still in use at the end", size(left))),
        }
    }

    fn verdict(&self) -> String {
        match self.outcome.verify.mismatches {
            0 if self.outcome.verify.bytes_checked == 0 => "buffers held no bytes (--data none)".into(),
            0 => self.paint.good("every byte right"),
            wrong => self.paint.bad(&format!("{} times a buffer held something else", count(wrong))),
        }
    }

    fn reasons(&self, f: &mut impl Write) -> fmt::Result {
        if self.outcome.reasons.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n  {}", self.paint.bold("fallbacks and refusals"))?;
        for (reason, times) in &self.outcome.reasons {
            writeln!(f, "  {:>6} × {}", count(*times), folded(reason, 68, 11))?;
        }
        Ok(())
    }

    fn failures(&self, f: &mut impl Write) -> fmt::Result {
        let outcome = self.outcome;
        if outcome.interrupted {
            writeln!(
                f,
                "\n  {}",
                self.paint.bad("interrupted: what was queued was finished, and everything was freed")
            )?;
        }
        let mut failed: Vec<_> = outcome.batches_failed.iter().collect();
        failed.retain(|failed| !(outcome.interrupted && failed.error == "interrupted"));
        let lines = failed.iter().map(|failed| {
            let place = if failed.line > 0 { format!(" (line {})", failed.line) } else { String::new() };
            format!("batch {}{place}: {}", failed.index, failed.error)
        });
        self.list(f, lines.collect(), failed.len() as u64)?;
        let lines = outcome.problems.iter().map(|problem| match problem.line {
            0 => problem.what.clone(),
            line => format!("line {line}: {}", problem.what),
        });
        self.list(f, lines.collect(), outcome.problem_count)?;
        let lines = outcome.verify.first.iter().map(|mismatch| {
            let by = mismatch
                .batch
                .map_or("when it was freed or mapped".to_string(), |index| format!("by batch {index}"));
            let wrong = mismatch.wrong;
            format!(
                "{} {by}: byte {} begins {:#018x}, expected {:#018x}",
                mismatch.buffer, wrong.offset_bytes, wrong.found, wrong.expected
            )
        });
        self.list(f, lines.collect(), outcome.verify.mismatches)
    }

    fn list(&self, f: &mut impl Write, lines: Vec<String>, all: u64) -> fmt::Result {
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        for line in lines.iter().take(LISTED) {
            writeln!(f, "  {} {}", self.paint.bad("✗"), folded(line, 74, 4))?;
        }
        match all.saturating_sub(LISTED as u64) {
            0 => Ok(()),
            more => writeln!(f, "    and {} more", count(more)),
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.strips(f)?;
        self.table(f)?;
        self.reasons(f)?;
        self.failures(f)?;
        writeln!(f)
    }
}

/// One block character for a share of the most.
fn level(value: u64, most: u64) -> char {
    match value {
        0 => ' ',
        _ => {
            let step = (u128::from(value) * 8).div_ceil(u128::from(most.max(1))) as usize;
            LEVELS[step.clamp(1, 8) - 1]
        }
    }
}

/// The end of a name that is too long.
fn shortened(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_string();
    }
    "..".chars().chain(name.chars().skip(length - width + 2)).collect()
}

/// Folds a text at blanks, further lines indented.
fn folded(text: &str, width: usize, indent: usize) -> String {
    let mut folded = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            folded.push('\n');
            folded.extend(std::iter::repeat_n(' ', indent));
            column = 0;
        } else if column > 0 {
            folded.push(' ');
            column += 1;
        }
        folded.push_str(word);
        column += length;
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_show_nothing_as_blank_and_little_as_the_lowest_block() {
        assert_eq!([0, 1, 50, 100].map(|value| level(value, 100)), [' ', '▁', '▄', '█']);
        assert_eq!(level(5, 0), '█');
    }

    #[test]
    fn long_texts_fold_at_blanks() {
        assert_eq!(folded("one two three", 7, 2), "one two\n  three");
        assert_eq!(shortened("0123456789", 6), "..6789");
    }
}
