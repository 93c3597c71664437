//! Which reader a file needs. The contents decide; the name only breaks a tie.

use super::model::Trace;
use super::{bytes, frames, rmv, wsim};
use crate::error::{Error, Result};
use std::path::Path;

/// The formats that `--format` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Look at the file.
    Auto,
    /// IGT's gem_wsim workload descriptors.
    Wsim,
    /// Radeon memory traces, decoded to a table.
    Rmv,
    /// PyTorch's caching allocator.
    #[value(hide = true)]
    Pytorch,
    /// Kineto memory timelines.
    #[value(hide = true)]
    Kineto,
    /// MiniMalloc buffer lists.
    #[value(hide = true)]
    Minimalloc,
    /// Mooncake request traces.
    #[value(hide = true)]
    Mooncake,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Wsim => "wsim",
            Format::Rmv => "rmv",
            Format::Pytorch => "pytorch",
            Format::Kineto => "kineto",
            Format::Minimalloc => "minimalloc",
            Format::Mooncake => "mooncake",
        }
    }

    fn unsupported(self) -> Error {
        Error::Unsupported {
            what: format!("the format {}", self.name()),
            instead: "it replays wsim and rmv files and builtin:frames".into(),
        }
    }
}

/// Reads the workload that the command line names: a file, or `builtin:NAME`.
pub fn load(source: &str, format: Format, seed: u64) -> Result<Trace> {
    if let Some(name) = source.strip_prefix("builtin:") {
        return match name {
            "frames" if format == Format::Auto => {
                frames::generate(seed).map_err(|e| Error::input(source, None, e))
            }
            "frames" => Err(Error::usage("--format", "a built-in workload has no file format")),
            other => {
                Err(Error::usage(format!("builtin:{other}"), "the only built-in workload is builtin:frames"))
            }
        };
    }
    let path = Path::new(source);
    let text = bytes::read_text(path)?;
    let mut trace = parse(source, &text, format, seed)?;
    if trace.format == rmv::FORMAT {
        rmv::attach_sidecar(path, &mut trace)?;
    }
    if let Some(name) = path.file_name() {
        trace.name = name.to_string_lossy().into_owned();
    }
    Ok(trace)
}

/// Reads the text of a file that is called `source`.
pub fn parse(source: &str, text: &str, format: Format, seed: u64) -> Result<Trace> {
    let format = if format == Format::Auto { detect(source, text)? } else { format };
    match format {
        Format::Wsim => wsim::parse(source, text, seed),
        Format::Rmv => rmv::parse(source, text),
        other => Err(other.unsupported()),
    }
}

/// Guesses the format from the first line that says something, then from the name.
pub fn detect(source: &str, text: &str) -> Result<Format> {
    let first = bytes::numbered_lines(text)
        .map(|(_, line)| line)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    let first =
        first.ok_or_else(|| Error::input(source, None, "the file holds no line that says anything"))?;
    let columns: Vec<&str> = first.split(',').map(str::trim).collect();
    let has = |names: &[&str]| names.iter().all(|name| columns.contains(name));
    if has(&["ev", "va"]) {
        return Ok(Format::Rmv);
    }
    if has(&["action", "addr", "stream"]) {
        return Ok(Format::Pytorch);
    }
    if has(&["lower", "upper", "size"]) {
        return Ok(Format::Minimalloc);
    }
    if first.starts_with('{') && first.contains("hash_ids") {
        return Ok(Format::Mooncake);
    }
    if first.starts_with("[[") || first.starts_with('{') {
        return Ok(Format::Kineto);
    }
    let stem = source.strip_suffix(".gz").unwrap_or(source);
    if wsim::looks_like(first) || stem.ends_with(".wsim") {
        return Ok(Format::Wsim);
    }
    let reason = "neither a wsim workload nor an rmv table (the first line has no columns `ev` and `va`); name it with --format";
    Err(Error::input(source, 1, reason))
}
