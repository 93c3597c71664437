//! `devpagemap import`: a dma-buf from another process, every byte of it compared, and answered.
//!
//! ```text
//!   header ok? ─► descriptor a dma-buf, of that size? ─► [a kernel driver takes it] ─► poll: the bytes are there
//!      ─► a buffer of ours, whose pages are the exporter's ─► compare ─► write the answer ─► [hold, compare again] ─► tell
//! ```

mod look;

use crate::error::{Error, Result};
use crate::export::in_words;
use crate::handover::messages::{Comparison, bytes_of};
use crate::handover::socket::NoMessage;
use crate::handover::{Answer, Interrupt, Offer, Peer, Verdict, Woken};
use crate::report::units::{size, time};
use clap::{Parser, ValueEnum};
use devpagemap::{DmaBuf, ExportedBy, ImportInto, KernelImport};
use look::View;
use rustix::event::PollFlags;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an exporter may take to say something.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `devpagemap import`.
#[derive(Clone, Debug, Parser)]
#[command(after_long_help = AFTER_HELP)]
pub struct ImportOptions {
    /// Where `devpagemap export` serves.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Have a kernel driver import it, too.
    #[arg(long, value_enum)]
    pub into: Option<IntoName>,
    /// Keep the buffer for so long before answering, and compare it again then.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub hold: u64,
}

const AFTER_HELP: &str = "\
A buffer that is held stays as it is when its exporter ends or is killed: its pages belong to whoever has the descriptor.

Exit status: 0 every byte was right, there and back; 1 some were not, or did not come; 2 bad usage, nobody exports there, or what came is not \
what the header says.";

/// A kernel driver, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IntoName {
    /// vgem, which takes nearly everybody's.
    Vgem,
    /// A virtual machine's GPU, which takes its own.
    VirtioGpu,
}

impl IntoName {
    fn driver(self) -> ImportInto {
        match self {
            IntoName::Vgem => ImportInto::Vgem,
            IntoName::VirtioGpu => ImportInto::VirtioGpu,
        }
    }
}

/// Imports, compares and answers; whether every byte was right.
///
/// # Errors
/// What is wrong with the socket, the header or the descriptor, and what a kernel driver does not take.
pub fn run(options: &ImportOptions, say: &mut dyn FnMut(&str)) -> Result<bool> {
    let interrupt = Interrupt::on_ctrl_c()?;
    let peer = Peer::connect(&options.socket)?;
    let Some((offer, dma_buf)) = take(&peer, &interrupt, options)? else { return Ok(false) };
    let how = if offer.writable { "to read and write" } else { "to read" };
    say(&format!("  {} ({}) via {}, {how}", size(offer.size_bytes), offer.name, offer.exporter));
    let _taken = options.into.map(|into| into_driver(into.driver(), &offer, &dma_buf, say)).transpose()?;
    if !arrived(&dma_buf, &interrupt, say)? {
        return Ok(false);
    }
    let view = View::of(dma_buf)?;
    let failed = |source| Error::Device { source };
    let read = view.compare(bytes_of(offer.seed)).map_err(failed)?;
    say(&format!("  read {}: {}", size(read.bytes), in_words(&read)));
    let wrote = offer.writable && read.wrong.is_none();
    if wrote {
        view.fill(bytes_of(offer.answer_seed)).map_err(failed)?;
    }
    let here = bytes_of(if wrote { offer.answer_seed } else { offer.seed });
    let held = match options.hold {
        0 => true,
        seconds => {
            say(&format!("  holding the buffer for {seconds} s"));
            hold(&peer, &interrupt, Duration::from_secs(seconds), say)?;
            let held = view.compare(here).map_err(failed)?;
            say(&format!("  after holding it: {}", in_words(&held)));
            held.wrong.is_none()
        }
    };
    let judged = answer(&peer, &interrupt, Answer { read, wrote }, options.hold > 0, say)?;
    Ok(read.wrong.is_none() && held && judged)
}

