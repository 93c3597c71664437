//! The command line: what can be typed, and what it means.

use crate::error::{Error, Result};
use crate::export::ExportOptions;
use crate::import::ImportOptions;
use crate::replay::{Config, Data, Placement};
use crate::trace::{Format, Trace};
use clap::{Args, Parser, Subcommand, ValueEnum};
use devpagemap::{CpuAccess, EvictionPolicy};
use std::path::PathBuf;

/// The default built-in workload.
pub const DEFAULT_WORKLOAD: &str = "builtin:frames";
/// VRAM when neither the command line nor the recording says how much: 8 GiB, 384 MiB for the small formats.
const DEFAULT_VRAM_BYTES: u64 = 8 << 30;
const DEFAULT_SMALL_VRAM_BYTES: u64 = 384 << 20;
/// System memory that the GPU can reach, unless the command line says otherwise.
const DEFAULT_GTT_BYTES: u64 = 4 << 30;

/// GPU memory management: what had to move and what it cost, who can reach whose memory, and why; buffers handed to other processes.
#[derive(Debug, Parser)]
#[command(name = "devpagemap", version, max_term_width = 100)]
pub struct Options {
    /// What to do; nothing means `replay builtin:frames`.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the command can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay a recorded GPU workload through a managed VRAM.
    Replay(ReplayOptions),
    /// Show who can reach whose memory, and how.
    Topo(TopoOptions),
    /// Say why one device reaches another's memory as it does, and what would make it better.
    Explain(ExplainOptions),
    /// Say what this machine offers for sharing buffers, and what is missing.
    Doctor(DoctorOptions),
    /// Make a dma-buf of a buffer, and hand it to other processes.
    Export(ExportOptions),
    /// Take a dma-buf from another process, and compare every byte.
    Import(ImportOptions),
}

/// Options of `devpagemap doctor`.
#[derive(Clone, Debug, Parser)]
pub struct DoctorOptions {
    /// Write the result as JSON; `-` is standard output, and the table then goes to standard error.
    #[arg(long, value_name = "FILE | -")]
    pub json: Option<PathBuf>,
}

/// Where a machine is read from.
#[derive(Clone, Debug, Default, Args)]
#[group(required = false, multiple = false)]
pub struct MachineSource {
    /// A tree like that of `/`, with `sys` and `proc` in it [default: this machine's own].
    #[arg(long, value_name = "DIR")]
    pub sysfs: Option<PathBuf>,
    /// A file that `lstopo --of xml` wrote (`.gz` is read as it is).
    #[arg(long, value_name = "FILE")]
    pub hwloc: Option<PathBuf>,
    /// A topology file of NCCL or RCCL (`.gz` is read as it is).
    #[arg(long, value_name = "FILE")]
    pub nccl: Option<PathBuf>,
}

/// Options of `devpagemap topo`.
#[derive(Clone, Debug, Parser)]
#[command(after_long_help = TOPO_HELP)]
pub struct TopoOptions {
    /// Where the machine is read from.
    #[command(flatten)]
    pub source: MachineSource,
    /// Write the result as JSON; `-` is standard output, and the matrix then goes to standard error.
    #[arg(long, value_name = "FILE | -")]
    pub json: Option<PathBuf>,
}

/// Options of `devpagemap explain`.
#[derive(Clone, Debug, Parser)]
#[command(after_long_help = TOPO_HELP)]
pub struct ExplainOptions {
    /// Whose memory it is: a GPU.
    pub exporter: String,
    /// Who reaches it: any PCI device.
    pub importer: String,
    /// Where the machine is read from.
    #[command(flatten)]
    pub source: MachineSource,
    /// Write the result as JSON; `-` is standard output, and the text then goes to standard error.
    #[arg(long, value_name = "FILE | -")]
    pub json: Option<PathBuf>,
}

