//! One importer after the other.

use super::ExportOptions;
use super::pages::Pages;
use crate::doctor::remedy;
use crate::error::{Error, Result};
use crate::handover::messages::{Comparison, bytes_of};
use crate::handover::socket::NoMessage;
use crate::handover::{Answer, Interrupt, Offer, Peer, Refusal, Verdict};
use crate::report::units::{size, time};
use devpagemap::{Export, Via};
use std::fmt;
use std::os::fd::AsFd;
use std::time::Instant;

/// The buffer, and what importers are told of it.
pub struct Server {
    pages: Pages,
    read_only: bool,
    size_bytes: u64,
    seed: u64,
    /// How many importers there were.
    round: u64,
    export: Option<Export>,
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
    /// Has a job write the first bytes to video memory.
    ///
    /// # Errors
    /// When the job cannot be queued.
    pub fn new(pages: Pages, options: &ExportOptions) -> Result<Server> {
        let (seed, size_bytes, read_only) = (options.seed, options.size, options.read_only);
        let server = Server { pages, read_only, size_bytes, seed, round: 0, export: None };
        server.pages.fill(bytes_of(server.offered())).map_err(|source| Error::Device { source })?;
        Ok(server)
    }

    /// Exports the buffer, whose bytes are still on their way.
    ///
    /// # Errors
    /// [`Error::NotExportable`] with every reason.
    pub fn export(&mut self, via: Via) -> Result<()> {
        let request = devpagemap::ExportRequest { via: via.clone(), read_only: self.read_only };
        let export = self.pages.buffer.export(request).map_err(|error| refused(&via, error))?;
        // An image may have lines that are longer than what is seen of them.
        if export.len_bytes() != self.size_bytes {
            let reason =
                format!("what {via} makes for this size has {} bytes; ask for those", export.len_bytes());
            return Err(Error::usage("--size", reason));
        }
        self.export = Some(export);
        Ok(())
    }

    /// What people are told before the first importer comes.
    pub fn introduction(&self) -> Vec<String> {
        let Some(export) = &self.export else { return Vec::new() };
        let how = if export.is_read_only() { "to read" } else { "to read and write" };
        let mut lines =
            vec![format!("exporting {} as a dma-buf via {}, {how}", size(self.size_bytes), export.via())];
        lines.extend(export.reasons().iter().map(|passed_over| format!("  passed over {passed_over}")));
        lines
    }

    /// The seed of this round's bytes, and below, of the answer to them.
    fn offered(&self) -> u64 {
        self.seed.wrapping_add(self.round << 1)
    }

    fn answer_seed(&self) -> u64 {
        self.offered() ^ (1 << 63)
    }

    /// Offers the buffer, waits for the answer, and looks at what the importer has left.
    ///
    /// # Errors
    /// When the kernel fails us; what an importer does wrong is a result.
    pub fn serve(&mut self, peer: &Peer, interrupt: &Interrupt) -> Result<Served> {
        let Some(export) = &self.export else { return Ok(Served::Interrupted) };
        let start = Instant::now();
        if self.round > 0
            && let Err(error) = self.pages.fill(bytes_of(self.offered()))
        {
            return Ok(Served::Failed(error));
        }
        let offer = Offer {
            size_bytes: export.len_bytes(),
            seed: self.offered(),
            answer_seed: self.answer_seed(),
            writable: !export.is_read_only(),
            exporter: export.via().to_string(),
            name: self.pages.buffer.name().unwrap_or_default().to_owned(),
        };
        let there = peer.send(&offer, Some(export.as_fd()))?;
        let served = match there {
            true => self.answered(peer, interrupt, start)?,
            false => Served::Refused(Refusal::Left { awaited: "header could be sent" }),
        };
        self.round += 1;
        Ok(served)
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
