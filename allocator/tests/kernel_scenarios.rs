//! What the kernel's tests of its buddy allocator check, told again for this one.
//!
//! Not here: the scenarios about cleared memory, which this allocator does not keep track of.

use devpagemap_allocator::{AllocError, Buddy, MAX_REGION_BYTES, PAGE_BYTES, Request, Span};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A generator of numbers that look random, the same on every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// One block of `pages` pages.
fn block(buddy: &mut Buddy, pages: u64) -> Result<Span, AllocError> {
    let spans = buddy.alloc(&Request::new(pages * PAGE_BYTES).contiguous())?;
    assert_eq!(spans.len(), 1);
    Ok(spans[0])
}

fn pages(start: u64, len: u64) -> Span {
    Span { start_bytes: start * PAGE_BYTES, len_bytes: len * PAGE_BYTES }
}

fn assert_as_new(buddy: &Buddy) {
    buddy.debug_check_consistency();
    assert_eq!(buddy.free_bytes(), buddy.size_bytes());
    assert_eq!(buddy.largest_free_bytes(), buddy.size_bytes());
}

#[test]
fn the_largest_region_is_one_block_that_can_be_allocated_whole() {
    let mut buddy = Buddy::new(MAX_REGION_BYTES).unwrap();
    assert_eq!(buddy.free_blocks((MAX_REGION_BYTES / PAGE_BYTES).ilog2()), 1);
    let all = block(&mut buddy, MAX_REGION_BYTES / PAGE_BYTES).unwrap();
    assert_eq!(all, Span { start_bytes: 0, len_bytes: MAX_REGION_BYTES });
    assert!(matches!(block(&mut buddy, 1), Err(AllocError::Exhausted { free_bytes: 0, .. })));
    buddy.free(all).unwrap();
    assert_eq!(buddy.free_blocks((MAX_REGION_BYTES / PAGE_BYTES).ilog2()), 1);
}

#[test]
fn a_region_with_one_block_of_each_order_gives_each_of_them_out() {
    let mut buddy = Buddy::new(0x3ff * PAGE_BYTES).unwrap();
    for order in 0..10 {
        assert_eq!(buddy.free_blocks(order), 1, "order {order}");
    }
    for order in (0..10).rev() {
        let got = block(&mut buddy, 1 << order).unwrap();
        assert_eq!(got.start_bytes % got.len_bytes, 0, "a block lies at a multiple of its size");
    }
    let error = block(&mut buddy, 1).unwrap_err();
    assert_eq!(error, AllocError::Exhausted { wanted_bytes: PAGE_BYTES, free_bytes: 0 });
}

#[test]
fn freeing_blocks_in_ascending_order_makes_larger_and_larger_ones_of_them() {
    let mut buddy = Buddy::new(0x400 * PAGE_BYTES).unwrap();
    let mut blocks: Vec<Span> = (0..10).map(|order| block(&mut buddy, 1 << order).unwrap()).collect();
    blocks.insert(0, block(&mut buddy, 1).unwrap());
    assert!(block(&mut buddy, 1).is_err(), "one block of each order and a page are all there is");
    let mut freed_bytes = 0;
    for span in blocks {
        buddy.free(span).unwrap();
        buddy.debug_check_consistency();
        freed_bytes += span.len_bytes;
        assert!(freed_bytes.is_power_of_two());
        assert_eq!(buddy.largest_free_bytes(), freed_bytes, "what was freed so far is one block");
        assert_eq!(buddy.free_blocks((freed_bytes / PAGE_BYTES).ilog2()), 1);
    }
    assert_as_new(&buddy);
}

