//! The dma-bufs that a device knows, by their inode: those that it has imported, and its own exports.
//!
//! ```text
//!   (unknown) ──import──► Here(buffer) ──its last handle goes──► Leaving(its fences) ──they signal──► (unknown)
//!                           │      ▲                                │
//!                  import: the same buffer                 import: a new buffer, behind those fences
//! ```
//!
//! A buffer is found by a weak reference. Between its last handle and the end of its destructor nobody gets it any more, and what its
//! users still do with the bytes is not known yet: whoever meets it then waits for the destructor, which waits for nothing.
//!
//! One lock without a level. It is taken with the reservation of the buffer held that is about to be entered, so nobody gets that before it
//! has the fences of its predecessor. No buffer is dropped under it.

use std::collections::HashMap;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{AllOf, FenceSet, Held, Outside, Usage};

use crate::bo::{Buffer, WeakBuffer};
use crate::error::Result;

/// See the head of the module.
#[derive(Debug)]
pub(crate) struct KnownDmaBufs(Outside<HashMap<u64, Known>>);

#[derive(Debug)]
enum Known {
    /// A buffer has its bytes there.
    Here {
        buffer: WeakBuffer,
        id: u64,
        /// How often it is exported: once, but for the instant in which one export is let go of and the next is there.
        #[cfg(not(any(loom, shuttle)))]
        exports: usize,
    },
    /// It is gone, and what it was used for is not over.
    Leaving(FenceSet),
}

impl Known {
    fn here(buffer: &Buffer) -> Known {
        Known::Here {
            buffer: WeakBuffer::of(&buffer.0),
            id: buffer.id(),
            #[cfg(not(any(loom, shuttle)))]
            exports: 0,
        }
    }
}

/// What is behind a dma-buf.
#[derive(Debug)]
pub(crate) enum Here {
    /// This buffer.
    Already(Buffer),
    /// The one that was entered now.
    New,
}

/// What a look at the table found.
enum Found {
    Nothing,
    Buffer(Buffer),
    /// A destructor is about to say until when its bytes are used.
    Dying,
}

impl KnownDmaBufs {
    pub(crate) fn new() -> KnownDmaBufs {
        KnownDmaBufs(Outside::new("known dma-bufs", HashMap::new()))
    }

    /// The buffer that has its bytes in the dma-buf `inode`.
    pub(crate) fn find(&self, inode: u64) -> Option<Buffer> {
        loop {
            match find(&self.0.lock(), inode) {
                Found::Nothing => return None,
                Found::Buffer(buffer) => return Some(buffer),
                Found::Dying => {}
            }
            yield_now();
        }
    }

    /// Enters `new`, which nobody else has yet, as the buffer of `inode`, behind all work on those bytes that is outstanding; unless there
    /// is one.
    ///
    /// # Errors
    /// [`Error::FenceSlots`](crate::Error::FenceSlots).
    pub(crate) fn enter(&self, inode: u64, new: &Buffer) -> Result<Here> {
        loop {
            let mut held = Held::enter();
            let mut state = new.0.reservation.lock(&mut held);
            state.reserve_fences(1)?;
            let mut table = self.0.lock();
            match find(&table, inode) {
                Found::Buffer(buffer) => return Ok(Here::Already(buffer)),
                Found::Dying => {}
                Found::Nothing => {
                    prune(&mut table);
                    let before = table.insert(inode, Known::here(new));
                    drop(table);
                    if let Some(Known::Leaving(fences)) = before
                        && !mutant!("users_before_an_import_are_forgotten")
                    {
                        state.add_fence(AllOf::new(fences).fence().clone(), Usage::Kernel);
                    }
                    return Ok(Here::New);
                }
            }
            drop(table);
            drop(state);
            yield_now();
        }
    }

    /// Notes that the dma-buf `inode` is an export of `buffer`, which the export keeps alive until it [forgets](KnownDmaBufs::forget_export) it.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn enter_export(&self, inode: u64, buffer: &Buffer) {
        let mut table = self.0.lock();
        prune(&mut table);
        match table.entry(inode).or_insert_with(|| Known::here(buffer)) {
            Known::Here { id, exports, .. } if *id == buffer.id() => *exports += 1,
            other => debug_assert!(false, "inode {inode} is exported, and {other:?}"),
        }
    }

    /// The export is over: nobody has the dma-buf any more.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn forget_export(&self, inode: u64) {
        let mut table = self.0.lock();
        if let Some(Known::Here { exports, .. }) = table.get_mut(&inode) {
            *exports -= 1;
            if *exports == 0 {
                table.remove(&inode);
            }
        }
    }

    /// The buffer `id` is gone, and its bytes are in use until `fences` have signalled.
    pub(crate) fn leave(&self, inode: u64, id: u64, fences: FenceSet) {
        let mut table = self.0.lock();
        match table.get(&inode) {
            Some(Known::Here { id: entered, .. }) if *entered == id => {}
            // It was never entered, as another was there.
            _ => return,
        }
        table.insert(inode, Known::Leaving(fences));
        prune(&mut table);
    }
}

fn find(table: &HashMap<u64, Known>, inode: u64) -> Found {
    match table.get(&inode) {
        None | Some(Known::Leaving(_)) => Found::Nothing,
        Some(Known::Here { buffer, .. }) => match buffer.upgrade() {
            Some(buffer) => Found::Buffer(buffer),
            None if mutant!("a_dying_import_is_unknown") => Found::Nothing,
            None => Found::Dying,
        },
    }
}

fn prune(table: &mut HashMap<u64, Known>) {
    table.retain(|_, known| match known {
        Known::Here { .. } => true,
        Known::Leaving(fences) => !fences.is_signaled(),
    });
}
