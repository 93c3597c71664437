//! The only way to make a [`Trace`]: step by step, each checked.
//!
//! The builder keeps the running totals and refuses what no replay could carry out: sizes of zero or beyond what an
//! address can hold, uses of buffers that are not alive, batches that depend on later ones. It also runs the
//! recording's own clock, so that a report can say how long the recording took.

use super::model::{
    After, Batch, Bo, BoId, MAX_BO_BYTES, MAX_BOS, RecordedHeaps, RecordedTotals, Step, Trace,
};
use std::collections::{BTreeMap, HashMap};

/// What the builder knows of a buffer.
struct Known {
    size_bytes: u64,
    alive: bool,
    maps: u32,
    used: bool,
}

/// The recording's clock while batches of the trace are laid end to end, each engine of a context on its own.
#[derive(Default)]
struct Clock {
    /// Where the client stands.
    now_us: u64,
    /// When the engine of a context is free again.
    engine_free_us: HashMap<(u32, String), u64>,
    /// When each batch ends, by index; `u64::MAX` while it runs for ever.
    batch_end_us: Vec<u64>,
}

impl Clock {
    fn submit(&mut self, batch: &Batch) {
        let engine = self.engine_free_us.entry((batch.context, batch.engine.clone())).or_default();
        let mut start_us = self.now_us.max(*engine);
        for after in &batch.after {
            if let After::Batch(index) = after {
                start_us = start_us.max(self.batch_end_us[*index as usize]);
            }
        }
        let end_us = batch.duration_us.map_or(u64::MAX, |us| start_us.saturating_add(us));
        *engine = end_us;
        self.batch_end_us.push(end_us);
    }

    fn wait(&mut self, batch: u32) {
        let end_us = self.batch_end_us[batch as usize];
        if end_us != u64::MAX {
            self.now_us = self.now_us.max(end_us);
        }
    }

    fn terminate(&mut self, batch: u32) {
        let now_us = self.now_us;
        let ended = |end_us: &mut u64| *end_us = (*end_us).min(now_us);
        ended(&mut self.batch_end_us[batch as usize]);
        self.engine_free_us.values_mut().filter(|free| **free == u64::MAX).for_each(ended);
    }

    fn span_us(&self) -> u64 {
        let ends = self.batch_end_us.iter().copied().filter(|end| *end != u64::MAX);
        ends.max().unwrap_or(0).max(self.now_us)
    }
}

/// Collects the steps of a trace, checking each.
pub struct TraceBuilder {
    name: String,
    format: &'static str,
    steps: Vec<Step>,
    known: Vec<Known>,
    batches: u32,
    holds: Vec<bool>,
    live_bytes: u64,
    peak_live_bytes: u64,
    largest_batch_bytes: u64,
    clock: Clock,
    /// Events of the source so far.
    pub events: u64,
    /// The heaps that the source says it was recorded on.
    pub recorded_heaps: Option<RecordedHeaps>,
    /// The totals that the source carries.
    pub recorded_totals: Option<RecordedTotals>,
}

impl TraceBuilder {
    /// An empty trace.
    pub fn new(name: impl Into<String>, format: &'static str) -> TraceBuilder {
        TraceBuilder {
            name: name.into(),
            format,
            steps: Vec::new(),
            known: Vec::new(),
            batches: 0,
            holds: Vec::new(),
            live_bytes: 0,
            peak_live_bytes: 0,
            largest_batch_bytes: 0,
            clock: Clock::default(),
            events: 0,
            recorded_heaps: None,
            recorded_totals: None,
        }
    }

    /// The number that the next buffer gets.
    pub fn next_bo(&self) -> BoId {
        BoId(self.known.len() as u32)
    }

    /// The number that the next batch gets.
    pub fn next_batch(&self) -> u32 {
        self.batches
    }

