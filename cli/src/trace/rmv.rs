//! Reads Radeon memory traces, decoded to a table: what a Vulkan driver asked its kernel for, event by event.
//!
//! ```text
//!   seq,time_us,stream,ev,va,size,owner,pref,..     columns are found by name, their order does not matter
//!   va_alloc  size, pref = heaps best first          -> a buffer, placed there and then
//!   va_free                                          -> checked and freed
//!   res_ref_add / res_ref_remove                     -> the first / the last submission that uses the allocation
//!   cpu_map / cpu_unmap                              -> a CPU map; it may be repeated and need not be given back
//!   res_create, res_bind, res_destroy, pt_*          -> nothing for memory here, but counted as events
//! ```
//!
//! An address inside an allocation means that allocation. A recording may begin when its program already runs: what happens to
//! memory that was allocated before cannot be replayed, is passed over, and is counted with its reason.
//!
//! `res_ref_add` validates the allocation where it is to be used and writes it; `res_ref_remove` reads and checks it. Beside `NAME.csv.gz` there may be a `NAME.meta.json`
//! with the heaps of the recorded GPU and the peak that the recording counted itself; a replay compares with it.

use super::builder::TraceBuilder;
use super::bytes::numbered_lines;
use super::model::{
    Access, Batch, Bo, BoId, FirstBytes, Heap, MAX_BO_BYTES, RecordedHeaps, RecordedTotals, Step, Trace, Use,
};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name of the format.
pub const FORMAT: &str = "rmv";

/// What goes wrong inside a row; the line is added where it is known.
type Row<T> = std::result::Result<T, String>;

/// Reads a whole table.
pub fn parse(source: &str, text: &str) -> Result<Trace> {
    let mut lines = numbered_lines(text).filter(|(_, line)| !line.is_empty());
    let (header_line, header) =
        lines.next().ok_or_else(|| Error::input(source, None, "the table is empty"))?;
    let columns = Columns::find(header).map_err(|reason| Error::input(source, header_line, reason))?;
    let mut reader = Reader {
        builder: TraceBuilder::new(source, FORMAT),
        live: BTreeMap::new(),
        strays: BTreeMap::new(),
        last_us: 0.0,
    };
    for (line, row) in lines {
        reader.row(&columns, row, line).map_err(|reason| Error::input(source, line, reason))?;
    }
    if reader.builder.events == 0 {
        return Err(Error::input(source, None, "the table has a header and no rows"));
    }
    let trace = reader.builder.finish().map_err(|reason| Error::input(source, None, reason))?;
    Ok(Trace { strays: reader.strays, ..trace })
}

/// Where the columns are that a replay needs.
struct Columns {
    count: usize,
    time: usize,
    event: usize,
    address: usize,
    size: usize,
    heaps: usize,
}

impl Columns {
    fn find(header: &str) -> Row<Columns> {
        let names: Vec<&str> = header.split(',').map(str::trim).collect();
        let find = |name: &str| {
            let missing = || format!("the header has no column `{name}`");
            names.iter().position(|column| *column == name).ok_or_else(missing)
        };
        Ok(Columns {
            count: names.len(),
            time: find("time_us")?,
            event: find("ev")?,
            address: find("va")?,
            size: find("size")?,
            heaps: find("pref")?,
        })
    }
}

/// An allocation that is alive.
struct Allocation {
    bo: BoId,
    end: u64,
    mapped: u32,
}

struct Reader {
    builder: TraceBuilder,
    /// Allocations alive, by first address.
    live: BTreeMap<u64, Allocation>,
    /// Events about memory from before the recording, by reason.
    strays: BTreeMap<String, u64>,
    last_us: f64,
}

impl Reader {
    fn row(&mut self, columns: &Columns, row: &str, line: u64) -> Row<()> {
        let values: Vec<&str> = row.split(',').map(str::trim).collect();
        if values.len() != columns.count {
            return Err(format!("{} values in a table of {} columns", values.len(), columns.count));
        }
        self.builder.events += 1;
        let us = self.time(values[columns.time])?;
        let address = || hexadecimal(values[columns.address]);
        let step = match values[columns.event] {
            "va_alloc" => {
                self.builder.push(Step::At { us })?;
                return self.allocate(address()?, values[columns.size], values[columns.heaps], line);
            }
            "va_free" => self.free(address()?, line)?,
            "res_ref_add" => self.submission(address()?, Access::Write, line),
            "res_ref_remove" => self.submission(address()?, Access::Read, line),
            "cpu_map" => self.at(address()?).map(|allocation| {
                allocation.mapped += 1;
                Step::CpuMap { bo: allocation.bo, line }
            }),
            "cpu_unmap" => self.unmap(address()?, line),
            "res_create" | "res_bind" | "res_destroy" | "pt_update" | "pt_discard" | "pt_transfer" => {
                return Ok(());
            }
            other => return Err(format!("`{other}` is not an event of this format")),
        };
        let Some(step) = step else {
            let reason =
                format!("passed over: {} of memory from before the recording", values[columns.event]);
            *self.strays.entry(reason).or_default() += 1;
            return Ok(());
        };
        self.builder.push(Step::At { us })?;
        self.builder.push(step)
    }

