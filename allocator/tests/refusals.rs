//! Bad input is refused with its numbers, and changes nothing.

use devpagemap_allocator::{AllocError, Buddy, MAX_REGION_BYTES, PAGE_BYTES, Request, Span};

const MIB: u64 = 1 << 20;

fn refused(request: Request) -> AllocError {
    let mut buddy = Buddy::new(MIB).unwrap();
    let error = buddy.alloc(&request).unwrap_err();
    assert_eq!(buddy.alloc_up_to(&request).len(), 0);
    assert_eq!(buddy.free_bytes(), MIB);
    error
}

#[test]
fn a_region_must_have_pages_and_not_too_many() {
    for size_bytes in [0, 1, PAGE_BYTES - 1, PAGE_BYTES + 1, MAX_REGION_BYTES + PAGE_BYTES, 1 << 63, u64::MAX]
    {
        assert_eq!(Buddy::new(size_bytes).unwrap_err(), AllocError::InvalidRegion { size_bytes });
    }
    assert_eq!(Buddy::new(PAGE_BYTES).unwrap().largest_free_bytes(), PAGE_BYTES);
}

#[test]
fn a_length_must_be_whole_pages() {
    for len_bytes in [0, 1, PAGE_BYTES - 1, PAGE_BYTES + 1, u64::MAX, u64::MAX - 1] {
        assert_eq!(refused(Request::new(len_bytes)), AllocError::InvalidSize { len_bytes });
        assert_eq!(refused(Request::new(len_bytes).contiguous()), AllocError::InvalidSize { len_bytes });
    }
}

#[test]
fn a_length_that_no_region_holds_is_too_large() {
    let mut buddy = Buddy::new(MIB).unwrap();
    for len_bytes in [MIB + PAGE_BYTES, 1 << 63, u64::MAX - (PAGE_BYTES - 1)] {
        for request in [Request::new(len_bytes), Request::new(len_bytes).contiguous().top_down()] {
            let error = buddy.alloc(&request).unwrap_err();
            assert_eq!(error, AllocError::TooLarge { wanted_bytes: len_bytes, range_bytes: MIB });
        }
    }
}

#[test]
fn an_alignment_must_be_a_power_of_two() {
    for align_bytes in [0, 3, PAGE_BYTES + 1, 3 * PAGE_BYTES, u64::MAX] {
        assert_eq!(
            refused(Request::new(PAGE_BYTES).aligned(align_bytes)),
            AllocError::InvalidAlign { align_bytes }
        );
    }
}

#[test]
fn an_alignment_below_a_page_means_a_page_and_one_beyond_the_region_means_its_start() {
    let mut buddy = Buddy::new(MIB).unwrap();
    buddy.alloc(&Request::new(PAGE_BYTES).aligned(1).scattered(2)).unwrap();
    let error = buddy.alloc(&Request::new(PAGE_BYTES).aligned(1 << 63)).unwrap_err();
    assert_eq!(error, AllocError::Fragmented { wanted_bytes: PAGE_BYTES, largest_bytes: MIB - PAGE_BYTES });
    buddy.free(Span { start_bytes: 0, len_bytes: PAGE_BYTES }).unwrap();
    for request in [Request::new(PAGE_BYTES).aligned(1 << 63), Request::new(PAGE_BYTES).scattered(1 << 63)] {
        let spans = buddy.alloc(&request.top_down()).unwrap();
        assert_eq!(spans, [Span { start_bytes: 0, len_bytes: PAGE_BYTES }]);
        buddy.free(spans[0]).unwrap();
    }
}

#[test]
fn a_smallest_block_must_be_a_power_of_two() {
    for min_block_bytes in [0, 3, PAGE_BYTES + 1, u64::MAX] {
        let error = refused(Request::new(PAGE_BYTES).scattered(min_block_bytes));
        assert_eq!(error, AllocError::InvalidMinBlock { min_block_bytes });
    }
}

#[test]
fn a_range_must_be_aligned_ordered_and_inside() {
    #[expect(clippy::reversed_empty_ranges, reason = "what a careless caller may pass")]
    let ranges = [
        2 * PAGE_BYTES..PAGE_BYTES,
        PAGE_BYTES..PAGE_BYTES,
        1..MIB,
        0..MIB - 1,
        0..MIB + PAGE_BYTES,
        MIB..u64::MAX,
        0..u64::MAX - 1,
        u64::MAX..u64::MAX,
        u64::MAX..0,
    ];
    for range in ranges {
        let (start_bytes, end_bytes) = (range.start, range.end);
        let error = refused(Request::new(PAGE_BYTES).within(range));
        assert_eq!(error, AllocError::InvalidRange { start_bytes, end_bytes, size_bytes: MIB });
    }
}

