//! Whose pages, in runs: the owner check of a range, one compare a page.
//!
//! The pages of a range are mostly of one pagemap, or of a few. So tags are compared with the one before, many at a time, and the decision
//! is looked up where they change.

use std::ops::Range;

use super::decision::Decision;
use super::snapshot::{ImporterRow, Snapshot};
use super::tag::{ImporterId, PageTag};

/// Pages in a row that are reached in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Which, counted from the first of the range.
    pub pages: Range<usize>,
    /// What they carry.
    pub tag: PageTag,
    /// How they are reached.
    pub decision: Decision,
}

/// The runs of a range of pages, in order.
#[derive(Debug)]
pub struct Runs<'a> {
    snapshot: &'a Snapshot,
    /// `None` for one that has left, which reaches nothing.
    importer: Option<&'a ImporterRow>,
    tags: &'a [PageTag],
    next: usize,
}

impl Snapshot {
    /// How `importer` reaches each page of a range. A tag of a pagemap that has left, or whose memory has been taken away, is
    /// reached as that one is.
    pub fn resolve<'a>(&'a self, importer: ImporterId, tags: &'a [PageTag]) -> Runs<'a> {
        Runs { snapshot: self, importer: self.importer(importer), tags, next: 0 }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        let rest = &self.tags[self.next..];
        let tag = *rest.first()?;
        let pages = self.next..self.next + run_len(tag, rest);
        self.next = pages.end;
        let decision = self.importer.map_or(Decision::GONE, |importer| self.snapshot.decide(tag, importer));
        Some(Run { pages, tag, decision })
    }
}

/// How many of `tags`, from the first on, are `tag`.
#[inline]
fn run_len(tag: PageTag, tags: &[PageTag]) -> usize {
    let long = equal_blocks::<64>(tag, tags);
    let short = long + equal_blocks::<16>(tag, &tags[long..]);
    let rest = &tags[short..];
    short + rest.iter().position(|other| *other != tag).unwrap_or(rest.len())
}

/// How many of `tags` are in blocks, from the first on, in which all are `tag`. A block is compared without a branch.
#[inline]
fn equal_blocks<const LEN: usize>(tag: PageTag, tags: &[PageTag]) -> usize {
    let differences =
        |block: &[PageTag; LEN]| block.iter().fold(0, |bits, other| bits | (other.to_bits() ^ tag.to_bits()));
    let (blocks, _) = tags.as_chunks::<LEN>();
    blocks.iter().take_while(|block| differences(block) == 0).count() * LEN
}