    /// Times must be numbers and must not run backwards.
    fn time(&mut self, text: &str) -> Row<u64> {
        let us: f64 = text.parse().map_err(|_| format!("`{text}` is not a time in microseconds"))?;
        if !(0.0..1e15).contains(&us) {
            return Err(format!("the time {text} is not between 0 and 10^15 microseconds"));
        }
        if us < self.last_us {
            return Err(format!("the time {text} is before that of the row above ({})", self.last_us));
        }
        self.last_us = us;
        Ok(us as u64)
    }

    fn allocate(&mut self, address: u64, size: &str, preference: &str, line: u64) -> Row<()> {
        let size_bytes: u64 = size.parse().map_err(|_| format!("`{size}` is not a size in bytes"))?;
        if size_bytes == 0 || size_bytes > MAX_BO_BYTES {
            return Err(format!("an allocation of {size_bytes} bytes (1 byte to 128 TiB are possible)"));
        }
        let end = address.checked_add(size_bytes).ok_or("the allocation ends beyond the address space")?;
        let below = self.live.range(..end).next_back();
        if let Some((start, other)) = below.filter(|(_, other)| other.end > address) {
            return Err(format!("{address:#x} lies in the live allocation {start:#x}..{:#x}", other.end));
        }
        let bo = self.builder.next_bo();
        self.builder.push(Step::Create(Bo {
            id: bo,
            name: format!("{address:#x}"),
            size_bytes,
            heaps: heaps(preference)?,
            placed_at_creation: true,
            first_bytes: FirstBytes::Submitted,
            line,
        }))?;
        self.live.insert(address, Allocation { bo, end, mapped: 0 });
        Ok(())
    }

    /// `None`: it was allocated before the recording, as in the functions below.
    fn free(&mut self, address: u64, line: u64) -> Row<Option<Step>> {
        match self.live.remove(&address) {
            Some(Allocation { bo, .. }) => Ok(Some(Step::Destroy { bo, line })),
            None if self.at(address).is_some() => Err(format!(
                "{address:#x} is freed, which lies inside a live allocation and does not begin it"
            )),
            None => Ok(None),
        }
    }

    fn unmap(&mut self, address: u64, line: u64) -> Option<Step> {
        let allocation = self.at(address)?;
        allocation.mapped = allocation.mapped.checked_sub(1)?;
        Some(Step::CpuUnmap { bo: allocation.bo, line })
    }

    fn at(&mut self, address: u64) -> Option<&mut Allocation> {
        let below = self.live.range_mut(..=address).next_back().map(|(_, allocation)| allocation);
        below.filter(|allocation| allocation.end > address)
    }

    fn submission(&mut self, address: u64, access: Access, line: u64) -> Option<Step> {
        let bo = self.at(address)?.bo;
        Some(Step::Batch(Batch {
            index: self.builder.next_batch(),
            context: 0,
            engine: "gfx".into(),
            uses: vec![Use { bo, access }],
            after: Vec::new(),
            duration_us: Some(0),
            line,
        }))
    }
}

fn hexadecimal(text: &str) -> Row<u64> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    value.ok_or_else(|| format!("`{text}` is not an address (0x..)"))
}

/// `local_invisible>local_visible>..`: best first. The CPU sees only part of video memory, and a buffer that does not
/// ask for that part leaves it to others as long as there is room elsewhere.
fn heaps(preference: &str) -> Row<Vec<Heap>> {
    let mut heaps = Vec::new();
    for name in preference.split('>').filter(|name| !name.is_empty()) {
        let heap = match name {
            "local_invisible" => Heap::Vram,
            "local_visible" => Heap::VramVisible,
            "system" => Heap::System,
            other => return Err(format!("`{other}` is not a heap (local_visible, local_invisible, system)")),
        };
        if !heaps.contains(&heap) {
            heaps.push(heap);
        }
    }
    if heaps.is_empty() { Err("the allocation prefers no heap".into()) } else { Ok(heaps) }
}

/// The part of the file beside a recording that a replay uses.
#[derive(Deserialize)]
struct Sidecar {
    heaps: Vec<SidecarHeap>,
    va_peak_live_bytes: u64,
}

#[derive(Deserialize)]
struct SidecarHeap {
    heap: String,
    size: u64,
}

/// The name of the file that may lie beside `path`.
fn sidecar_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    let stem = stem.strip_suffix(".csv").unwrap_or(stem);
    Some(path.with_file_name(format!("{stem}.meta.json")))
}

