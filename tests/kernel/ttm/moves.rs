//! TTM's moves, as the kernel's own tracing sees them: a probe on the driver's function that moves a buffer.
//!
//! `int move(struct ttm_buffer_object *bo, bool evict, ctx *, struct ttm_resource *new, struct ttm_place *hop)`: the first argument says
//! which buffer, and the fourth where to (`mem_type`, 16 bytes into `struct ttm_resource`). The kernel tries some moves in two hops; the last
//! word about a buffer is where it is.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::Inside;
use crate::setup::{guest, say_loudly};

/// `TTM_PL_VRAM`.
const VRAM: u32 = 2;
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The moves of some buffers.
pub struct Moves {
    tracing: PathBuf,
    /// The probe's name; probes of several processes stand side by side.
    probe: String,
    /// Which buffer is at which address in the kernel.
    buffers: HashMap<String, usize>,
    inside: Inside,
    evictions: usize,
}

impl Moves {
    /// Begins to watch; `None`, loudly, where the kernel has no probes. The stock guest's kernel has them.
    pub fn watch(function: &str) -> Option<Moves> {
        let tracing = PLACES.iter().map(Path::new).find(|place| place.join("kprobe_events").exists());
        let is_stock = guest().is_some_and(|guest| guest.kernel == "stock");
        let Some(tracing) = tracing.filter(|_| cfg!(target_arch = "x86_64")) else {
            assert!(!is_stock, "Debian's kernel has probes");
            say_loudly("skipped: TTM's moves cannot be watched here: no kprobe_events in tracefs");
            return None;
        };
        let probe = format!("moves_{}", std::process::id());
        let moves = Moves {
            tracing: tracing.into(),
            probe,
            buffers: HashMap::new(),
            inside: Inside::new(),
            evictions: 0,
        };
        moves
            .say("kprobe_events", &format!("p:devpagemap/{} {function} bo=%di to=+16(%cx):u32", moves.probe));
        moves.say(&format!("events/devpagemap/{}/enable", moves.probe), "1");
        moves.clear();
        Some(moves)
    }

    /// The buffer that was made last is this one. Its last move ends its making; what had to leave for it left before.
    pub fn belong_to(&mut self, buffer: usize) {
        let moved = self.moved();
        let (address, _) = moved.last().expect("a new buffer is moved to its first place").clone();
        let known = self.buffers.insert(address, buffer);
        assert_eq!(known, None, "buffer {buffer} has a place in the kernel that another one has");
        self.follow(moved, Some(buffer));
    }

    /// Follows what has moved since.
    pub fn update(&mut self) {
        let moved = self.moved();
        self.follow(moved, None);
    }

    /// Which buffer of the kernel's went where, in order, since this was asked before.
    fn moved(&self) -> Vec<(String, u32)> {
        let trace = fs::read_to_string(self.tracing.join("trace")).expect("it was writable");
        self.clear();
        assert!(!trace.contains("LOST"), "the kernel had no room for all moves:\n{trace}");
        let moves = trace.lines().filter(|line| line.contains(&self.probe)).map(|line| {
            let field = |name| {
                let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line}"));
                rest.split_whitespace().next().unwrap_or_default()
            };
            (field(" bo=").to_owned(), field(" to=").parse().expect("a number"))
        });
        moves.collect()
    }

    fn follow(&mut self, moved: Vec<(String, u32)>, newcomer: Option<usize>) {
        for (address, to) in moved {
            // Those of others, of the console, are nobody's here.
            let Some(buffer) = self.buffers.get(&address).copied() else { continue };
            if to == VRAM {
                self.inside.insert(buffer);
            } else if self.inside.remove(&buffer) {
                self.evictions += usize::from(newcomer != Some(buffer));
            }
        }
    }

    /// Which of the buffers are in video memory.
    pub fn inside(&self) -> &Inside {
        &self.inside
    }

    /// How often one had to leave.
    pub fn evictions(&self) -> usize {
        self.evictions
    }

    fn clear(&self) {
        self.say("trace", "");
    }

    fn say(&self, file: &str, what: &str) {
        let path = self.tracing.join(file);
        let append = file == "kprobe_events";
        let opened = OpenOptions::new().write(true).append(append).truncate(!append).open(&path);
        let said = opened.and_then(|mut file| file.write_all(what.as_bytes()));
        said.unwrap_or_else(|error| panic!("{} > {}: {error}", what, path.display()));
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.say(&format!("events/devpagemap/{}/enable", self.probe), "0");
            self.say("kprobe_events", &format!("-:devpagemap/{}", self.probe));
        }
    }
}
