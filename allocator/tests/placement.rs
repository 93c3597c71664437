//! Which place a request gets: the policy, one sentence at a time.

use devpagemap_allocator::{AllocError, Buddy, PAGE_BYTES, Request, Span};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn pages(start: u64, len: u64) -> Span {
    Span { start_bytes: start * PAGE_BYTES, len_bytes: len * PAGE_BYTES }
}

/// A region of `size` pages of which only `free` is free.
fn with_free(size: u64, free: &[Span]) -> Buddy {
    let mut buddy = Buddy::new(size * PAGE_BYTES).unwrap();
    buddy.alloc(&Request::new(size * PAGE_BYTES)).unwrap();
    free.iter().for_each(|&span| buddy.free(span).unwrap());
    buddy
}

fn request(len: u64) -> Request {
    Request::new(len * PAGE_BYTES)
}

#[test]
fn a_small_request_leaves_large_blocks_alone_while_a_small_one_is_free() {
    for request in [request(1), request(1).contiguous(), request(1).top_down()] {
        let mut buddy = with_free(0x1000, &[pages(0, 0x100), pages(0x700, 1), pages(0x800, 4)]);
        assert_eq!(buddy.alloc(&request).unwrap(), [pages(0x700, 1)]);
        assert_eq!(buddy.largest_free_bytes(), 0x100 * PAGE_BYTES);
    }
}

#[test]
fn among_blocks_that_fit_equally_well_the_lowest_or_the_highest_is_taken() {
    let holes = [pages(0x10, 8), pages(0x400, 8), pages(0x7f0, 8)];
    assert_eq!(with_free(0x1000, &holes).alloc(&request(7)).unwrap(), [pages(0x10, 7)]);
    assert_eq!(with_free(0x1000, &holes).alloc(&request(7).top_down()).unwrap(), [pages(0x7f1, 7)]);
    assert_eq!(with_free(0x1000, &holes).alloc(&request(8).top_down()).unwrap(), [pages(0x7f0, 8)]);
}

#[test]
fn filling_top_down_keeps_the_visible_prefix_free_to_the_last() {
    let mut buddy = Buddy::new(GIB).unwrap();
    for _ in 0..3 * 64 {
        let spans = buddy.alloc(&Request::new(4 * MIB).top_down()).unwrap();
        assert!(spans[0].start_bytes >= 256 * MIB);
    }
    assert_eq!(buddy.free_bytes_in(0..256 * MIB), 256 * MIB);
    assert_eq!(buddy.largest_free_bytes(), 256 * MIB);
}

#[test]
fn a_contiguous_request_takes_its_pages_and_not_one_more() {
    let mut buddy = Buddy::new(MIB).unwrap();
    assert_eq!(buddy.alloc(&request(0x21).contiguous()).unwrap(), [pages(0, 0x21)]);
    assert_eq!(buddy.free_bytes(), MIB - 0x21 * PAGE_BYTES);
    assert_eq!(buddy.largest_free_bytes(), MIB - 0x21 * PAGE_BYTES);
    buddy.free(pages(0, 0x21)).unwrap();
    assert_eq!(buddy.free_blocks(8), 1, "the rest and the returned pages are one block again");
}

#[test]
fn a_run_is_found_across_every_level_boundary() {
    for boundary in [64, 4096, 64 * 4096] {
        let run = pages(boundary - 3, 6);
        let mut buddy = with_free(boundary * 2, &[run, pages(5, 5), pages(boundary * 2 - 5, 5)]);
        assert_eq!(
            buddy.alloc(&request(7).contiguous()).unwrap_err(),
            AllocError::Fragmented { wanted_bytes: 7 * PAGE_BYTES, largest_bytes: 6 * PAGE_BYTES }
        );
        assert_eq!(buddy.alloc(&request(6).contiguous()).unwrap(), [run]);
    }
}

#[test]
fn a_scattered_request_is_one_piece_when_a_block_of_about_its_size_holds_it() {
    let mut buddy = with_free(0x1000, &[pages(0, 0x10), pages(0x100, 0x20), pages(0x800, 0x40)]);
    assert_eq!(buddy.alloc(&request(0x31)).unwrap(), [pages(0x800, 0x31)]);
}

#[test]
fn a_scattered_request_takes_a_whole_block_and_a_bit_rather_than_breaking_a_larger_one() {
    let mut buddy = with_free(0x1000, &[pages(0, 2), pages(0x100, 0x20), pages(0x800, 0x100)]);
    assert_eq!(buddy.alloc(&request(0x22)).unwrap(), [pages(0, 2), pages(0x100, 0x20)]);
    assert_eq!(buddy.alloc(&request(0x22)).unwrap(), [pages(0x800, 0x22)], "nothing else is left to break");
}

#[test]
fn a_scattered_request_that_no_block_holds_takes_the_largest_first() {
    let mut buddy = with_free(0x1000, &[pages(0, 0x10), pages(0x100, 0x20), pages(0x800, 0x40)]);
    assert_eq!(buddy.alloc(&request(0x50)).unwrap(), [pages(0, 0x10), pages(0x800, 0x40)]);
    assert_eq!(buddy.alloc(&request(0x20)).unwrap(), [pages(0x100, 0x20)]);
}

#[test]
fn pieces_that_touch_are_returned_as_one_span() {
    let mut buddy = with_free(0x1000, &[pages(0x7e, 0x102), pages(0x300, 1)]);
    assert_eq!(buddy.alloc(&request(0x103)).unwrap(), [pages(0x7e, 0x102), pages(0x300, 1)]);
}

