//! The kernel's TTM as an oracle: what happens to the same buffers there and here.
//!
//! bochs and qxl keep their buffers in real TTM. More buffers than video memory holds are written, brought in one after the other in an order
//! that no one foresees, compared and rewritten each time they come. TTM's own moves are watched as they happen, so after every step it is
//! known who is in video memory there; our manager, with as much room, must have the same buffers in, must have thrown out the same ones, and
//! at the end every byte must be the same.
//!
//! ```text
//!   step      TTM                                    ours
//!   bring 7   show it (bochs), validate it (qxl)     a job on it
//!             moves: 3 out, 7 in                     evicted: 3
//!             compare all bytes, write new ones      the job compares all bytes and writes new ones
//! ```

mod bochs;
mod moves;
mod ours;
mod qxl;

use std::collections::BTreeSet;

use crate::pattern;
use crate::setup::{Thing, need};
use moves::Moves;
use ours::Ours;

/// What a buffer holds in its `version`.
fn seed(buffer: usize, version: u64) -> u64 {
    ((buffer as u64) << 32) | version
}

/// Buffers of one size in video memory that TTM manages.
trait Ttm {
    /// The function of the driver that moves buffers, as the kernel's tracing calls it.
    const MOVES: &'static str;
    /// How large each buffer is.
    fn size_bytes(&self) -> usize;
    /// How many of them are too many for video memory.
    fn too_many(&self) -> usize;
    /// Makes the next buffer.
    fn create(&mut self);
    /// Has a buffer brought to video memory, which makes it the one that was used last.
    fn bring(&mut self, buffer: usize);
    /// Shows a buffer's bytes, wherever they are.
    fn bytes(&mut self, buffer: usize, look: &mut dyn FnMut(&mut [u8]));
}

#[test]
fn buffers_that_are_cycled_through_bochs_and_through_our_vram_have_the_same_fate_and_the_same_bytes() {
    if need(&[Thing::Bochs]) {
        same_fate(bochs::Bochs::open());
    }
}

#[test]
fn buffers_that_crowd_qxls_video_memory_and_ours_have_the_same_fate_and_the_same_bytes() {
    if need(&[Thing::Qxl]) {
        same_fate(qxl::Qxl::open());
    }
}

fn same_fate<T: Ttm>(mut ttm: T) {
    let Some(mut moves) = Moves::watch(T::MOVES) else { return };
    let count = ttm.too_many();
    let mut versions = vec![0; count];
    for buffer in 0..count {
        ttm.create();
        moves.belong_to(buffer);
        ttm.bytes(buffer, &mut |bytes| pattern::write(seed(buffer, 0), 0, bytes));
        ttm.bring(buffer);
        moves.update();
    }
    // Who shares video memory with us (the console) has left it by now; what is ours is what fits.
    let room = moves.inside().len();
    assert!(room >= 3 && room < count, "{room} of {count} buffers fit into video memory");
    assert!(moves.inside().contains(&(count - 1)), "the last one that came is in");

    let ours = Ours::new(room, count, ttm.size_bytes());
    for buffer in 0..count {
        ours.bring(buffer, None, seed(buffer, 0));
    }
    assert_eq!(&ours.inside(), moves.inside(), "after the first round");
    let (evicted_before, ours_before) = (moves.evictions(), ours.evictions());

    for buffer in unforeseen(count, 4 * count) {
        let (old, new) = (seed(buffer, versions[buffer]), seed(buffer, versions[buffer] + 1));
        versions[buffer] += 1;
        ttm.bring(buffer);
        ttm.bytes(buffer, &mut |bytes| {
            pattern::check(old, 0, bytes).unwrap_or_else(|wrong| panic!("TTM, buffer {buffer}: {wrong}"));
            pattern::write(new, 0, bytes);
        });
        moves.update();
        ours.bring(buffer, Some(old), new);
        assert_eq!(&ours.inside(), moves.inside(), "after buffer {buffer} came");
    }
    let (theirs, ours_too) = (moves.evictions() - evicted_before, ours.evictions() - ours_before);
    assert!(theirs > count, "{theirs} evictions is no pressure");
    assert_eq!(theirs, ours_too, "as many had to leave");

    let mut mine = vec![0; ttm.size_bytes()];
    for (buffer, version) in versions.iter().enumerate() {
        ours.read(buffer, &mut mine);
        ttm.bytes(buffer, &mut |bytes| assert!(bytes == mine, "buffer {buffer} is not the same"));
        pattern::check(seed(buffer, *version), 0, &mine)
            .unwrap_or_else(|wrong| panic!("buffer {buffer}: {wrong}"));
    }
    println!(
        "{room} of {count} buffers of {} bytes fit; {theirs} evictions, the same ones",
        ttm.size_bytes()
    );
}

/// Buffers in an order that favours some, as real work does; the same in every run.
fn unforeseen(count: usize, steps: usize) -> Vec<usize> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..steps)
        .map(|step| match next() % 3 {
            0 => (next() % (count as u64 / 3)) as usize,
            1 => (next() % count as u64) as usize,
            _ => step % count,
        })
        .collect()
}

/// Which buffers are in video memory.
type Inside = BTreeSet<usize>;
