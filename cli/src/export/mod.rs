//! `devpagemap export`: a buffer of the software GPU as a dma-buf, served to one importer after the other.
//!
//! ```text
//!   job on the GPU writes VRAM ─► export: a queued move brings the bytes to pages that the kernel shares
//!                                    │
//!   for each importer:  offer + fd ─►│─► answer ─► a job compares what the importer wrote ─► verdict
//!   and the next one:   job rewrites the bytes, where they are now
//! ```
//!
//! Nothing here waits for a job or a move before the descriptor goes out: whoever polls it is told when the bytes are there.

mod pages;
mod serve;

use crate::error::{Error, Result};
use crate::handover::{Interrupt, Listener};
use crate::report::units::size;
use clap::{Parser, ValueEnum};
use devpagemap::Via;
use pages::Pages;
pub use serve::in_words;
use serve::{Served, Server};
use std::path::PathBuf;

/// Whole pages of this size.
const PAGE_BYTES: u64 = 4096;

/// Options of `devpagemap export`.
#[derive(Clone, Debug, Parser)]
#[command(after_long_help = AFTER_HELP)]
pub struct ExportOptions {
    /// Who makes the dma-buf.
    #[arg(long, value_enum, default_value_t = ViaName::Auto)]
    pub via: ViaName,
    /// How large the buffer is, in whole pages.
    #[arg(long, value_name = "SIZE", value_parser = crate::options::parse_size)]
    pub size: u64,
    /// Where importers connect: a path for a Unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Importers may only read.
    #[arg(long)]
    pub read_only: bool,
    /// Serve one importer, and end.
    #[arg(long)]
    pub once: bool,
    /// Seeds the buffer's bytes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

const AFTER_HELP: &str = "\
In another shell: devpagemap import --socket PATH. Importers are served one after the other, until Ctrl-C. `devpagemap doctor` says which ways \
to make a dma-buf this machine has.

Exit status: 0 done; 1 an importer read or wrote wrong bytes, or left; 2 bad usage, or nothing here exports such a buffer.";

/// Who makes the dma-buf, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ViaName {
    /// The first of the others that this machine has.
    Auto,
    /// A dumb buffer of vgem.
    Vgem,
    /// A buffer of a virtual machine's GPU.
    VirtioGpu,
    /// The very pages that the buffer has in system memory.
    Udmabuf,
    /// The kernel's heap of ordinary memory.
    DmaHeap,
    /// An image of libgbm.
    Gbm,
}

impl ViaName {
    /// # Errors
    /// When this build has no libgbm, and for images that cannot be.
    fn via(self, _size_bytes: u64) -> Result<Via> {
        match self {
            ViaName::Auto => Ok(Via::Auto),
            ViaName::Vgem => Ok(Via::Vgem),
            ViaName::VirtioGpu => Ok(Via::VirtioGpu),
            ViaName::Udmabuf => Ok(Via::Udmabuf),
            ViaName::DmaHeap => Ok(Via::DmaHeap),
            #[cfg(feature = "gbm")]
            ViaName::Gbm => Ok(Via::Gbm(image(_size_bytes)?)),
            #[cfg(not(feature = "gbm"))]
            ViaName::Gbm => Err(Error::Unsupported {
                what: "--via gbm".into(),
                instead: "build with --features gbm, which links libgbm".into(),
            }),
        }
    }
}

/// An image of so many bytes, line after line: a page is a line.
#[cfg(feature = "gbm")]
fn image(size_bytes: u64) -> Result<devpagemap::Image> {
    let height = u32::try_from(size_bytes / PAGE_BYTES)
        .ok()
        .filter(|lines| *lines <= 16_384)
        .ok_or_else(|| Error::usage("--size", "an image has at most 16384 lines of 4096 bytes"))?;
    Ok(devpagemap::Image { width: 1024, height, format: *b"XR24", modifiers: Vec::new(), driver: None })
}

impl ExportOptions {
    fn check(&self) -> Result<()> {
        match self.size {
            0 => Err(Error::usage("--size", "a buffer of 0 bytes holds nothing")),
            bytes if bytes % PAGE_BYTES != 0 => {
                Err(Error::usage("--size", format!("{bytes} bytes are not whole pages of 4096 bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Exports and serves; whether every importer found and left the right bytes.
///
/// # Errors
/// Bad usage, a socket that cannot be made, and [`Error::NotExportable`] with every reason.
pub fn run(options: &ExportOptions, say: &mut dyn FnMut(&str)) -> Result<bool> {
    options.check()?;
    let via = options.via.via(options.size)?;
    let interrupt = Interrupt::on_ctrl_c()?;
    let listener = Listener::bind(&options.socket)?;
    let pages = Pages::new(options.size)?;
    let mut server = Server::new(pages, via, options)?;
    for line in server.introduction() {
        say(&format!("  {line}"));
    }
    let path = options.socket.display();
    say(&format!("  serving at {path}; in another shell: devpagemap import --socket {path}"));
    let mut results = Vec::new();
    while let Some(peer) = listener.accept(&interrupt)? {
        let served = server.serve(&peer, &interrupt)?;
        say(&format!("  importer {}{}: {}", results.len() + 1, process(&peer), served));
        results.push(served.is_right());
        if options.once || matches!(served, Served::Interrupted) {
            break;
        }
    }
    let wrong = results.iter().filter(|right| !**right).count();
    say(&format!(
        "  {} served with {}, {wrong} of them not right",
        importers(results.len()),
        size(options.size)
    ));
    Ok(wrong == 0)
}

fn process(peer: &crate::handover::Peer) -> String {
    peer.process().map(|process| format!(" (process {process})")).unwrap_or_default()
}

fn importers(count: usize) -> String {
    crate::report::units::plural(count as u64, "importer")
}