    /// Adds a step, or says what is wrong with it; then the builder is of no more use.
    pub fn push(&mut self, step: Step) -> Result<(), String> {
        match &step {
            Step::Create(bo) => self.create(bo)?,
            Step::Destroy { bo, .. } => self.destroy(*bo)?,
            Step::Batch(batch) => self.batch(batch)?,
            Step::CpuMap { bo, .. } => self.alive(*bo)?.maps += 1,
            Step::CpuUnmap { bo, .. } => {
                let known = self.alive(*bo)?;
                known.maps = known.maps.checked_sub(1).ok_or("unmaps a buffer that is not mapped")?;
            }
            Step::Wait { batch } => {
                self.submitted(*batch)?;
                self.clock.wait(*batch);
            }
            Step::Terminate { batch } => {
                self.submitted(*batch)?;
                self.clock.terminate(*batch);
            }
            Step::Hold { hold } if *hold as usize == self.holds.len() => self.holds.push(false),
            Step::Hold { .. } => return Err("fences are not numbered in order".into()),
            Step::Release { hold } => self.release(*hold)?,
            Step::Delay { us } => self.clock.now_us = self.clock.now_us.saturating_add(*us),
            Step::Period { us } | Step::At { us } => self.clock.now_us = self.clock.now_us.max(*us),
            Step::Other => {}
        }
        self.steps.push(step);
        Ok(())
    }

    fn create(&mut self, bo: &Bo) -> Result<(), String> {
        if bo.size_bytes == 0 {
            return Err("a buffer of 0 bytes".into());
        }
        if bo.size_bytes > MAX_BO_BYTES {
            return Err(format!("a buffer of {} bytes is larger than 128 TiB", bo.size_bytes));
        }
        if self.known.len() >= MAX_BOS {
            return Err(format!("more than {MAX_BOS} buffers"));
        }
        debug_assert_eq!(bo.id, self.next_bo());
        self.live_bytes += bo.size_bytes;
        if self.live_bytes > MAX_BO_BYTES {
            return Err(format!("{} bytes alive at once are more than 128 TiB", self.live_bytes));
        }
        self.peak_live_bytes = self.peak_live_bytes.max(self.live_bytes);
        self.known.push(Known { size_bytes: bo.size_bytes, alive: true, maps: 0, used: false });
        Ok(())
    }

    fn alive(&mut self, bo: BoId) -> Result<&mut Known, String> {
        match self.known.get_mut(bo.index()) {
            Some(known) if known.alive => Ok(known),
            _ => Err(format!("buffer {} is not alive here", bo.0)),
        }
    }

    fn destroy(&mut self, bo: BoId) -> Result<(), String> {
        let known = self.alive(bo)?;
        known.alive = false;
        let size_bytes = known.size_bytes;
        self.live_bytes -= size_bytes;
        Ok(())
    }

    fn submitted(&self, batch: u32) -> Result<(), String> {
        if batch < self.batches {
            Ok(())
        } else {
            Err(format!("batch {batch} does not come before this step"))
        }
    }

    fn release(&mut self, hold: u32) -> Result<(), String> {
        match self.holds.get_mut(hold as usize) {
            Some(released) => *released = true,
            None => return Err(format!("fence {hold} was never made")),
        }
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        debug_assert_eq!(batch.index, self.batches);
        let mut bytes = 0;
        for one in &batch.uses {
            let known = self.alive(one.bo)?;
            known.used = true;
            bytes += known.size_bytes;
        }
        for after in &batch.after {
            match *after {
                After::Batch(index) => self.submitted(index)?,
                After::Hold(hold) if (hold as usize) < self.holds.len() => {}
                After::Hold(hold) => return Err(format!("fence {hold} was never made")),
            }
        }
        self.largest_batch_bytes = self.largest_batch_bytes.max(bytes);
        self.clock.submit(batch);
        self.batches += 1;
        Ok(())
    }

    /// Ends the trace: signals fences that the client never signalled, frees what is still alive.
    pub fn finish(mut self) -> Result<Trace, String> {
        for hold in 0..self.holds.len() {
            if !self.holds[hold] {
                self.push(Step::Release { hold: hold as u32 })?;
            }
        }
        for index in 0..self.known.len() {
            if self.known[index].alive {
                self.push(Step::Destroy { bo: BoId(index as u32), line: 0 })?;
            }
        }
        let used = || self.known.iter().filter(|known| known.used);
        Ok(Trace {
            referenced_bos: used().count() as u32,
            referenced_bytes: used().map(|known| known.size_bytes).sum(),
            span_us: self.clock.span_us(),
            name: self.name,
            format: self.format,
            events: self.events,
            bos: self.known.len() as u32,
            batches: self.batches,
            peak_live_bytes: self.peak_live_bytes,
            largest_batch_bytes: self.largest_batch_bytes,
            steps: self.steps,
            strays: BTreeMap::new(),
            recorded_heaps: self.recorded_heaps,
            recorded_totals: self.recorded_totals,
        })
    }
}