/// The header and the dma-buf that came with it, checked against each other; `None` at Ctrl-C.
fn take(peer: &Peer, interrupt: &Interrupt, options: &ImportOptions) -> Result<Option<(Offer, DmaBuf)>> {
    let wrong = |reason: String| Error::input(options.socket.display().to_string(), None, reason);
    let incoming = match peer.receive::<Offer>(interrupt, Some(PATIENCE)) {
        Ok(incoming) => incoming,
        Err(NoMessage::Interrupted) => return Ok(None),
        Err(NoMessage::TimedOut) => {
            return Err(wrong(format!(
                "the exporter said nothing for {} s; it may serve another importer",
                PATIENCE.as_secs()
            )));
        }
        Err(NoMessage::Refused(refusal)) => return Err(wrong(refusal.to_string())),
        Err(NoMessage::Failed(error)) => return Err(error),
    };
    let (offer, fd) = incoming.only_descriptor().map_err(|refusal| wrong(refusal.to_string()))?;
    let dma_buf = DmaBuf::new(fd).map_err(|error| wrong(format!("what came with the header: {error}")))?;
    offer.agrees_with(&dma_buf).map_err(|refusal| wrong(refusal.to_string()))?;
    Ok(Some((offer, dma_buf)))
}

/// Has a kernel driver take it, after it has been said whether it does.
fn into_driver(
    into: ImportInto,
    offer: &Offer,
    dma_buf: &DmaBuf,
    say: &mut dyn FnMut(&str),
) -> Result<KernelImport> {
    let refused =
        |source: devpagemap::Error| Error::usage(format!("--into {}", into.driver()), source.to_string());
    let info = dma_buf.info().map_err(refused)?;
    let by = match (ExportedBy::of(&info), offer.exporter.as_str()) {
        // The kernel calls these alike; the exporter knows better.
        (ExportedBy::SomeDrm, "vgem") => ExportedBy::Vgem,
        (by, _) => by,
    };
    let taken = into.import(dma_buf, by).map_err(refused)?;
    let back = taken.export().map_err(refused)?;
    let same = if back.inode() == dma_buf.inode() { "the very dma-buf" } else { "ANOTHER dma-buf" };
    say(&format!("  {} took it as handle {}, and gives {same} back", taken.driver(), taken.handle()));
    Ok(taken)
}

/// Waits until a reader need not wait: the exporter's writes, and its move, are done.
fn arrived(dma_buf: &DmaBuf, interrupt: &Interrupt, say: &mut dyn FnMut(&str)) -> Result<bool> {
    let start = Instant::now();
    match interrupt.wait_for(dma_buf.as_fd(), PollFlags::IN, Some(PATIENCE))? {
        Woken::Ready => {
            say(&format!("  the bytes are there after {}", time(start.elapsed().as_nanos() as u64)));
            Ok(true)
        }
        Woken::Interrupted => Ok(false),
        Woken::TimedOut => {
            say(&format!("  the bytes did not come in {} s", PATIENCE.as_secs()));
            Ok(false)
        }
    }
}

/// Lets time pass, and says when the exporter goes.
fn hold(peer: &Peer, interrupt: &Interrupt, long: Duration, say: &mut dyn FnMut(&str)) -> Result<()> {
    let end = Instant::now() + long;
    // Nothing is due from the exporter, so anything to be read is its end.
    if interrupt.wait_for(peer.as_fd(), PollFlags::IN, Some(long))? == Woken::Ready {
        say("  the exporter is gone; the buffer stays");
        interrupt.pause(end.saturating_duration_since(Instant::now()))?;
    }
    Ok(())
}

/// Tells the exporter, and hears what it found; whether that was right. An exporter that went while the buffer was held cannot be told.
fn answer(
    peer: &Peer,
    interrupt: &Interrupt,
    answer: Answer,
    may_be_gone: bool,
    say: &mut dyn FnMut(&str),
) -> Result<bool> {
    let left = |say: &mut dyn FnMut(&str)| {
        say("  the exporter left without a verdict");
        may_be_gone
    };
    if !peer.send(&answer, None)? {
        return Ok(left(say));
    }
    let found: Comparison = match peer.receive::<Verdict>(interrupt, Some(PATIENCE)) {
        Ok(incoming) => incoming.message.0,
        Err(NoMessage::Refused(crate::handover::Refusal::Left { .. })) => return Ok(left(say)),
        Err(NoMessage::Refused(refusal)) => {
            say(&format!("  {refusal}"));
            return Ok(false);
        }
        Err(NoMessage::TimedOut | NoMessage::Interrupted) => {
            say("  there was no verdict");
            return Ok(false);
        }
        Err(NoMessage::Failed(error)) => return Err(error),
    };
    let what = if answer.wrote { "wrote an answer" } else { "wrote nothing" };
    say(&format!("  {what}; the exporter finds {}: {}", size(found.bytes), in_words(&found)));
    Ok(found.wrong.is_none())
}
