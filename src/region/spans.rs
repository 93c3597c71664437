//! Arithmetic on lists of spans and of ranges, in one place.

use std::ops::Range;

use devpagemap_allocator::Span;

pub(crate) fn total_bytes(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.len_bytes).sum()
}

/// The part of `span` that lies within `range`.
pub(crate) fn cut(span: &Span, range: &Range<u64>) -> Option<Span> {
    let (start, end) = (span.start_bytes.max(range.start), span.end_bytes().min(range.end));
    (start < end).then(|| Span { start_bytes: start, len_bytes: end - start })
}

/// The parts of `spans` that lie within `range`.
pub(crate) fn intersect(spans: &[Span], range: &Range<u64>) -> Vec<Span> {
    spans.iter().filter_map(|span| cut(span, range)).collect()
}

/// How many bytes of `spans` lie within `range`.
pub(crate) fn bytes_within(spans: &[Span], range: &Range<u64>) -> u64 {
    spans.iter().filter_map(|span| cut(span, range)).map(|part| part.len_bytes).sum()
}

/// The parts of `spans` that lie within any of `others`, which do not overlap.
pub(crate) fn intersect_all(spans: &[Span], others: &[Span]) -> Vec<Span> {
    others.iter().flat_map(|other| intersect(spans, &range_of(other))).collect()
}

/// The parts of `span` that lie outside `other`.
pub(crate) fn subtract(span: Span, other: Span) -> impl Iterator<Item = Span> {
    let outside = [0..other.start_bytes, other.end_bytes()..u64::MAX];
    outside.into_iter().filter_map(move |range| cut(&span, &range))
}

/// The parts of `spans` that lie outside all of `others`.
pub(crate) fn subtract_all(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let outside =
        |rest: Vec<Span>, other: &Span| rest.into_iter().flat_map(|span| subtract(span, *other)).collect();
    others.iter().fold(spans.to_vec(), outside)
}

/// Sorts by address and makes one span of neighbours.
pub(crate) fn merge_adjacent(spans: &mut Vec<Span>) {
    spans.sort_unstable();
    spans.dedup_by(|next, kept| {
        let adjacent = kept.end_bytes() == next.start_bytes;
        if adjacent {
            kept.len_bytes += next.len_bytes;
        }
        adjacent
    });
}

/// Adds a range to a list in order; one that begins where the last ends makes that longer.
pub(crate) fn push_run(runs: &mut Vec<Range<u64>>, next: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => runs.push(next),
    }
}

fn range_of(span: &Span) -> Range<u64> {
    span.start_bytes..span.end_bytes()
}