const TOPO_HELP: &str = "\
Devices are named by PCI address (0000:3d:00.0, 3d:00.0, 3d:00 or 3d), by the name that the system has for them (card0, mlx5_0), or as the \
matrix numbers them (GPU0, NIC1, NVME0).

Decisions follow the rules of Linux for peer-to-peer access. What a source does not say is unknown, and is never taken for yes.

Exit status: 0 done; 2 bad usage or bad input.";

/// Options of `devpagemap replay`.
#[derive(Clone, Debug, Parser)]
#[command(after_long_help = AFTER_HELP)]
pub struct ReplayOptions {
    /// The recording (`.gz` is read as it is), or `builtin:frames`.
    #[arg(value_name = "FILE | builtin:NAME")]
    pub source: String,
    /// What kind of file it is.
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Video memory [default: the recorded GPU's if the file says, else 8GiB; 384MiB for wsim and frames].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub vram: Option<u64>,
    /// The part of video memory that the CPU sees [default: the recorded GPU's, else all of it].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub bar: Option<u64>,
    /// System memory that the GPU can reach [default: 4GiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gtt: Option<u64>,
    /// Where a batch's buffers may be while it runs.
    #[arg(long, value_enum, default_value_t = Placement::Vram)]
    pub placement: Placement,
    /// Who must leave when video memory is full, and what the CPU's accesses move.
    #[arg(long, value_enum, default_value_t = Policy::LruSet)]
    pub policy: Policy,
    /// What plays the GPU.
    #[arg(long, value_name = "software | pci:ADDRESS", default_value = "software")]
    pub device: String,
    /// Whether buffers hold bytes that are written, moved and checked.
    #[arg(long, value_enum, default_value_t = Data::Full)]
    pub data: Data,
    /// Make every buffer N times smaller (and default sizes of memory with them).
    #[arg(long, value_name = "1/N", default_value = "1/1", value_parser = parse_scale)]
    pub scale: u64,
    /// Seeds the buffers' bytes, and sizes and durations that a file gives as ranges.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON; `-` is standard output, and the summary then goes to standard error.
    #[arg(long, value_name = "FILE | -")]
    pub json: Option<PathBuf>,
    /// Write a page with charts.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a timeline for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
SIZE is `512MiB`, `8GiB` (KiB and TiB too), or a number of bytes.

A replay runs as fast as memory allows: delays, periods and batch durations of the recording are not slept. They only \
move the recording's own clock, which the summary shows. Batches of one context and engine run in order, different \
contexts at the same time.

With --data full every buffer holds real bytes. A batch checks what it reads, checks and then rewrites what it writes, \
and every byte is checked again when its buffer is freed.

Exit status: 0 done; 1 the workload failed (results are still written); 2 bad usage or bad input.";

/// Who leaves video memory, and what the CPU's accesses move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// The cheapest set of least recently used buffers that makes the hole.
    LruSet,
    /// One least recently used buffer after the other until there is room.
    Lru,
    /// To compare with: `lru-set`, but whatever the CPU accesses is moved to where it sees it.
    MigrateOnAccess,
}

impl Policy {
    /// The manager's own name for it.
    pub fn eviction_policy(self) -> EvictionPolicy {
        match self {
            Policy::LruSet | Policy::MigrateOnAccess => EvictionPolicy::LruSet,
            Policy::Lru => EvictionPolicy::Lru,
        }
    }

    /// What the CPU's accesses move.
    pub fn cpu_access(self) -> CpuAccess {
        match self {
            Policy::LruSet | Policy::Lru => CpuAccess::Auto,
            Policy::MigrateOnAccess => CpuAccess::Visible,
        }
    }
}

impl ReplayOptions {
    /// Those of `devpagemap` without arguments.
    pub fn default_workload() -> ReplayOptions {
        ReplayOptions::parse_from(["replay", DEFAULT_WORKLOAD])
    }

