//! One importer after the other.

use super::ExportOptions;
use super::pages::Pages;
use crate::doctor::remedy;
use crate::error::{Error, Result};
use crate::handover::messages::{Comparison, bytes_of};
use crate::handover::socket::NoMessage;
use crate::handover::{Answer, Interrupt, Offer, Peer, Refusal, Verdict};
use crate::report::units::{size, time};
use devpagemap::{Export, ExportRequest, Via};
use std::fmt;
use std::os::fd::AsFd;
use std::time::Instant;

/// The buffer, and what importers are told of it.
pub struct Server {
    pages: Pages,
    export: Export,
    seed: u64,
    /// How many importers there were.
    round: u64,
}

/// The seed of a round's bytes.
fn offered(seed: u64, round: u64) -> u64 {
    seed.wrapping_add(round)
}

/// What came of an importer.
#[derive(Debug)]
pub enum Served {
    /// It answered.
    Answered {
        /// What it read.
        read: Comparison,
        /// What was found of what it wrote, or of what it should not have written.
        left: Comparison,
        /// Whether it wrote.
        wrote: bool,
        /// From the offer to the answer.
        took_ns: u64,
    },
    /// It left, or its answer made no sense.
    Refused(Refusal),
    /// A job of ours failed.
    Failed(devpagemap::Error),
    /// Ctrl-C.
    Interrupted,
}

