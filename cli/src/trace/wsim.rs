//! Reads the workload descriptors of IGT's `gem_wsim`: small text programs for a GPU.
//!
//! A line is a step; commas separate steps on one line; `#` starts a comment. A step that begins with a number is a
//! batch, any other begins with a letter:
//!
//! ```text
//!   context.engine.duration_us.dependencies.wait      1.RCS.500-1000.r3-41/w27-1/-2/f-1.0
//!   w.ID.SIZES   a working set of buffers             w.1.10n8m/3n16m/4k-1m
//!   W.ID.SIZES   one shared between clients           (a replay has one client)
//!   d p          delay; period from the start         s.-N  wait for the batch N steps back
//!   f, a.-N      make a fence; signal it              T.-N  end the endless (`*`) batch N steps back
//!   M B b P S X t q V v                               engines, priorities, throttles: nothing for memory
//! ```
//!
//! Dependencies are `0` or a list: `-N` and `f-N` wait for the batch (or fence) N steps back, `s-N` for its start,
//! `rSET-OBJECT` and `wSET-OBJECT` (or `rSET-FIRST-LAST`) use buffers. Steps are counted over all kinds of steps.
//!
//! The tool creates all working sets before the first step and frees them after the last, and so does this reader.
//! A client of the real tool hangs when it waits for a batch that is held back by a fence which only the same
//! client can signal later; such a file is refused, with both lines named.

use super::builder::TraceBuilder;
use super::bytes::numbered_lines;
use super::model::{
    Access, After, Batch, Bo, BoId, FirstBytes, MAX_BO_BYTES, MAX_BOS, Step, Trace, Use, merged_uses,
};
use crate::error::{Error, Result};
use crate::replay::pattern::Random;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// The name of the format.
pub const FORMAT: &str = "wsim";
/// The most buffer references that all batches of a file may make together.
const MAX_REFERENCES: usize = 16_000_000;

/// What goes wrong inside a step; the line is added where it is known.
type Step1<T> = std::result::Result<T, String>;

/// Whether a first line could begin such a file.
pub fn looks_like(line: &str) -> bool {
    let (head, rest) = line.split_once('.').unwrap_or((line, ""));
    let letter = head.len() == 1 && "wWdpstqaTPSXBMbVvf".contains(head) && (head == "f" || !rest.is_empty());
    letter || (head.parse::<u32>().is_ok() && rest.split('.').next().is_some_and(|name| engine(name).is_ok()))
}

/// Reads a whole file. `seed` decides sizes and durations that are given as ranges.
pub fn parse(source: &str, text: &str, seed: u64) -> Result<Trace> {
    let located = |line: u64| move |reason: String| Error::input(source, line, reason);
    let mut reader = Reader::new(source, seed);
    for (line, token) in tokens(text) {
        if matches!(token.split('.').next(), Some("w" | "W")) {
            reader.working_set(token, line).map_err(located(line))?;
        }
    }
    for (line, token) in tokens(text) {
        reader.step(token, line).map_err(located(line))?;
    }
    if reader.steps.is_empty() {
        return Err(Error::input(source, None, "the file holds no steps"));
    }
    reader.builder.events = reader.steps.len() as u64;
    reader.builder.finish().map_err(|reason| Error::input(source, None, reason))
}

/// All steps of a text with their lines.
fn tokens(text: &str) -> impl Iterator<Item = (u64, &str)> {
    numbered_lines(text)
        .filter(|(_, line)| !line.starts_with('#'))
        .flat_map(|(number, line)| line.split(',').map(move |token| (number, token.trim())))
        .filter(|(_, token)| !token.is_empty() && !token.starts_with('#'))
}

/// A working set: buffers with consecutive numbers.
struct Set {
    first: BoId,
    count: u32,
    line: u64,
}

/// What a step was, for those that refer back to it.
enum Kind {
    Batch { index: u32, endless: bool },
    Fence { hold: u32 },
    Other,
}

/// Fences that hold back the users of one buffer.
#[derive(Default, Clone)]
struct Holders {
    writers: Vec<u32>,
    readers: Vec<u32>,
}