    /// Refuses what can be refused before the recording is read.
    pub fn check(&self) -> Result<()> {
        if self.device.starts_with("pci:") {
            return Err(Error::Unsupported {
                what: format!("--device {}", self.device),
                instead: "the only device is --device software".into(),
            });
        }
        if self.device != "software" {
            return Err(Error::usage(
                "--device",
                format!("`{}` is neither software nor pci:ADDRESS", self.device),
            ));
        }
        if self.vram == Some(0) {
            return Err(Error::usage("--vram", "a GPU with 0 bytes of video memory cannot hold anything"));
        }
        for (option, size) in [("--vram", self.vram), ("--bar", self.bar), ("--gtt", self.gtt)] {
            if let Some(bytes) = size.filter(|bytes| bytes % crate::trace::model::PAGE_BYTES != 0) {
                return Err(Error::usage(option, format!("{bytes} bytes are not whole pages of 4096 bytes")));
            }
        }
        Ok(())
    }

    /// The sizes and rules of the replay; what was not given comes from the recording.
    pub fn config(&self, trace: &Trace) -> Config {
        let recorded = trace.recorded_heaps;
        let scaled = |bytes: u64| crate::trace::model::page_rounded(bytes.div_ceil(self.scale));
        let fallback = if trace.format == "rmv" { DEFAULT_VRAM_BYTES } else { DEFAULT_SMALL_VRAM_BYTES };
        let vram_bytes = self.vram.or(recorded.map(|heaps| heaps.vram_bytes)).unwrap_or(scaled(fallback));
        let recorded_bar = recorded.filter(|_| self.vram.is_none()).map(|heaps| heaps.visible_bytes);
        Config {
            vram_bytes,
            bar_bytes: self.bar.or(recorded_bar).unwrap_or(vram_bytes),
            gtt_bytes: self.gtt.unwrap_or(scaled(DEFAULT_GTT_BYTES)),
            placement: self.placement,
            policy: self.policy,
            data: self.data,
            scale: self.scale,
            seed: self.seed,
        }
    }
}

/// Reads `512MiB`, `8GiB` or a number of bytes.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kib" => 10,
        "mib" => 20,
        "gib" => 30,
        "tib" => 40,
        "kb" | "mb" | "gb" | "tb" | "k" | "m" | "g" | "t" => {
            return Err("sizes are binary: write KiB, MiB, GiB or TiB, or a number of bytes".into());
        }
        _ => return Err("a size is written 512MiB, 8GiB, or as a number of bytes".into()),
    };
    if number.is_empty() {
        return Err("a size is written 512MiB, 8GiB, or as a number of bytes".into());
    }
    let bytes = number.parse::<u64>().ok().and_then(|value| value.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes <= 1 << 47).ok_or_else(|| "a size of more than 128 TiB".into())
}

/// Reads `1/N`.
fn parse_scale(text: &str) -> std::result::Result<u64, String> {
    let divisor = text.strip_prefix("1/").unwrap_or(if text == "1" { "1" } else { "" });
    match divisor.parse::<u64>() {
        Ok(0) => Err("no buffer can be 0 times smaller".into()),
        Ok(divisor) if divisor <= 1 << 30 => Ok(divisor),
        Ok(_) => Err("1/1073741824 is the smallest scale".into()),
        Err(_) => Err("a scale is written 1/N, for example 1/8".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_say_so() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("8GiB"), Ok(8 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1 gib"), Ok(1 << 30));
        for wrong in
            ["", "MiB", "1.5GiB", "-1", "12MB", "9999999999999TiB", "18446744073709551616", "5 apples"]
        {
            assert!(parse_size(wrong).is_err(), "{wrong:?} is not a size");
        }
    }

    #[test]
    fn a_scale_is_one_nth() {
        assert_eq!(parse_scale("1/8"), Ok(8));
        assert_eq!(parse_scale("1"), Ok(1));
        for wrong in ["2/8", "1/0", "8", "1/", "1/-3", "1/99999999999"] {
            assert!(parse_scale(wrong).is_err(), "{wrong:?} is not a scale");
        }
    }
}
