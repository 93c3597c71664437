//! A contest: several ways to do one thing, measured against each other.
//!
//! Figures of a shared machine move by a factor of two from one second to the next, and with them whatever was
//! measured in a second of its own. What is wanted here are *ratios*, so the ways take turns:
//!
//! ```text
//!   round 1:  ours  floor  peer A  peer B  ours      each a batch of about half a millisecond
//!   round 2:  ours  peer B  peer A  floor  ours      backwards
//!   round 3:  floor  peer A  peer B  ours  ours      rotated by one
//!   ...
//! ```
//!
//! A disturbance that lasts longer than a round hits all of them, and leaves their ratio alone; a shorter one spoils one
//! round's ratio, which the median over the rounds passes over. Ours runs twice a round: the ratio of the two is
//! the same code against itself, so what it strays from 1 is noise, and printed. `--blocks` runs all rounds of one
//! way before those of the next, as a harness does that knows nothing of ratios, to see what the turns are good for.

use std::time::{Duration, Instant};

use crate::report::{ns, ratio};
use crate::session::{Row, Session};
use crate::spread::Spread;

/// How long one batch should take.
const BATCH: Duration = Duration::from_micros(500);

/// What a way of doing it is in the contest for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// What the goal is about.
    Ours,
    /// Ours too, used in another way; shown only.
    Variant,
    /// What it would cost at least.
    Floor,
    /// What ours is to be ahead of.
    Peer,
    /// Somebody who has it easier; shown only.
    Shown,
}

/// What one batch came to.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Nanoseconds an operation.
    pub ns: f64,
    /// What else was seen, by name.
    pub notes: Vec<(&'static str, f64)>,
}

impl Sample {
    /// A sample about which there is nothing more to say.
    pub fn of(ns: f64) -> Sample {
        Sample { ns, notes: Vec::new() }
    }
}

enum Batch<'a> {
    /// Does as many operations as it is told; the contest finds out how many make a batch.
    Counted(Box<dyn FnMut(u64) + 'a>),
    /// Measures for itself.
    Measured(Box<dyn FnMut() -> Sample + 'a>),
}

struct Way<'a> {
    name: String,
    role: Role,
    batch: Batch<'a>,
    count: u64, // operations a batch
    samples: Vec<Sample>,
}

impl Way<'_> {
    /// Warms up, and finds how many operations make a batch.
    fn calibrate(&mut self) {
        let Batch::Counted(batch) = &mut self.batch else { return };
        loop {
            let begin = Instant::now();
            batch(self.count);
            let took = begin.elapsed();
            if took >= BATCH / 4 {
                let scale = BATCH.as_secs_f64() / took.as_secs_f64();
                self.count = ((self.count as f64 * scale) as u64).max(1);
                return;
            }
            self.count *= 2;
        }
    }

    fn run(&mut self) {
        let sample = match &mut self.batch {
            Batch::Measured(batch) => batch(),
            Batch::Counted(batch) => {
                let begin = Instant::now();
                batch(self.count);
                Sample::of(begin.elapsed().as_nanos() as f64 / self.count as f64)
            }
        };
        self.samples.push(sample);
    }

    fn ns(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| sample.ns))
    }

    /// The medians of what else was seen.
    fn notes(&self) -> String {
        let first = self.samples.first().map(|sample| sample.notes.as_slice()).unwrap_or_default();
        let median = |(index, (name, _)): (usize, &(&str, f64))| {
            let values = self.samples.iter().map(|sample| sample.notes[index].1);
            format!("{name} {:.2}", Spread::of(values).median)
        };
        first.iter().enumerate().map(median).collect::<Vec<_>>().join(", ")
    }
}

/// What ours is to reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    of_floor: Option<f64>,
    ahead_of_peers: bool,
}

impl Goal {
    /// No goal: for information.
    pub const NONE: Goal = Goal { of_floor: None, ahead_of_peers: false };
    /// Ahead of every peer.
    pub const AHEAD: Goal = Goal { of_floor: None, ahead_of_peers: true };