struct Reader {
    builder: TraceBuilder,
    sets: HashMap<u32, Set>,
    random: Random,
    references: usize,
    /// Every step so far with its line.
    steps: Vec<(Kind, u64)>,
    /// Every fence: the line that made it, and whether it was signalled.
    holds: Vec<(u64, bool)>,
    /// Fences that hold back each batch, directly or through what it comes after.
    held: Vec<Vec<u32>>,
    held_by_engine: HashMap<(u32, String), Vec<u32>>,
    held_by_bo: HashMap<BoId, Holders>,
}

impl Reader {
    fn new(source: &str, seed: u64) -> Reader {
        Reader {
            builder: TraceBuilder::new(source, FORMAT),
            sets: HashMap::new(),
            random: Random::new(seed ^ 0x7773_696d),
            references: 0,
            steps: Vec::new(),
            holds: Vec::new(),
            held: Vec::new(),
            held_by_engine: HashMap::new(),
            held_by_bo: HashMap::new(),
        }
    }

    fn working_set(&mut self, token: &str, line: u64) -> Step1<()> {
        let [_, id, sizes] = fields(token, "w.ID.SIZES")?;
        let id = number::<u32>(id, "working set id")?;
        if let Some(other) = self.sets.get(&id) {
            return Err(format!("working set {id} was already declared on line {}", other.line));
        }
        let first = self.builder.next_bo();
        for group in sizes.split('/') {
            let (count, bytes) = size_group(group)?;
            if count as usize > MAX_BOS {
                return Err(format!("`{group}` asks for more than {MAX_BOS} buffers"));
            }
            for _ in 0..count {
                let bo = self.builder.next_bo();
                let create = Step::Create(Bo {
                    id: bo,
                    name: format!("w{id}-{}", bo.0 - first.0),
                    size_bytes: self.random.within(&bytes),
                    heaps: Vec::new(),
                    placed_at_creation: false,
                    first_bytes: FirstBytes::Uploaded,
                    line,
                });
                self.builder.push(create)?;
            }
        }
        let count = self.builder.next_bo().0 - first.0;
        self.sets.insert(id, Set { first, count, line });
        Ok(())
    }

    fn step(&mut self, token: &str, line: u64) -> Step1<()> {
        let kind = match token.split('.').next().unwrap_or_default() {
            "w" | "W" => Kind::Other,
            "d" | "p" => self.pause(token)?,
            "s" => self.sync(token)?,
            "a" => self.advance(token)?,
            "T" => self.terminate(token)?,
            "f" => self.fence(token, line)?,
            head if head.starts_with(|first: char| first.is_ascii_digit()) => self.batch(token, line)?,
            head if head.len() == 1 && "MBbPSXtqVv".contains(head) => {
                setting(token)?;
                self.builder.push(Step::Other)?;
                Kind::Other
            }
            head => return Err(format!("`{head}` begins no step of this format")),
        };
        self.steps.push((kind, line));
        Ok(())
    }

    fn pause(&mut self, token: &str) -> Step1<Kind> {
        let [letter, us] = fields(token, "d.MICROSECONDS or p.MICROSECONDS")?;
        let us = positive(us, "delay in microseconds")?;
        self.builder.push(if letter == "d" { Step::Delay { us } } else { Step::Period { us } })?;
        Ok(Kind::Other)
    }

    fn fence(&mut self, token: &str, line: u64) -> Step1<Kind> {
        let [_] = fields(token, "f")?;
        let hold = self.holds.len() as u32;
        self.holds.push((line, false));
        self.builder.push(Step::Hold { hold })?;
        Ok(Kind::Fence { hold })
    }

    fn sync(&mut self, token: &str) -> Step1<Kind> {
        let [_, back] = fields(token, "s.-STEPS")?;
        match *self.back(back)? {
            (Kind::Batch { index, .. }, _) => self.wait(index)?,
            (_, line) => return Err(format!("waits for line {line}, which is not a batch")),
        }
        Ok(Kind::Other)
    }

    fn advance(&mut self, token: &str) -> Step1<Kind> {
        let [_, back] = fields(token, "a.-STEPS")?;
        let hold = match *self.back(back)? {
            (Kind::Fence { hold }, _) => hold,
            (_, line) => return Err(format!("signals line {line}, which is not a fence (`f`)")),
        };
        self.holds[hold as usize].1 = true;
        self.builder.push(Step::Release { hold })?;
        Ok(Kind::Other)
    }