#[test]
fn the_worst_pattern_leaves_half_of_the_region_free_in_single_pages_only() {
    const PAGES: u64 = 0x800;
    let mut buddy = Buddy::new(PAGES * PAGE_BYTES).unwrap();
    let mut held = vec![block(&mut buddy, PAGES).unwrap()];
    // All blocks go, and blocks of half the size take their place, down to pages.
    for order in (0..11).rev() {
        for span in std::mem::take(&mut held) {
            buddy.free(span).unwrap();
            while buddy.free_bytes() > 0 {
                held.push(block(&mut buddy, 1 << order).unwrap());
            }
        }
        assert_eq!(held.len() as u64, PAGES >> order);
        held.sort();
    }
    for span in held.iter().step_by(2) {
        buddy.free(*span).unwrap();
    }
    assert_eq!(buddy.free_bytes(), buddy.size_bytes() / 2);
    for order in 1..10 {
        let wanted_bytes = PAGE_BYTES << order;
        let error = block(&mut buddy, 1 << order).unwrap_err();
        assert_eq!(error, AllocError::Fragmented { wanted_bytes, largest_bytes: PAGE_BYTES });
    }
    let pieces = buddy.alloc(&Request::new(buddy.size_bytes() / 2)).unwrap();
    assert_eq!(pieces.len() as u64, PAGES / 2, "who accepts pieces gets all of it");
}

#[test]
fn a_contiguous_request_is_served_from_neighbours_that_are_not_buddies() {
    // left middle right | left middle right | ...: middle and right touch, and are seldom halves of one block.
    let mut buddy = Buddy::new(48 * MIB).unwrap();
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 0..768 {
        lists[turn % 3].push(block(&mut buddy, 16).unwrap());
    }
    let [left, middle, right] = lists;
    assert_eq!(buddy.free_bytes(), 0);
    middle.iter().for_each(|&span| buddy.free(span).unwrap());
    assert!(matches!(block(&mut buddy, 17), Err(AllocError::Fragmented { largest_bytes: 0x1_0000, .. })));
    right.iter().for_each(|&span| buddy.free(span).unwrap());
    assert!(matches!(block(&mut buddy, 33), Err(AllocError::Fragmented { largest_bytes: 0x2_0000, .. })));
    for found in 0..256 {
        let pair = block(&mut buddy, 32).unwrap_or_else(|error| panic!("pair {found}: {error}"));
        assert!(
            middle.iter().any(|span| span.start_bytes == pair.start_bytes),
            "{pair} begins with a middle one"
        );
        buddy.debug_check_consistency();
    }
    assert_eq!(buddy.free_bytes(), 0);
    left.iter().for_each(|&span| buddy.free(span).unwrap());
    assert_eq!(buddy.free_bytes(), 16 * MIB);
}

#[test]
fn any_range_can_be_asked_for_exactly_in_any_order() {
    let sizes_pages = [1, 0x400, 0x3ff, 0x5a7, 0x1000 + 0x123];
    for size in sizes_pages {
        let mut buddy = Buddy::new(size * PAGE_BYTES).unwrap();
        let quarter = size.div_ceil(4);
        for piece in [size, quarter, 1] {
            let mut ranges: Vec<Span> = (0..size)
                .step_by(piece as usize)
                .map(|start| pages(start, piece.min(size - start)))
                .collect();
            Numbers(size).shuffle(&mut ranges);
            for &range in &ranges {
                assert_eq!(buddy.alloc(&Request::exactly(range)).unwrap(), [range]);
                let error = buddy.alloc(&Request::exactly(range)).unwrap_err();
                let Span { start_bytes, len_bytes } = range;
                assert_eq!(error, AllocError::Busy { start_bytes, len_bytes, taken_at_bytes: start_bytes });
            }
            assert_eq!(buddy.free_bytes(), 0);
            Numbers(size + 1).shuffle(&mut ranges);
            ranges.into_iter().for_each(|range| buddy.free(range).unwrap());
            assert_as_new(&buddy);
        }
    }
}

#[test]
fn a_range_that_is_partly_taken_is_refused_and_stays_as_it_is() {
    let mut buddy = Buddy::new(4 * MIB).unwrap();
    for page in (0..1024).step_by(2) {
        buddy.alloc(&Request::exactly(pages(page, 1))).unwrap();
    }
    for (start, len) in [(0, 2), (1, 2), (0, 1024), (511, 2), (1, 3)] {
        let before: Vec<Span> = buddy.free_spans().collect();
        let error = buddy.alloc(&Request::exactly(pages(start, len))).unwrap_err();
        let taken_at_bytes = (start + start % 2) * PAGE_BYTES;
        let (start_bytes, len_bytes) = (start * PAGE_BYTES, len * PAGE_BYTES);
        assert_eq!(error, AllocError::Busy { start_bytes, len_bytes, taken_at_bytes });
        assert!(buddy.free_spans().eq(before));
    }
    buddy.alloc(&Request::exactly(pages(513, 1))).unwrap();
}