    /// Within so many times the floor.
    pub const fn of_floor(times: f64) -> Goal {
        Goal { of_floor: Some(times), ahead_of_peers: false }
    }

    /// And ahead of every peer.
    pub const fn and_ahead(self) -> Goal {
        Goal { ahead_of_peers: true, ..self }
    }

    fn text(self) -> String {
        let floor = self.of_floor.map(|times| format!("{times:.2}x floor"));
        let ahead = self.ahead_of_peers.then(|| "ahead".to_owned());
        floor.into_iter().chain(ahead).collect::<Vec<_>>().join(", ")
    }

    /// Whether it is met, given the ratios of ours to the floor and to the strongest peer; nothing without a goal.
    fn is_met(self, floor: Option<f64>, peer: Option<f64>) -> Option<bool> {
        let near = self.of_floor.map(|times| floor.is_some_and(|floor| floor <= times));
        let ahead = self.ahead_of_peers.then(|| peer.is_some_and(|peer| peer < 1.0));
        match (near, ahead) {
            (None, None) => None,
            (near, ahead) => Some(near.unwrap_or(true) && ahead.unwrap_or(true)),
        }
    }
}

/// Several ways to do one thing.
pub struct Contest<'a> {
    name: String,
    goal: Goal,
    ways: Vec<Way<'a>>,
    most_rounds: usize,
}

impl<'a> Contest<'a> {
    /// A contest nobody takes part in yet.
    pub fn new(name: impl Into<String>, goal: Goal) -> Self {
        Contest { name: name.into(), goal, ways: Vec::new(), most_rounds: usize::MAX }
    }

    /// No more rounds than that, as each takes long.
    pub fn of_few_rounds(self, most_rounds: usize) -> Self {
        Contest { most_rounds, ..self }
    }

    fn add(&mut self, role: Role, name: &str, batch: Batch<'a>) {
        self.ways.push(Way { name: name.to_owned(), role, batch, count: 1, samples: Vec::new() });
    }

    fn add_operation(&mut self, role: Role, name: &str, mut operation: impl FnMut() + 'a) {
        let batch = move |count| (0..count).for_each(|_| operation());
        self.add(role, name, Batch::Counted(Box::new(batch)));
    }

    /// What the goal is about.
    pub fn ours(&mut self, operation: impl FnMut() + 'a) {
        self.add_operation(Role::Ours, "devpagemap", operation);
    }

    /// Ours, used in another way; shown only.
    pub fn variant(&mut self, name: &str, operation: impl FnMut() + 'a) {
        self.add_operation(Role::Variant, name, operation);
    }

    /// What it would cost at least.
    pub fn floor(&mut self, name: &str, operation: impl FnMut() + 'a) {
        self.add_operation(Role::Floor, name, operation);
    }

    /// What ours is to be ahead of.
    pub fn peer(&mut self, name: &str, operation: impl FnMut() + 'a) {
        self.add_operation(Role::Peer, name, operation);
    }

    /// Somebody who has it easier; shown only.
    pub fn shown(&mut self, name: &str, operation: impl FnMut() + 'a) {
        self.add_operation(Role::Shown, name, operation);
    }

    /// As [`ours`](Contest::ours), by a batch that measures for itself.
    pub fn ours_measured(&mut self, batch: impl FnMut() -> Sample + 'a) {
        self.add(Role::Ours, "devpagemap", Batch::Measured(Box::new(batch)));
    }

    /// As [`floor`](Contest::floor), by a batch that measures for itself.
    pub fn floor_measured(&mut self, name: &str, batch: impl FnMut() -> Sample + 'a) {
        self.add(Role::Floor, name, Batch::Measured(Box::new(batch)));
    }

    /// As [`peer`](Contest::peer), by a batch that measures for itself.
    pub fn peer_measured(&mut self, name: &str, batch: impl FnMut() -> Sample + 'a) {
        self.add(Role::Peer, name, Batch::Measured(Box::new(batch)));
    }