    fn terminate(&mut self, token: &str) -> Step1<Kind> {
        let [_, back] = fields(token, "T.-STEPS")?;
        let batch = match *self.back(back)? {
            (Kind::Batch { index, endless: true }, _) => index,
            (_, line) => return Err(format!("ends line {line}, which is not an endless batch (`*`)")),
        };
        self.builder.push(Step::Terminate { batch })?;
        Ok(Kind::Other)
    }

    /// The step that `-N` names.
    fn back(&self, text: &str) -> Step1<&(Kind, u64)> {
        let steps = text
            .strip_prefix('-')
            .ok_or_else(|| format!("`{text}` is not a number of steps back (-1, -2 ..)"))?;
        let steps = positive(steps, "number of steps back")?;
        let target = (self.steps.len() as u64).checked_sub(steps);
        let target = target.ok_or_else(|| format!("-{steps} points before the first step"))?;
        Ok(&self.steps[target as usize])
    }

    fn wait(&mut self, batch: u32) -> Step1<()> {
        if let Some(hold) = self.held[batch as usize].iter().find(|hold| !self.holds[**hold as usize].1) {
            let line = self.holds[*hold as usize].0;
            return Err(format!(
                "waits for a batch that the fence of line {line} holds back, not yet signalled (`a`)"
            ));
        }
        self.builder.push(Step::Wait { batch })
    }

    fn batch(&mut self, token: &str, line: u64) -> Step1<Kind> {
        let [context, name, duration, dependencies, wait] =
            fields(token, "context.engine.duration_us.dependencies.wait")?;
        let context = number::<u32>(context, "context")?;
        let engine = engine(name)?;
        let duration_us = self.duration(duration)?;
        let (uses, after) = self.dependencies(dependencies)?;
        let wait = match wait {
            "0" => false,
            "1" => true,
            other => return Err(format!("`{other}` is neither 0 nor 1 (whether to wait for the batch)")),
        };
        let index = self.builder.next_batch();
        let batch = Batch { index, context, engine, uses, after, duration_us, line };
        self.note_holds(&batch);
        self.builder.push(Step::Batch(batch))?;
        if wait {
            self.wait(index)?;
        }
        Ok(Kind::Batch { index, endless: duration_us.is_none() })
    }

    fn duration(&mut self, text: &str) -> Step1<Option<u64>> {
        if text == "*" {
            return Ok(None);
        }
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let low = positive(low, "duration in microseconds")?;
        let high = positive(high, "duration in microseconds")?;
        if low > high {
            return Err(format!("the duration `{text}` ends before it begins"));
        }
        Ok(Some(self.random.within(&(low..=high))))
    }

    fn dependencies(&mut self, text: &str) -> Step1<(Vec<Use>, Vec<After>)> {
        let (mut uses, mut after) = (Vec::new(), Vec::new());
        if text == "0" {
            return Ok((uses, after));
        }
        for one in text.split('/') {
            match one.as_bytes().first() {
                Some(b'-') => after.push(self.batch_back(one)?),
                Some(b'f') => after.push(self.fence_back(&one[1..])?),
                Some(b's') => drop(self.batch_back(&one[1..])?),
                Some(b'r') => self.objects(&one[1..], Access::Read, &mut uses)?,
                Some(b'w') => self.objects(&one[1..], Access::Write, &mut uses)?,
                _ => {
                    return Err(format!(
                        "`{one}` is not a dependency (0, -N, f-N, s-N, rSET-OBJECT, wSET-OBJECT)"
                    ));
                }
            }
        }
        Ok((merged_uses(uses), after))
    }

    fn batch_back(&self, text: &str) -> Step1<After> {
        match *self.back(text)? {
            (Kind::Batch { index, .. }, _) => Ok(After::Batch(index)),
            (_, line) => Err(format!("`{text}` depends on line {line}, which is not a batch")),
        }
    }