#[test]
fn nothing_leaks_out_of_a_window_however_often_it_is_filled() {
    let mut numbers = Numbers(7);
    let mut buddy = Buddy::new(33 * MIB + 12 * KIB).unwrap();
    let mut windows = vec![(0, 4 * MIB), (4 * MIB, 8 * MIB), (29 * MIB, 33 * MIB + 12 * KIB)];
    // Windows that grow, so that each later one is partly taken.
    windows.extend((1..8).map(|step| (16 * MIB - step * 2 * MIB, 17 * MIB + step * 2 * MIB)));
    for (start, end) in windows {
        let outside = buddy.free_bytes() - buddy.free_bytes_in(start..end);
        while buddy.free_bytes_in(start..end) > 0 {
            let most = (buddy.free_bytes_in(start..end) / PAGE_BYTES).min(300);
            let mut request = Request::new((numbers.below(most) + 1) * PAGE_BYTES).within(start..end);
            if numbers.below(2) == 0 {
                request = request.top_down();
            }
            for span in buddy.alloc(&request).unwrap() {
                assert!(
                    start <= span.start_bytes && span.end_bytes() <= end,
                    "{span} leaks out of {start}..{end}"
                );
            }
        }
        buddy.debug_check_consistency();
        assert_eq!(buddy.free_bytes() - buddy.free_bytes_in(start..end), outside);
        let refused = buddy.alloc(&Request::new(PAGE_BYTES).within(start..end));
        assert_eq!(refused, Err(AllocError::Exhausted { wanted_bytes: PAGE_BYTES, free_bytes: 0 }));
    }
}

#[test]
fn windows_that_cannot_hold_the_request_are_refused() {
    let mut buddy = Buddy::new(MIB).unwrap();
    let try_it = |buddy: &mut Buddy, request: Request| buddy.alloc(&request).unwrap_err();
    let two_pages = Request::new(2 * PAGE_BYTES);
    let error = try_it(&mut buddy, two_pages.clone().within(0..PAGE_BYTES));
    assert_eq!(error, AllocError::TooLarge { wanted_bytes: 2 * PAGE_BYTES, range_bytes: PAGE_BYTES });
    let error = try_it(&mut buddy, two_pages.clone().aligned(MIB).within(PAGE_BYTES..MIB));
    assert_eq!(error, AllocError::TooLarge { wanted_bytes: 2 * PAGE_BYTES, range_bytes: 0 });
    for range in [0..MIB + PAGE_BYTES, MIB..2 * MIB, 1..3 * PAGE_BYTES, 0..MIB - 1] {
        let (start_bytes, end_bytes) = (range.start, range.end);
        let error = try_it(&mut buddy, two_pages.clone().within(range));
        assert_eq!(error, AllocError::InvalidRange { start_bytes, end_bytes, size_bytes: MIB });
    }
    assert_as_new(&buddy);
}

#[test]
fn small_buffers_at_a_large_alignment_fill_every_slot_and_merge_back_in_reverse() {
    let mut buddy = Buddy::new(4 * GIB).unwrap();
    let request = Request::new(8 * KIB).aligned(64 * KIB);
    let mut held = Vec::new();
    while let Ok(spans) = buddy.alloc(&request) {
        held.extend(spans);
    }
    assert_eq!(held.len() as u64, 4 * GIB / (64 * KIB));
    assert!(held.iter().all(|span| span.start_bytes % (64 * KIB) == 0 && span.len_bytes == 8 * KIB));
    assert_eq!(buddy.largest_free_bytes(), 56 * KIB);
    for span in held.into_iter().rev() {
        buddy.free(span).unwrap();
    }
    assert_as_new(&buddy);
    assert_eq!(buddy.free_blocks(20), 1);
}