impl Served {
    /// Whether all bytes were right. An importer that Ctrl-C has interrupted has found nothing wrong.
    pub fn is_right(&self) -> bool {
        match self {
            Served::Answered { read, left, .. } => read.wrong.is_none() && left.wrong.is_none(),
            Served::Interrupted => true,
            Served::Refused(_) | Served::Failed(_) => false,
        }
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Served::Answered { read, left, wrote, took_ns } => {
                write!(f, "read {}, {}; ", size(read.bytes), in_words(read))?;
                let did = if *wrote { "wrote its answer" } else { "wrote nothing" };
                write!(f, "{did}, {}; {}", in_words(left), time(*took_ns))
            }
            Served::Refused(refusal) => refusal.fmt(f),
            Served::Failed(error) => write!(f, "its bytes could not be looked at: {error}"),
            Served::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// What a comparison came to, as people read it.
pub fn in_words(comparison: &Comparison) -> String {
    match comparison.wrong {
        None => "every byte right".to_owned(),
        Some(wrong) => format!(
            "WRONG BYTES, the first at offset {}: {:#018x} instead of {:#018x}",
            wrong.offset_bytes, wrong.found, wrong.expected
        ),
    }
}

impl Server {
    /// Has a job write the first bytes to video memory, and exports the buffer while they are still on their way.
    ///
    /// # Errors
    /// [`Error::NotExportable`] with every reason; when the job cannot be queued.
    pub fn new(pages: Pages, via: Via, options: &ExportOptions) -> Result<Server> {
        let failed = |source| Error::Device { source };
        pages.fill(bytes_of(offered(options.seed, 0))).map_err(failed)?;
        let request = ExportRequest { via: via.clone(), read_only: options.read_only };
        let export = pages.buffer.export(request).map_err(|error| refused(&via, error))?;
        // An image may have lines that are longer than what is seen of them.
        if export.len_bytes() != options.size {
            let len_bytes = export.len_bytes();
            let reason = format!("what {via} makes for this size has {len_bytes} bytes; ask for those");
            return Err(Error::usage("--size", reason));
        }
        Ok(Server { pages, export, seed: options.seed, round: 0 })
    }

    /// What people are told before the first importer comes.
    pub fn introduction(&self) -> Vec<String> {
        let export = &self.export;
        let how = if export.is_read_only() { "to read" } else { "to read and write" };
        let size = size(export.len_bytes());
        let mut lines = vec![format!("exporting {size} as a dma-buf via {}, {how}", export.via())];
        lines.extend(export.reasons().iter().map(|passed_over| format!("  passed over {passed_over}")));
        lines.push(match export.fences() {
            Ok(source) => format!("importers wait for its jobs by fences of {source}"),
            Err(error) => {
                format!("importers cannot wait for its jobs, so it waits before it offers: {error}")
            }
        });
        lines
    }

    fn offered(&self) -> u64 {
        offered(self.seed, self.round)
    }

    /// Of the bytes that the importer shall write.
    fn answer_seed(&self) -> u64 {
        self.offered() ^ (1 << 63)
    }

    /// Offers the buffer, waits for the answer, and looks at what the importer has left.
    ///
    /// # Errors
    /// When the kernel fails us; what an importer does wrong is a result.
    pub fn serve(&mut self, peer: &Peer, interrupt: &Interrupt) -> Result<Served> {
        let start = Instant::now();
        if let Err(error) = self.refill() {
            return Ok(Served::Failed(error));
        }
        let export = &self.export;
        let offer = Offer {
            size_bytes: export.len_bytes(),
            seed: self.offered(),
            answer_seed: self.answer_seed(),
            writable: !export.is_read_only(),
            exporter: export.via().to_string(),
            name: self.pages.buffer.name().unwrap_or_default().to_owned(),
        };
        let served = match peer.send(&offer, Some(export.as_fd()))? {
            true => self.answered(peer, interrupt, start)?,
            false => Served::Refused(Refusal::Left { awaited: "header could be sent" }),
        };
        self.round += 1;
        Ok(served)
    }

    /// Queues new bytes for the next importer. It waits for them itself, unless nothing would tell it to.
    fn refill(&self) -> devpagemap::Result<()> {
        // Those of the first round were there before the buffer was exported.
        if self.round == 0 {
            return Ok(());
        }
        let filled = self.pages.fill(bytes_of(self.offered()))?;
        match self.export.fences() {
            Ok(_source) => Ok(()),
            Err(_nobody_is_told) => Ok(filled.wait()?),
        }
    }

    fn answered(&self, peer: &Peer, interrupt: &Interrupt, start: Instant) -> Result<Served> {
        // However long it holds the buffer: when it ends, its end of the socket is closed.
        let answer: Answer = match peer.receive(interrupt, None) {
            Ok(incoming) => incoming.message,
            Err(NoMessage::Refused(refusal)) => return Ok(Served::Refused(refusal)),
            Err(NoMessage::Interrupted | NoMessage::TimedOut) => return Ok(Served::Interrupted),
            Err(NoMessage::Failed(error)) => return Err(error),
        };
        let took_ns = start.elapsed().as_nanos() as u64;
        let expected = bytes_of(if answer.wrote { self.answer_seed() } else { self.offered() });
        let left = match self.pages.compare(expected) {
            Ok(left) => left,
            Err(error) => return Ok(Served::Failed(error)),
        };
        // It may have had enough; what it left is right or wrong all the same.
        let _still_there = peer.send(&Verdict(left), None)?;
        Ok(Served::Answered { read: answer.read, left, wrote: answer.wrote, took_ns })
    }
}

/// Every reason, and what to do about it.
fn refused(via: &Via, error: devpagemap::Error) -> Error {
    match error {
        devpagemap::Error::NotExportable { reasons, .. } => {
            let reason = |passed: &devpagemap::PassedOver| {
                let remedy = remedy::of_exporter(&passed.via, &passed.why);
                (passed.to_string(), remedy)
            };
            Error::NotExportable { via: via.to_string(), reasons: reasons.iter().map(reason).collect() }
        }
        devpagemap::Error::NoRights { path, .. } => {
            let remedy = remedy::of_rights(std::path::Path::new(&*path));
            let reasons = vec![(format!("{via}: no rights to {path}"), Some(remedy))];
            Error::NotExportable { via: via.to_string(), reasons }
        }
        source => Error::Device { source },
    }
}