    fn fence_back(&self, text: &str) -> Step1<After> {
        match *self.back(text)? {
            (Kind::Batch { index, .. }, _) => Ok(After::Batch(index)),
            (Kind::Fence { hold }, _) => Ok(After::Hold(hold)),
            (Kind::Other, line) => {
                Err(format!("`f{text}` depends on line {line}, neither a batch nor a fence"))
            }
        }
    }

    fn objects(&mut self, text: &str, access: Access, uses: &mut Vec<Use>) -> Step1<()> {
        let (set, objects) = text.split_once('-').ok_or_else(|| format!("`{text}` is not SET-OBJECT"))?;
        let id = number::<u32>(set, "working set")?;
        let (first, last) = objects.split_once('-').unwrap_or((objects, objects));
        let first = number::<u32>(first, "object")?;
        let last = number::<u32>(last, "object")?;
        let set = self.sets.get(&id).ok_or_else(|| format!("working set {id} is not declared"))?;
        if first > last {
            return Err(format!("the range {first}-{last} of working set {id} ends before it begins"));
        }
        if last >= set.count {
            return Err(format!(
                "object {last} of working set {id}, which has {} (0 to {})",
                set.count,
                set.count - 1
            ));
        }
        self.references += (last - first) as usize + 1;
        if self.references > MAX_REFERENCES {
            return Err(format!("the batches of this file refer to more than {MAX_REFERENCES} buffers"));
        }
        uses.extend((first..=last).map(|object| Use { bo: BoId(set.first.0 + object), access }));
        Ok(())
    }

    /// Works out which unsignalled fences hold the batch back, through its dependencies, its engine and its buffers.
    fn note_holds(&mut self, batch: &Batch) {
        let engine = (batch.context, batch.engine.clone());
        let mut held = self.held_by_engine.get(&engine).cloned().unwrap_or_default();
        for after in &batch.after {
            match *after {
                After::Hold(hold) => held.push(hold),
                After::Batch(index) => held.extend(&self.held[index as usize]),
            }
        }
        for one in &batch.uses {
            if let Some(holders) = self.held_by_bo.get(&one.bo) {
                held.extend(&holders.writers);
                if one.access == Access::Write {
                    held.extend(&holders.readers);
                }
            }
        }
        held.retain(|hold| !self.holds[*hold as usize].1);
        held.sort_unstable();
        held.dedup();
        for one in batch.uses.iter().filter(|_| !held.is_empty()) {
            let holders = self.held_by_bo.entry(one.bo).or_default();
            let side = if one.access == Access::Write { &mut holders.writers } else { &mut holders.readers };
            side.extend(&held);
            side.sort_unstable();
            side.dedup();
        }
        self.held_by_engine.insert(engine, held.clone());
        self.held.push(held);
    }
}

/// Splits a step into exactly `N` fields.
fn fields<'a, const N: usize>(token: &'a str, form: &str) -> Step1<[&'a str; N]> {
    let parts: Vec<&str> = token.split('.').map(str::trim).collect();
    let count = parts.len();
    parts.try_into().map_err(|_| format!("`{}` has {count} fields; the form is {form}", shortened(token)))
}

/// As much of a step as fits into a message.
fn shortened(token: &str) -> String {
    match token.char_indices().nth(60) {
        Some((end, _)) => format!("{}..", &token[..end]),
        None => token.to_string(),
    }
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Step1<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.ok_or_else(|| format!("`{}` is not a {what}", shortened(text)))
}

fn positive(text: &str, what: &str) -> Step1<u64> {
    match number(text, what)? {
        0 => Err(format!("a {what} of 0")),
        value => Ok(value),
    }
}

fn signed(text: &str, what: &str) -> Step1<i64> {
    text.parse().map_err(|_| format!("`{}` is not a {what}", shortened(text)))
}

/// `4096`, `10n8m`, `4n4k-1m`: how many buffers, and how large each may be.
fn size_group(group: &str) -> Step1<(u32, RangeInclusive<u64>)> {
    let (count, sizes) = match group.split_once('n') {
        Some((count, sizes)) => (number::<u32>(count, "number of buffers")?, sizes),
        None => (1, group),
    };
    if count == 0 {
        return Err(format!("`{group}` asks for 0 buffers"));
    }
    let (low, high) = sizes.split_once('-').unwrap_or((sizes, sizes));
    let (low, high) = (size(low)?, size(high)?);
    if low > high {
        return Err(format!("the size range `{sizes}` ends before it begins"));
    }
    Ok((count, low..=high))
}