/// Adds heaps and totals from the file beside the recording, if there is one.
pub fn attach_sidecar(path: &Path, trace: &mut Trace) -> Result<()> {
    let Some(beside) = sidecar_path(path).filter(|beside| beside.exists()) else { return Ok(()) };
    let text = super::bytes::read_text(&beside)?;
    let shown = beside.display().to_string();
    let sidecar: Sidecar = serde_json::from_str(&text).map_err(|error| {
        Error::input(&shown, error.line() as u64, format!("not a recording's description: {error}"))
    })?;
    let sum = |name: &str| -> Result<u64> {
        let sizes = sidecar.heaps.iter().filter(|heap| heap.heap == name).map(|heap| heap.size);
        let total = sizes.map(u128::from).sum::<u128>();
        u64::try_from(total).ok().filter(|total| *total <= MAX_BO_BYTES).ok_or_else(|| {
            Error::input(&shown, None, format!("the heap {name} of {total} bytes is larger than 128 TiB"))
        })
    };
    let visible_bytes = sum("local_visible")?;
    let vram_bytes = visible_bytes + sum("local_invisible")?;
    trace.recorded_totals = Some(RecordedTotals { peak_live_bytes: sidecar.va_peak_live_bytes });
    trace.recorded_heaps = (vram_bytes > 0).then_some(RecordedHeaps { vram_bytes, visible_bytes });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "seq,time_us,ev,va,size,pref";

    fn table(rows: &[&str]) -> String {
        rows.iter().fold(HEADER.to_string(), |text, row| text + "\n" + row)
    }

    fn reason(rows: &[&str]) -> String {
        parse("t.csv", &table(rows)).expect_err("must be refused").to_string()
    }

    #[test]
    fn an_address_inside_an_allocation_means_that_allocation() {
        let text = table(&[
            "0,0.5,va_alloc,0x10000,8192,local_invisible>local_visible>local_visible",
            "1,1.0,res_ref_add,0x11fff,,",
            "2,1.0,cpu_map,0x10800,,",
            "3,2.0,pt_update,0x999,,",
            "4,2.0,res_ref_remove,0x10000,,",
        ]);
        let trace = parse("t.csv", &text).unwrap();
        assert_eq!((trace.events, trace.bos, trace.batches, trace.peak_live_bytes), (5, 1, 2, 8192));
        let Some(Step::Create(bo)) = trace.steps.iter().find(|step| matches!(step, Step::Create(_))) else {
            panic!("no buffer was made")
        };
        assert_eq!(bo.heaps, [Heap::Vram, Heap::VramVisible]);
        assert!(matches!(trace.steps.last(), Some(Step::Destroy { .. })), "the replay frees what is left");
    }

    #[test]
    fn every_broken_row_is_named_with_its_line() {
        let alloc = "0,0,va_alloc,0x1000,4096,system";
        for (rows, expected) in [
            (&["0,0,va_alloc,0x1000,0,system"][..], "t.csv:2: an allocation of 0 bytes"),
            (&["0,0,va_alloc,0x1000,9223372036854775808,system"], "9223372036854775808 bytes"),
            (&["0,0,va_alloc,0xfffffffffffff000,8192,system"], "beyond the address space"),
            (&["0,0,va_alloc,0x1000,4096,moon"], "`moon` is not a heap"),
            (&["0,0,va_alloc,0x1000,4096,"], "prefers no heap"),
            (&["0,0,va_alloc,1000,4096,system"], "`1000` is not an address"),
            (&[alloc, "1,0,va_alloc,0x1800,4096,system"], "lies in the live allocation 0x1000..0x2000"),
            (
                &[alloc, "1,0,va_free,0x1800,,"],
                "t.csv:3: 0x1800 is freed, which lies inside a live allocation",
            ),
            (&[alloc, "1,0,va_free"], "3 values in a table of 6 columns"),
            (&["0,5,pt_update,,,", "0,4,pt_update,,,"], "before that of the row above"),
            (&["0,nan,pt_update,,,"], "not between"),
            (&["0,0,explode,,,"], "not an event"),
            (&[], "no rows"),
        ] {
            let reason = reason(rows);
            assert!(reason.contains(expected), "{rows:?} gave {reason:?}, not {expected:?}");
        }
    }

    #[test]
    fn events_of_memory_from_before_the_recording_are_counted_and_passed_over() {
        let text = table(&[
            "0,0,va_alloc,0x1000,4096,system",
            "1,0,va_free,0x9000,,",
            "2,0,res_ref_add,0x2000,,",
            "3,0,cpu_map,0x8000,,",
            "4,0,cpu_unmap,0x1000,,",
            "5,0,va_free,0x1000,,",
            "6,0,va_free,0x1000,,",
        ]);
        let trace = parse("t.csv", &text).unwrap();
        assert_eq!((trace.bos, trace.batches), (1, 0));
        let passed_over =
            |event: &str| trace.strays[&format!("passed over: {event} of memory from before the recording")];
        let counts = ["va_free", "res_ref_add", "cpu_map", "cpu_unmap"].map(passed_over);
        assert_eq!(counts, [2, 1, 1, 1]);
    }

    #[test]
    fn a_missing_column_is_named() {
        let reason = parse("t.csv", "seq,time_us,ev,va,size\n0,0,pt_update,,").unwrap_err().to_string();
        assert_eq!(reason, "t.csv:1: the header has no column `pref`");
    }
}