#[test]
fn a_span_to_free_must_be_whole_pages_inside_the_region() {
    let mut buddy = Buddy::new(MIB).unwrap();
    buddy.alloc(&Request::new(MIB)).unwrap();
    let top_page = u64::MAX - (PAGE_BYTES - 1);
    for (start_bytes, len_bytes) in [
        (0, 0),
        (1, PAGE_BYTES),
        (0, 1),
        (0, MIB + PAGE_BYTES),
        (MIB, PAGE_BYTES),
        (top_page, PAGE_BYTES),
        (PAGE_BYTES, top_page),
    ] {
        let span = Span { start_bytes, len_bytes };
        let error = buddy.free(span).unwrap_err();
        assert_eq!(error, AllocError::InvalidSpan { start_bytes, len_bytes, size_bytes: MIB });
        assert!(!buddy.is_free(span));
    }
    assert_eq!(buddy.free_bytes(), 0);
}

#[test]
fn a_double_free_is_refused_and_changes_nothing() {
    let mut buddy = Buddy::new(MIB).unwrap();
    buddy.alloc(&Request::new(MIB)).unwrap();
    buddy.free(Span { start_bytes: 5 * PAGE_BYTES, len_bytes: 3 * PAGE_BYTES }).unwrap();
    for (start, len, free_at) in [(5, 3, 5), (0, 6, 5), (7, 9, 7), (0, 256, 5), (6, 1, 6)] {
        let (start_bytes, len_bytes) = (start * PAGE_BYTES, len * PAGE_BYTES);
        let error = buddy.free(Span { start_bytes, len_bytes }).unwrap_err();
        let free_at_bytes = free_at * PAGE_BYTES;
        assert_eq!(error, AllocError::AlreadyFree { start_bytes, len_bytes, free_at_bytes });
        assert_eq!(buddy.free_bytes(), 3 * PAGE_BYTES);
        buddy.debug_check_consistency();
    }
}

#[test]
fn questions_about_odd_ranges_are_answered_for_their_whole_pages() {
    let mut buddy = Buddy::new(MIB).unwrap();
    buddy.alloc(&Request::new(PAGE_BYTES)).unwrap();
    assert_eq!(buddy.free_bytes_in(0..u64::MAX), MIB - PAGE_BYTES);
    assert_eq!(buddy.free_bytes_in(1..3 * PAGE_BYTES), 2 * PAGE_BYTES);
    assert_eq!(buddy.free_bytes_in(PAGE_BYTES + 1..3 * PAGE_BYTES - 1), 0);
    assert_eq!(buddy.free_bytes_in(MIB..2 * MIB), 0);
    assert_eq!(buddy.free_bytes_in(u64::MAX - 1..u64::MAX), 0);
    #[expect(clippy::reversed_empty_ranges, reason = "what a careless caller may pass")]
    let reversed = 3 * PAGE_BYTES..PAGE_BYTES;
    assert_eq!(buddy.free_bytes_in(reversed), 0);
    assert_eq!((buddy.free_blocks(u32::MAX), buddy.free_blocks(63)), (0, 0));
}

#[test]
fn every_error_says_its_numbers() {
    let errors = [
        AllocError::InvalidRegion { size_bytes: 4711 },
        AllocError::InvalidSize { len_bytes: 4711 },
        AllocError::InvalidAlign { align_bytes: 4711 },
        AllocError::InvalidMinBlock { min_block_bytes: 4711 },
        AllocError::InvalidRange { start_bytes: 0x4711, end_bytes: 0x4712, size_bytes: 0x4713 },
        AllocError::InvalidSpan { start_bytes: 0x4711, len_bytes: 0x4712, size_bytes: 0x4713 },
        AllocError::TooLarge { wanted_bytes: 4711, range_bytes: 4712 },
        AllocError::Exhausted { wanted_bytes: 4711, free_bytes: 4712 },
        AllocError::Fragmented { wanted_bytes: 4711, largest_bytes: 4712 },
        AllocError::Busy { start_bytes: 0x4711, len_bytes: 0x4712, taken_at_bytes: 0x4713 },
        AllocError::AlreadyFree { start_bytes: 0x4711, len_bytes: 0x4712, free_at_bytes: 0x4713 },
    ];
    for error in errors {
        let (text, numbers) = (error.to_string(), format!("{error:?}").matches(": ").count());
        assert!(text.contains("4711"), "{text}");
        assert!(numbers < 2 || text.contains("4712"), "{text}");
        assert!(numbers < 3 || text.contains("4713"), "{text}");
        let _: &dyn std::error::Error = &error;
    }
}