fn size(text: &str) -> Step1<u64> {
    let shift = match text.bytes().last() {
        Some(b'k' | b'K') => 10,
        Some(b'm' | b'M') => 20,
        Some(b'g' | b'G') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let value = positive(digits, "size")?;
    match value.checked_mul(1 << shift) {
        Some(bytes) if bytes <= MAX_BO_BYTES => Ok(bytes),
        _ => Err(format!("the size `{}` is larger than 128 TiB", shortened(text))),
    }
}

/// `RCS`, `VCS2`, `VCS1-0`, `DEFAULT`: the class, then perhaps the instance from 1, then perhaps `-` and the tile.
fn engine(name: &str) -> Step1<String> {
    let upper = name.to_ascii_uppercase();
    let unknown =
        || format!("`{}` is not an engine (DEFAULT, RCS, BCS, VCS, VECS, CCS; VCS1 ..)", shortened(name));
    if upper == "DEFAULT" {
        return Ok(upper);
    }
    let class = ["VECS", "RCS", "BCS", "VCS", "CCS"].into_iter().find(|class| upper.starts_with(class));
    let rest = class.map(|class| &upper[class.len()..]).ok_or_else(unknown)?;
    let (instance, tile) = rest.split_once('-').unwrap_or((rest, "0"));
    let instance_is_good =
        instance.is_empty() || positive(instance, "engine instance").is_ok_and(|n| n < 65534);
    if instance_is_good && number::<u16>(tile, "tile").is_ok() { Ok(upper) } else { Err(unknown()) }
}

fn engines(list: &str) -> Step1<()> {
    list.split('|').try_for_each(|name| engine(name).map(drop))
}

/// Checks the steps that do not matter to memory.
fn setting(token: &str) -> Step1<()> {
    let context = |text| positive(text, "context").map(drop);
    match &token[..1] {
        "t" | "q" => {
            let [_, depth] = fields(token, "t.BATCHES or q.DEPTH")?;
            number::<u32>(depth, "number of batches").map(drop)
        }
        "P" | "S" => {
            let [_, id, value] = fields(token, "P.CONTEXT.PRIORITY or S.CONTEXT.SLICES")?;
            signed(value, "number").and_then(|_| context(id))
        }
        "X" => {
            let [_, id, period] = fields(token, "X.CONTEXT.MICROSECONDS")?;
            number::<u32>(period, "preemption period").and_then(|_| context(id))
        }
        "M" => {
            let [_, id, list] = fields(token, "M.CONTEXT.ENGINE|ENGINE..")?;
            engines(list).and_then(|_| context(id))
        }
        "b" => {
            let [_, id, list, leader] = fields(token, "b.CONTEXT.ENGINE|ENGINE...ENGINE")?;
            engines(list).and_then(|_| engine(leader)).and_then(|_| context(id))
        }
        "v" => {
            let [_, vm, id] = fields(token, "v.VM.CONTEXT")?;
            positive(vm, "address space").and_then(|_| context(id))
        }
        _ => {
            let [_, id] = fields(token, "B.CONTEXT or V.VM")?;
            context(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        parse("t.wsim", text, 1).expect_err("must be refused").to_string()
    }

    fn batches(trace: &Trace) -> Vec<&Batch> {
        let batch = |step: &'_ Step| matches!(step, Step::Batch(_));
        let steps = trace.steps.iter().filter(|step| batch(step));
        steps.map(|step| if let Step::Batch(batch) = step { batch } else { unreachable!() }).collect()
    }

    #[test]
    fn dependencies_count_steps_of_every_kind() {
        let trace = parse("t.wsim", "1.RCS.500.0.0\nP.2.1\n2.BCS.1000.-2.1\n", 1).unwrap();
        assert_eq!(batches(&trace)[1].after, [After::Batch(0)]);
        assert!(trace.steps.contains(&Step::Wait { batch: 1 }));
        assert_eq!(trace.span_us, 1500);
    }

    #[test]
    fn a_working_set_may_be_declared_after_its_first_use_and_a_write_counts_more_than_a_read() {
        let trace = parse("t.wsim", "1.RCS.500.r1-0-2/w1-1/r1-1.0\nw.1.2n8k/3m", 1).unwrap();
        let uses = &batches(&trace)[0].uses;
        assert_eq!(uses.iter().map(|one| one.bo.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(uses.iter().filter(|one| one.access == Access::Write).count(), 1);
        assert_eq!(trace.largest_batch_bytes, 16384 + 3 * 1024 * 1024);
        assert_eq!(trace.peak_live_bytes, trace.largest_batch_bytes);
    }

    #[test]
    fn sizes_given_as_a_range_follow_the_seed() {
        let sizes = |seed| parse("t.wsim", "w.4.40n4k-1m", seed).unwrap().peak_live_bytes;
        assert_eq!(sizes(7), sizes(7));
        assert_ne!(sizes(7), sizes(8));
        assert!((40 * 4096..=40 << 20).contains(&sizes(9)));
    }

    #[test]
    fn a_fence_of_the_client_holds_batches_until_it_is_signalled() {
        let text = "1.RCS.500.0.0\nf\n2.VCS1.3000.f-1.0\n1.RCS.10.0.1\na.-3\ns.-3";
        let trace = parse("t.wsim", text, 1).unwrap();
        assert_eq!(batches(&trace)[1].after, [After::Hold(0)]);
        assert!(reason("f\n1.RCS.1.f-1.0\ns.-1\na.-3").contains("fence of line 1"));
        assert!(reason("w.1.4k\nf\n1.RCS.1.f-1/w1-0.0\n2.BCS.1.r1-0.1\na.-3").contains("t.wsim:4"));
    }

    #[test]
    fn a_fence_that_is_never_signalled_is_signalled_at_the_end() {
        let trace = parse("t.wsim", "f\n1.RCS.1.f-1.0", 1).unwrap();
        assert_eq!(trace.steps.last(), Some(&Step::Release { hold: 0 }));
    }

    #[test]
    fn every_broken_step_is_named_with_its_line() {
        for (text, expected) in [
            ("", "no steps"),
            ("1.RCS.500.0", "t.wsim:1: `1.RCS.500.0` has 4 fields"),
            ("\n1.XCS.500.0.0", "t.wsim:2: `XCS` is not an engine"),
            ("1.RCS.0.0.0", "duration in microseconds of 0"),
            ("1.RCS.500-100.0.0", "ends before it begins"),
            ("1.RCS.5.-1.0", "before the first step"),
            ("1.RCS.5.-0.0", "steps back of 0"),
            ("1.RCS.5.0.2", "neither 0 nor 1"),
            ("P.1.1\n1.RCS.5.-1.0", "not a batch"),
            ("1.RCS.5.r1-0.0", "working set 1 is not declared"),
            ("w.1.2n4k\n1.RCS.5.r1-2.0", "object 2 of working set 1"),
            ("w.1.2n4k\n1.RCS.5.r1-1-0.0", "ends before it begins"),
            ("w.1.4k\nw.1.4k", "t.wsim:2: working set 1 was already declared on line 1"),
            ("w.1.0", "size of 0"),
            ("w.1.0n4k", "0 buffers"),
            ("w.1.9223372036854775808", "larger than 128 TiB"),
            ("w.1.17179869184g", "larger than 128 TiB"),
            ("w.1.99999999999999999999", "is not a size"),
            ("w.1.4294967295n4096", "more than 4000000 buffers"),
            ("w.1.100n100000g", "more than 128 TiB"),
            ("w.1", "has 2 fields"),
            ("d.0", "of 0"),
            ("s.1", "not a number of steps back"),
            ("T.-1", "before the first step"),
            ("1.RCS.5.0.0\nT.-1", "not an endless batch"),
            ("a.-1", "before the first step"),
            ("zebra", "begins no step"),
        ] {
            let reason = reason(text);
            assert!(reason.contains(expected), "{text:?} gave {reason:?}, not {expected:?}");
        }
    }
}
