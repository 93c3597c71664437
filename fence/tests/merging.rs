//! Merging fences: what containers of containers come down to, which is a flat set.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AllOf, Fence, FenceError, FenceSet, SignalTime, Timeline, TimelineId};

/// Timelines with two points each.
fn rings<const N: usize>() -> ([Timeline; N], [[Fence; 2]; N]) {
    let timelines: [Timeline; N] = std::array::from_fn(|_| Timeline::new("ring"));
    let fences = timelines.each_ref().map(|timeline| [timeline.next_point(), timeline.next_point()]);
    (timelines, fences)
}

fn points(set: &FenceSet) -> Vec<(TimelineId, u64)> {
    set.iter().map(|fence| (fence.timeline_id(), fence.seqno())).collect()
}

fn expected(fences: &[&Fence]) -> Vec<(TimelineId, u64)> {
    fences.iter().map(|fence| (fence.timeline_id(), fence.seqno())).collect()
}

fn set(fences: &[&Fence]) -> FenceSet {
    fences.iter().map(|fence| (*fence).clone()).collect()
}

/// A container of containers, as the sets' members.
fn merge(sets: impl IntoIterator<Item = FenceSet>) -> FenceSet {
    let mut merged = FenceSet::new();
    sets.into_iter().for_each(|set| merged.merge(&set));
    merged
}

#[test]
fn the_members_of_a_container_can_be_listed() {
    let (_timelines, [a, b, _]) = rings::<3>();
    let all = AllOf::new(set(&[&a[0], &b[0]]));
    assert_eq!(points(all.members()), expected(&[&a[0], &b[0]]));
}

#[test]
fn containers_within_a_chain_of_containers_come_out_flat() {
    let (_timelines, [a, b, c]) = rings::<3>();
    let (first, second) = (AllOf::new(set(&[&a[0], &b[0]])), AllOf::new(set(&[&b[1], &c[0]])));
    let flat = merge([first.into(), second.into()]);
    assert_eq!(points(&flat), expected(&[&a[0], &b[1], &c[0]]));
}

#[test]
fn two_that_are_merged_are_complete_together() {
    let (timelines, [a, b]) = rings::<2>();
    let both = AllOf::new(merge([set(&[&a[0]]), set(&[&b[0]])]));
    timelines[0].signal(1);
    assert!(!both.fence().is_signaled());
    timelines[1].signal(1);
    assert!(both.fence().is_signaled());
}

#[test]
fn the_order_in_which_containers_that_share_members_are_merged_makes_no_difference() {
    let (_timelines, [a, b, c]) = rings::<3>();
    let sets = [set(&[&a[0], &b[1]]), set(&[&b[0], &c[1]]), set(&[&c[0], &a[1]])];
    let latest = expected(&[&a[1], &b[1], &c[1]]);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(points(&merge(order.map(|index| sets[index].clone()))), latest);
    }
}

#[test]
fn nested_containers_with_stubs_and_repetitions_come_down_to_their_members() {
    let (_timelines, [a, b, c, d, e]) = rings::<5>();
    let inner = AllOf::new(set(&[&a[0], &b[0]]));
    let middle = AllOf::new(merge([inner.clone().into(), set(&[&c[0], &Fence::signaled()])]));
    let outer =
        AllOf::new(merge([middle.into(), inner.into(), Fence::signaled().into(), set(&[&d[0], &e[0]])]));
    assert_eq!(points(outer.members()), expected(&[&a[0], &b[0], &c[0], &d[0], &e[0]]));
}

#[test]
fn nested_containers_keep_the_latest_point_of_each_timeline() {
    let (_timelines, [a, b, c]) = rings::<3>();
    let early = AllOf::new(set(&[&a[0], &b[1], &c[0]]));
    let late = AllOf::new(merge([early.clone().into(), set(&[&a[1], &b[0]])]));
    let mixed = merge([late.into(), early.into(), set(&[&c[1]])]);
    assert_eq!(points(&mixed), expected(&[&a[1], &b[1], &c[1]]));
}

#[test]
fn a_large_merge_is_the_latest_of_each_as_well() {
    let (_timelines, fences) = rings::<40>();
    let early: FenceSet = fences.iter().map(|pair| pair[0].clone()).collect();
    let odd_and_late: FenceSet = fences.iter().skip(1).step_by(2).map(|pair| pair[1].clone()).collect();
    let latest: Vec<&Fence> = fences.iter().enumerate().map(|(index, pair)| &pair[index % 2]).collect();
    assert_eq!(points(&merge([early.clone(), odd_and_late.clone()])), expected(&latest));
    assert_eq!(points(&merge([odd_and_late, early])), expected(&latest));
}

#[test]
fn one_that_is_pending_is_its_own_merger() {
    let (timelines, [a, b]) = rings::<2>();
    timelines[0].signal(2);
    let all = AllOf::new(set(&[&a[1], &b[0]]));
    assert_eq!((all.fence().timeline_id(), all.fence().seqno()), (timelines[1].id(), 1));
}

#[test]
fn with_none_pending_the_merger_has_signalled() {
    let (timelines, [a, b]) = rings::<2>();
    timelines.iter().for_each(|timeline| timeline.signal(2));
    let all = AllOf::new(set(&[&a[1], &b[1]]));
    assert_eq!(all.fence().status(), Some(Ok(())));
    assert_eq!(all.members().len(), 2, "the members are there to be asked");
}

#[test]
fn with_none_pending_but_failures_the_merger_has_the_first_of_them() {
    let (timelines, [a, b, c]) = rings::<3>();
    timelines[0].signal(1);
    timelines[2].fail(1, FenceError::Cancelled);
    timelines[1].fail(1, FenceError::DeviceLost);
    let all = AllOf::new(set(&[&a[0], &b[0], &c[0]]));
    assert_eq!(all.fence().status(), Some(Err(FenceError::DeviceLost)));
}

#[test]
fn the_merger_has_the_latest_of_its_members_moments() {
    let noting = |_| Timeline::builder("noting").timestamps(1).build();
    let timelines: [Timeline; 3] = std::array::from_fn(noting);
    let fences = timelines.each_ref().map(Timeline::next_point);
    let all = AllOf::new(FenceSet::from_iter(fences.clone()));
    for index in [1, 2, 0] {
        assert_eq!(all.signal_time(), SignalTime::Outstanding);
        timelines[index].signal(1);
    }
    assert!(matches!(fences[0].signal_time(), SignalTime::At(_)));
    assert_eq!(all.signal_time(), fences[0].signal_time());

    let silent = Timeline::new("silent");
    let unknown = AllOf::new(FenceSet::from_iter([silent.next_point(), fences[0].clone()]));
    assert_eq!(unknown.signal_time(), SignalTime::Outstanding);
    silent.signal(1);
    assert_eq!(unknown.signal_time(), SignalTime::Unrecorded);
}

#[test]
fn a_moment_that_is_only_bounded_bounds_that_of_the_merger() {
    let [early, late]: [Timeline; 2] =
        std::array::from_fn(|_| Timeline::builder("noting").timestamps(1).build());
    let (exact, vague) = (early.next_point(), late.next_point());
    early.signal(1);
    late.signal(1);
    late.next_point();
    late.signal(2);
    let SignalTime::NoLaterThan(bound) = vague.signal_time() else { panic!("its entry has gone") };
    let all = AllOf::new(FenceSet::from_iter([exact, vague]));
    assert_eq!(all.signal_time(), SignalTime::NoLaterThan(bound));
}