#[test]
fn a_request_larger_than_any_block_is_served_from_several_roots() {
    let mut buddy = Buddy::new(10 * GIB).unwrap();
    assert_eq!((buddy.free_blocks(21), buddy.free_blocks(19)), (1, 1));
    for request in
        [Request::new(10 * GIB), Request::new(10 * GIB).contiguous(), Request::new(9 * GIB).contiguous()]
    {
        for request in [request.clone(), request.clone().within(0..10 * GIB), request.top_down()] {
            let spans = buddy.alloc(&request).unwrap();
            assert_eq!(spans.len(), 1, "neighbouring roots are one span");
            buddy.free(spans[0]).unwrap();
        }
    }
    let error = buddy.alloc(&Request::new(10 * GIB + PAGE_BYTES).contiguous()).unwrap_err();
    assert_eq!(error, AllocError::TooLarge { wanted_bytes: 10 * GIB + PAGE_BYTES, range_bytes: 10 * GIB });
    assert_as_new(&buddy);
}

#[test]
fn holes_at_a_large_alignment_are_found_again() {
    for len_bytes in [8 * KIB, 16 * KIB] {
        let mut buddy = Buddy::new(4 * MIB).unwrap();
        let request = Request::new(len_bytes).aligned(256 * KIB);
        let held: Vec<Span> = (0..16).map(|_| buddy.alloc(&request).unwrap()[0]).collect();
        assert!(matches!(buddy.alloc(&request), Err(AllocError::Fragmented { .. })), "every slot is in use");
        for span in held.iter().step_by(3) {
            buddy.free(*span).unwrap();
        }
        for span in held.iter().step_by(3) {
            assert_eq!(buddy.alloc(&request).unwrap(), [*span], "the lowest hole is filled first");
        }
        assert!(matches!(buddy.alloc(&request), Err(AllocError::Fragmented { .. })));
    }
}

#[test]
fn descending_alignments_are_met_and_undone_in_reverse() {
    let mut buddy = Buddy::new(64 * MIB).unwrap();
    let mut held = Vec::new();
    for align_bytes in (12..=25).rev().map(|shift| 1u64 << shift) {
        let request = Request::new(PAGE_BYTES).aligned(align_bytes).contiguous();
        let mut count = 0;
        // Each alignment gets half of the places that are left to it.
        for _ in 0..(64 * MIB / align_bytes / 4).max(1) {
            let span = buddy.alloc(&request).unwrap()[0];
            assert_eq!(span.start_bytes % align_bytes, 0);
            held.push(span);
            count += 1;
            if count % 64 == 1 {
                buddy.debug_check_consistency();
            }
        }
    }
    for (count, span) in held.into_iter().rev().enumerate() {
        buddy.free(span).unwrap();
        if count % 64 == 0 {
            buddy.debug_check_consistency();
        }
    }
    assert_as_new(&buddy);
}

#[test]
fn an_address_is_known_to_be_allocated_free_or_outside() {
    let mut buddy = Buddy::new(MIB).unwrap();
    let held = buddy.alloc(&Request::new(64 * KIB).within(256 * KIB..MIB)).unwrap()[0];
    assert!(!buddy.is_free(held));
    assert!(!buddy.is_free(Span { start_bytes: held.start_bytes + 8 * KIB, len_bytes: PAGE_BYTES }));
    assert!(!buddy.is_free(Span { start_bytes: held.start_bytes - PAGE_BYTES, len_bytes: 2 * PAGE_BYTES }));
    assert!(buddy.is_free(Span { start_bytes: held.end_bytes(), len_bytes: PAGE_BYTES }));
    assert!(!buddy.is_free(Span { start_bytes: MIB, len_bytes: PAGE_BYTES }), "outside of the region");
    buddy.free(held).unwrap();
    assert!(buddy.is_free(held));
    assert!(buddy.is_free(Span { start_bytes: 0, len_bytes: MIB }));
}