    /// As [`shown`](Contest::shown), by a batch that measures for itself.
    pub fn shown_measured(&mut self, name: &str, batch: impl FnMut() -> Sample + 'a) {
        self.add(Role::Shown, name, Batch::Measured(Box::new(batch)));
    }

    /// Holds the contest, unless the session's filter excludes it, and prints what came of it.
    pub fn hold(mut self, session: &mut Session) {
        if !session.wants(&self.name) {
            return;
        }
        let ours = self.ways.iter().position(|way| way.role == Role::Ours).expect("ours is in every contest");
        self.ways.iter_mut().for_each(Way::calibrate);
        let rounds = session.rounds().min(self.most_rounds);
        self.run_rounds(ours, rounds, session.in_blocks());
        let noise = self.split_second_runs(ours, session.in_blocks());
        self.print(ours, noise);
        session.file(self.row(ours));
    }

    fn run_rounds(&mut self, ours: usize, rounds: usize, in_blocks: bool) {
        let mut turns: Vec<usize> = (0..self.ways.len()).chain([ours]).collect();
        if in_blocks {
            turns.iter().for_each(|&way| (0..rounds).for_each(|_| self.ways[way].run()));
            return;
        }
        for round in 0..rounds {
            turns.iter().for_each(|&way| self.ways[way].run());
            turns.reverse();
            turns.rotate_left(round % 2);
        }
    }

    /// Ours ran twice as often as the others; what its second runs are to its first is noise.
    fn split_second_runs(&mut self, ours: usize, in_blocks: bool) -> Spread {
        let mut first = std::mem::take(&mut self.ways[ours].samples);
        let second = if in_blocks {
            first.split_off(first.len() / 2)
        } else {
            let pairs = first.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
            let (even, odd): (Vec<_>, Vec<_>) = pairs.unzip();
            first = even;
            odd
        };
        let noise = Spread::of(first.iter().zip(&second).map(|(first, second)| second.ns / first.ns));
        self.ways[ours].samples = first;
        noise
    }

    /// Ours divided by `way`, round by round.
    fn ratio(&self, ours: usize, way: &Way<'_>) -> Spread {
        let pairs = self.ways[ours].samples.iter().zip(&way.samples);
        Spread::of(pairs.map(|(ours, other)| ours.ns / other.ns))
    }

    fn print(&self, ours: usize, noise: Spread) {
        println!("\n{}", self.name);
        for (index, way) in self.ways.iter().enumerate() {
            let of = if index == ours {
                format!("against itself {}", noise.as_ratio())
            } else {
                format!("ours is {} of it", self.ratio(ours, way).as_ratio())
            };
            let line = format!("  {:<38} {:>10}  {of:<42} {}", way.name, ns(way.ns().median), way.notes());
            println!("{}", line.trim_end());
        }
    }

    fn strongest(&self, role: Role, ours: usize) -> Option<(&Way<'_>, f64)> {
        let ways = self.ways.iter().filter(|way| way.role == role);
        ways.map(|way| (way, self.ratio(ours, way).median)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn row(&self, ours: usize) -> Row {
        let (floor, peer) = (self.strongest(Role::Floor, ours), self.strongest(Role::Peer, ours));
        let met = self.goal.is_met(floor.map(|found| found.1), peer.map(|found| found.1));
        let goal = match met {
            None => String::from("-"),
            Some(true) => format!("{}: met", self.goal.text()),
            Some(false) => format!("{}: MISSED", self.goal.text()),
        };
        let time = |way: &Way<'_>| ns(way.ns().median);
        let cell = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        Row([
            self.name.clone(),
            time(&self.ways[ours]),
            cell(floor.map(|(way, _)| time(way))),
            cell(floor.map(|(_, of)| ratio(of))),
            cell(peer.map(|(way, _)| format!("{} {}", way.name, time(way)))),
            cell(peer.map(|(_, of)| ratio(of))),
            goal,
        ])
    }
}