#[test]
fn a_region_is_filled_to_the_last_page() {
    let mut buddy = Buddy::new(64 * MIB - 20 * KIB).unwrap();
    let mut len = 1;
    while buddy.free_bytes() > 0 {
        let fits = len.min(buddy.free_bytes() / PAGE_BYTES);
        let spans = buddy.alloc(&request(fits)).unwrap();
        // Holes all over the place, for what follows to go into.
        if len % 3 == 0 {
            buddy.free(Span { len_bytes: PAGE_BYTES, ..spans[0] }).unwrap();
        }
        len = len * 7 % 1009 + 1;
    }
    assert_eq!(buddy.free_spans().next(), None);
    assert_eq!(buddy.largest_free_bytes(), 0);
}

#[test]
fn a_range_may_begin_and_end_inside_free_blocks() {
    let mut buddy = Buddy::new(16 * MIB).unwrap();
    let range = 3 * PAGE_BYTES..MIB + 5 * PAGE_BYTES;
    let got = buddy.alloc(&request(0x20).contiguous().within(range.clone())).unwrap();
    assert_eq!(got, [pages(3, 0x20)]);
    let got = buddy.alloc(&request(0x20).contiguous().within(range.clone()).top_down()).unwrap();
    assert_eq!(got, [pages(0x60, 0x20)], "the top of the smallest block that holds it");
    let rest = buddy.free_bytes_in(range.clone());
    assert_eq!(
        buddy.alloc(&Request::new(rest).within(range.clone())).unwrap(),
        [pages(0x23, 0x3d), pages(0x80, 0x85)]
    );
    assert_eq!(buddy.free_bytes_in(range), 0);
}

#[test]
fn no_block_of_a_scattered_request_is_smaller_than_asked_for() {
    let mut buddy = with_free(0x1000, &[pages(0x11, 0x4f), pages(0x203, 0x3d), pages(0x400, 1)]);
    // Whole aligned groups of 16 pages: three in the first hole, three in the second.
    let six = request(0x60).scattered(64 * KIB);
    assert!(matches!(
        buddy.alloc(&request(0x80).scattered(64 * KIB)),
        Err(AllocError::Fragmented { largest_bytes: 0x4_f000, .. })
    ));
    let spans = buddy.alloc(&request(0x70).scattered(64 * KIB)).unwrap();
    assert_eq!(spans, [pages(0x20, 0x40), pages(0x210, 0x30)]);
    assert!(buddy.alloc(&six).is_err());
}

#[test]
fn what_is_left_of_a_scattered_request_goes_to_the_start_of_a_place_of_its_own() {
    let mut buddy = with_free(0x1000, &[pages(0x10, 0x10), pages(0x40, 3), pages(0x83, 0xd)]);
    let spans = buddy.alloc(&request(0x13).scattered(64 * KIB)).unwrap();
    assert_eq!(spans, [pages(0x10, 0x10), pages(0x40, 3)]);
}

#[test]
fn as_much_as_there_is_can_be_asked_for() {
    let mut buddy = with_free(0x1000, &[pages(0x10, 5), pages(0x40, 3), pages(0x100, 0x20)]);
    assert_eq!(buddy.alloc_up_to(&request(0x200).contiguous()), [pages(0x100, 0x20)]);
    assert_eq!(buddy.alloc_up_to(&request(6)), [pages(0x10, 4), pages(0x40, 2)]);
    assert_eq!(buddy.alloc_up_to(&request(1 << 40)), [pages(0x14, 1), pages(0x42, 1)]);
    assert_eq!(buddy.alloc_up_to(&request(1)), []);
    assert_eq!(buddy.free_bytes(), 0);
}

#[test]
fn parts_and_unions_of_allocations_can_be_freed() {
    let mut buddy = Buddy::new(MIB).unwrap();
    for _ in 0..16 {
        buddy.alloc(&request(0x10)).unwrap();
    }
    buddy.free(pages(0x18, 0x61)).unwrap();
    buddy.debug_check_consistency();
    assert!(buddy.free_spans().eq([pages(0x18, 0x61)]));
    buddy.free(pages(0, 0x18)).unwrap();
    buddy.free(pages(0x79, 0x87)).unwrap();
    assert_eq!(buddy.free_blocks(8), 1);
}

#[test]
fn an_error_leaves_the_callers_list_and_the_region_as_they_were() {
    let mut buddy = with_free(0x1000, &[pages(0x20, 0x40), pages(0x101, 0x10)]);
    let mut spans = vec![pages(7, 1)];
    let too_much = request(0x50).scattered(64 * KIB);
    for request in
        [too_much.clone(), too_much.within(0..0x1000 * PAGE_BYTES), request(0x51), request(0x41).contiguous()]
    {
        assert!(buddy.alloc_into(&request, &mut spans).is_err(), "{request:?}");
        assert_eq!(spans, [pages(7, 1)]);
        assert!(buddy.free_spans().eq([pages(0x20, 0x40), pages(0x101, 0x10)]));
        buddy.debug_check_consistency();
    }
    buddy.alloc_into(&request(1), &mut spans).unwrap();
    assert_eq!(spans, [pages(7, 1), pages(0x101, 1)]);
}

#[test]
fn the_bookkeeping_of_8_gib_is_less_than_a_mebibyte() {
    let buddy = Buddy::new(8 * GIB).unwrap();
    assert!(buddy.metadata_bytes() < MIB, "{} bytes", buddy.metadata_bytes());
}

#[test]
fn it_can_be_shared_behind_any_lock_and_printed() {
    fn is_plain_data<T: Send + Sync + Clone>(_: &T) {}
    let buddy = with_free(0x100, &[pages(3, 4)]);
    is_plain_data(&buddy);
    assert_eq!(
        format!("{buddy:?}"),
        "Buddy { size_bytes: 1048576, free_bytes: 16384, largest_free_bytes: 16384 }"
    );
}
