//! Lists of extents and their cutting into pieces, against a list of bytes.

use devpagemap_migrate::{Addr, Cursor, Extent, ExtentList, Operation, Route, Space, SysAddr, VramAddr};
use proptest::prelude::*;

fn extent(space: Space, offset: u64, len: u64) -> Extent {
    Extent::new(Addr::new(space, offset), len)
}

/// The list, one address a byte.
fn bytes(list: &ExtentList) -> Vec<Addr> {
    list.iter().flat_map(|extent| (0..extent.len_bytes).map(|at| extent.addr.add(at))).collect()
}

fn lists() -> impl Strategy<Value = ExtentList> {
    let space = prop_oneof![Just(Space::Vram), Just(Space::System)];
    prop::collection::vec((space, 0u64..40, 0u64..12), 0..12)
        .prop_map(|parts| parts.into_iter().map(|(space, at, len)| extent(space, at, len)).collect())
}

#[test]
fn neighbours_are_merged_and_others_are_not() {
    let mut list = ExtentList::new();
    list.push(extent(Space::Vram, 0, 10));
    list.push(extent(Space::Vram, 10, 5));
    assert_eq!(list.as_slice(), [extent(Space::Vram, 0, 15)]);
    list.push(extent(Space::System, 15, 5));
    list.push(extent(Space::System, 30, 5));
    assert_eq!((list.iter().count(), list.len_bytes()), (3, 25));
}

#[test]
fn an_address_names_its_memory() {
    assert_eq!(Addr::from(VramAddr(16)).add(4), Addr::Vram(VramAddr(20)));
    assert_eq!(Addr::from(SysAddr(16)).space(), Space::System);
    assert_eq!(Addr::from(VramAddr(4096)).to_string(), "vram:0x1000");
}

#[test]
#[should_panic(expected = "are not within a list of 10 bytes")]
fn a_slice_past_the_end_is_refused() {
    let list = ExtentList::from(extent(Space::Vram, 0, 10));
    drop(list.slice(5, 6));
}

#[test]
#[should_panic(expected = "passes its space")]
fn an_extent_that_wraps_around_is_refused() {
    ExtentList::new().push(extent(Space::Vram, u64::MAX - 3, 5));
}

#[test]
fn a_chunk_ends_where_the_route_changes() {
    let src = [extent(Space::System, 0, 4), extent(Space::Vram, 0, 4)].into_iter().collect();
    let dst = ExtentList::from(extent(Space::Vram, 100, 8));
    let operation = Operation::Copy { src, dst };
    let mut cursor = Cursor::default();
    let routes: Vec<Route> =
        std::iter::from_fn(|| cursor.next_chunk(&operation, 1000).first().map(|p| p.route())).collect();
    let to_vram = |from| Route { from: Some(from), to: Space::Vram };
    assert_eq!(routes, [to_vram(Space::System), to_vram(Space::Vram)]);
}

#[test]
fn every_route_has_its_own_index() {
    for (index, route) in Route::ALL.into_iter().enumerate() {
        assert_eq!(route.index(), index);
    }
}

proptest! {
    #[test]
    fn a_slice_holds_the_bytes_it_was_asked_for(list in lists(), from in 0.0..1.0, to in 0.0..1.0) {
        let at = |share: f64| (share * list.len_bytes() as f64) as u64;
        let (from, to) = (at(from).min(at(to)), at(from).max(at(to)));
        let part = list.slice(from, to - from);
        prop_assert_eq!(bytes(&part), &bytes(&list)[from as usize..to as usize]);
        prop_assert_eq!(part.len_bytes(), to - from);
    }

    #[test]
    fn two_lists_overlap_when_they_share_a_byte(a in lists(), b in lists()) {
        let (ours, theirs) = (bytes(&a), bytes(&b));
        prop_assert_eq!(a.overlaps(&b), ours.iter().any(|addr| theirs.contains(addr)));
    }

    #[test]
    fn pieces_pair_each_byte_with_its_counterpart(a in lists(), b in lists(), limit in 1u64..20) {
        let len = a.len_bytes().min(b.len_bytes());
        let operation = Operation::Copy { src: a.slice(0, len), dst: b.slice(0, len) };
        let (mut cursor, mut pairs) = (Cursor::default(), Vec::new());
        loop {
            let offset = cursor.offset_bytes();
            let chunk = cursor.next_chunk(&operation, limit);
            prop_assert_eq!(&Cursor::at(&operation, offset).next_chunk(&operation, limit), &chunk);
            if chunk.is_empty() {
                break;
            }
            prop_assert!(chunk.iter().map(|piece| piece.len_bytes).sum::<u64>() <= limit);
            for piece in chunk {
                let src = piece.src.expect("a copy has a source");
                pairs.extend((0..piece.len_bytes).map(|at| (src.add(at), piece.dst.add(at))));
            }
        }
        let expected: Vec<_> = bytes(&a).into_iter().zip(bytes(&b)).take(len as usize).collect();
        prop_assert_eq!(pairs, expected);
    }
}
