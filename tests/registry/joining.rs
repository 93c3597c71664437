//! Joining and leaving, and who hears of it.

use std::sync::{Arc, Mutex};

use devpagemap::pagemap::{
    Cause, Crossing, KernelRules, Observation, Observed, Owner, PageTag, PagemapSpec, Profile, Reason,
    Registry, Route, Rules, Verdict,
};
use devpagemap::{Error, Size, Timeline};

use crate::sketch::{OFF, Sketch, UNLISTED, XEON, ZEN, address};

const GPU: &str = "03:00.0";
const NIC: &str = "41:00.0";

fn spec() -> PagemapSpec {
    PagemapSpec::visible(&Owner::at(address(GPU)))
}

fn nic() -> Profile {
    Profile::dynamic().at(address(NIC))
}

fn open_machine() -> devpagemap::topology::Machine {
    let mut sketch = Sketch::new(ZEN);
    let host = sketch.host(sketch.package, None);
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    sketch.build()
}

fn closed_machine() -> devpagemap::topology::Machine {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    sketch.build()
}

#[test]
fn who_has_left_reaches_nothing_not_even_in_a_snapshot_from_before() {
    let registry = Registry::new(open_machine());
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    let importer = registry.join(nic()).expect("joins");
    let (vram, reader) = (pagemap.id(), importer.id());
    let before = registry.snapshot();
    assert_eq!(before.decision(vram, reader).route, Route::HostBridge);
    drop(importer);
    assert_eq!(before.decision(vram, reader).route, Route::Refused);
    assert_eq!(registry.explain(vram, reader).reasons, [Reason::Gone]);
    assert_eq!(registry.snapshot().importers().count(), 0);
    drop(pagemap);
    assert_eq!(registry.snapshot().pagemaps().count(), 0);
}

#[test]
fn a_stale_tag_never_means_the_next_one_in_its_slot() {
    let registry = Registry::new(open_machine());
    let importer = registry.join(nic()).expect("joins");
    let first = registry.join_pagemap(spec()).expect("joins");
    let stale = first.tag();
    first.leave();
    let second = registry.join_pagemap(spec()).expect("joins");
    assert_ne!(second.tag(), stale);
    let snapshot = registry.snapshot();
    let tags = [PageTag::SYSTEM, stale, second.tag(), second.tag(), PageTag::from_bits(7 << 20)];
    let runs: Vec<_> =
        snapshot.resolve(importer.id(), &tags).map(|run| (run.pages, run.decision.route)).collect();
    assert_eq!(
        runs,
        [(0..1, Route::System), (1..2, Route::Refused), (2..4, Route::HostBridge), (4..5, Route::Refused)]
    );
    let importer_id = importer.id();
    drop(importer);
    assert!(snapshot.resolve(importer_id, &tags).all(|run| run.decision.route == Route::Refused));
}

#[test]
fn runs_are_as_long_as_their_tags_are_equal() {
    let registry = Registry::new(open_machine());
    let importer = registry.join(nic()).expect("joins");
    let [a, b] = [(); 2].map(|()| registry.join_pagemap(spec()).expect("joins"));
    let snapshot = registry.snapshot();
    for (first, second, third) in [(0, 1, 0), (1, 64, 63), (64, 1, 65), (127, 128, 129), (300, 0, 1)] {
        let mut tags = vec![a.tag(); first];
        tags.extend(vec![b.tag(); second]);
        tags.extend(vec![PageTag::SYSTEM; third]);
        let found: Vec<_> =
            snapshot.resolve(importer.id(), &tags).map(|run| (run.tag, run.pages.len())).collect();
        let expected = [(a.tag(), first), (b.tag(), second), (PageTag::SYSTEM, third)];
        let expected: Vec<_> = expected.into_iter().filter(|(_, len)| *len > 0).collect();
        assert_eq!(found, expected);
    }
    assert_eq!(snapshot.resolve(importer.id(), &[]).count(), 0);
}

#[test]
fn revoked_memory_is_nowhere_at_once_and_back_when_it_is_rearmed() {
    let registry = Registry::new(open_machine());
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    let importer = registry.join(nic()).expect("joins");
    let before = registry.snapshot();
    let heard = causes(&registry);
    pagemap.revoke();
    let tags = [pagemap.tag()];
    for snapshot in [&before, &registry.snapshot()] {
        let run = snapshot.resolve(importer.id(), &tags).next().expect("one page");
        assert_eq!((run.decision.route, run.decision.p2p), (Route::System, Some(false)));
        assert_eq!(snapshot.explain(pagemap.id(), importer.id()).reasons, [Reason::Revoked]);
    }
    let latecomer = registry.join(nic()).expect("joins");
    assert_eq!(registry.decision(pagemap.id(), latecomer.id()).route, Route::System);
    pagemap.rearm();
    for importer in [&importer, &latecomer] {
        assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::HostBridge);
    }
    let heard = heard.take();
    assert!(heard.contains(&Cause::Revoked(pagemap.id())) && heard.contains(&Cause::Rearmed(pagemap.id())));
}

/// What a subscriber hears.
struct Heard {
    causes: Arc<Mutex<Vec<Cause>>>,
    _subscription: devpagemap::pagemap::Subscription,
}

impl Heard {
    fn take(&self) -> Vec<Cause> {
        std::mem::take(&mut self.causes.lock().expect("nobody panicked"))
    }
}

fn causes(registry: &Registry) -> Heard {
    let causes = Arc::new(Mutex::new(Vec::new()));
    let kept = causes.clone();
    let subscription =
        registry.subscribe(move |update| kept.lock().expect("nobody panicked").push(update.cause.clone()));
    Heard { causes, _subscription: subscription }
}

#[test]
fn subscribers_hear_of_every_change_and_may_use_the_registry() {
    let registry = Registry::unknown();
    let heard = causes(&registry);
    let inner = registry.clone();
    let _subscription = registry.subscribe(move |update| {
        assert!(inner.generation() >= update.snapshot.generation());
        if matches!(update.cause, Cause::PagemapJoined(_)) {
            drop(inner.join(Profile::dynamic()).expect("a subscriber may join"));
        }
    });
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    registry.set_machine(closed_machine());
    registry.set_rules(KernelRules::default());
    let seen = Observation::new(address(GPU), address(NIC), Observed::PeerAccess(true));
    registry.observe(seen.clone());
    let id = pagemap.id();
    pagemap.leave();
    let heard = heard.take();
    let expected =
        [Cause::PagemapJoined(id), Cause::Machine, Cause::Rules, Cause::Observed(seen), Cause::Left];
    let heard: Vec<_> =
        heard.into_iter().filter(|cause| !matches!(cause, Cause::ImporterJoined(_))).collect();
    assert_eq!(heard, expected);
    assert!(!Cause::Left.changes_decisions() && Cause::Machine.changes_decisions());
}

#[test]
fn a_subscription_that_is_dropped_hears_no_more() {
    let registry = Registry::unknown();
    let heard = causes(&registry);
    let kept = heard.causes.clone();
    drop(heard);
    registry.set_machine(open_machine());
    assert!(kept.lock().expect("nobody panicked").is_empty());
}

#[test]
fn another_machine_is_another_decision_for_all_and_forgets_what_was_seen_of_other_ways() {
    let registry = Registry::unknown();
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    let importer = registry.join(nic()).expect("joins");
    let now = || registry.decision(pagemap.id(), importer.id());
    assert_eq!(now().route, Route::Declared);
    registry.set_machine(open_machine());
    assert_eq!(now().route, Route::HostBridge);
    let refuse = Observed::PeerAccess(false);
    registry.observe(Observation::new(address(GPU), address(NIC), refuse));
    assert_eq!(now().route, Route::Staging);
    registry.set_machine(open_machine());
    assert_eq!(now().route, Route::Staging, "nothing has changed between the two");
    let mut sketch = Sketch::new(ZEN);
    let host = sketch.host(sketch.package, None);
    sketch.switch(host, 0, OFF, &[GPU, NIC]);
    registry.set_machine(sketch.build());
    assert_eq!(now().route, Route::Switch, "it was seen of another way");
    registry.set_machine(Sketch::new(ZEN).build());
    assert_eq!((now().route, now().p2p), (Route::Staging, None), "both are unplugged");
}

#[test]
fn observations_of_those_who_are_nowhere_go_by_who_they_are() {
    let registry = Registry::unknown();
    let (gpu, other) = (Owner::new("gpu"), Owner::new("gpu"));
    let mine = registry.join_pagemap(PagemapSpec::visible(&gpu)).expect("joins");
    let theirs = registry.join_pagemap(PagemapSpec::visible(&other)).expect("joins");
    let importer = registry.join(Profile::dynamic()).expect("joins");
    registry.observe(Observation::new(&gpu, importer.id(), Observed::PeerAccess(false)));
    assert_eq!(registry.decision(mine.id(), importer.id()).route, Route::Staging);
    assert_eq!(registry.decision(theirs.id(), importer.id()).route, Route::Declared);
    let next = registry.join_pagemap(PagemapSpec::visible(&gpu)).expect("joins");
    assert_eq!(registry.decision(next.id(), importer.id()).route, Route::Staging, "its other pagemap too");
}

#[test]
fn what_was_seen_can_be_forgotten_and_goes_with_those_who_have_no_address() {
    let registry = Registry::unknown();
    let gpu = Owner::new("gpu");
    let mine = registry.join_pagemap(PagemapSpec::visible(&gpu)).expect("joins");
    let importer = registry.join(Profile::dynamic()).expect("joins");
    let route = |importer| registry.decision(mine.id(), importer).route;
    let refused = |importer| Observation::new(&gpu, importer, Observed::PeerAccess(false));
    registry.observe(refused(importer.id()));
    assert_eq!(route(importer.id()), Route::Staging);
    registry.forget(&gpu, importer.id());
    assert_eq!(route(importer.id()), Route::Declared);
    registry.observe(refused(importer.id()));
    let heard = causes(&registry);
    importer.leave();
    assert_eq!(heard.take(), [Cause::Left]);
    let next = registry.join(Profile::dynamic()).expect("joins");
    assert_eq!(route(next.id()), Route::Declared, "it is somebody else, in the same slot");
}

#[test]
fn a_subscriber_that_panics_keeps_nobody_else_from_hearing() {
    let registry = Registry::unknown();
    let _fragile = registry.subscribe(|_| panic!("as it was told"));
    let heard = causes(&registry);
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    assert_eq!(heard.take(), [Cause::PagemapJoined(pagemap.id())]);
}

#[test]
fn a_reader_sees_what_has_happened_before_it_looks() {
    let registry = Registry::new(open_machine());
    let pagemap = registry.join_pagemap(spec()).expect("joins");
    let importer = registry.join(nic()).expect("joins");
    let mut reader = registry.reader();
    assert_eq!(reader.decision(pagemap.id(), importer.id()).route, Route::HostBridge);
    registry.set_machine(closed_machine());
    assert_eq!(reader.decision(pagemap.id(), importer.id()).route, Route::Staging);
    assert_eq!(reader.snapshot().generation(), registry.generation());
}

#[test]
fn handles_may_be_dropped_inside_a_fences_callback() {
    let registry = Registry::unknown();
    let handles = (
        registry.join_pagemap(PagemapSpec::visible(&Owner::new("gpu"))).expect("joins"),
        registry.join(Profile::dynamic()).expect("joins"),
    );
    let (pagemap, importer) = (handles.0.id(), handles.1.id());
    let timeline = Timeline::new("ring");
    let callback = timeline.next_point().on_signal(move |_| drop(handles));
    timeline.signal(1);
    drop(callback);
    assert_eq!(registry.decision(pagemap, importer).route, Route::Refused);
    registry.set_machine(open_machine());
    assert_eq!(registry.snapshot().pagemaps().count(), 0);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let registry = Registry::unknown();
    let gpu = Owner::new("gpu");
    let generation = registry.generation();
    for spec in [
        PagemapSpec::visible(&gpu).len(Size::bytes(0)),
        PagemapSpec::visible(&gpu).len(Size::bytes(u64::MAX)).bus_start(4096),
    ] {
        let error = registry.join_pagemap(spec).expect_err("it cannot be");
        assert!(matches!(error, Error::InvalidPagemap { .. }), "{error}");
        assert!(error.to_string().contains("gpu"), "{error}");
    }
    for bits in [0, 65] {
        let error = registry.join(Profile::dynamic().dma_mask_bits(bits)).expect_err("it cannot be");
        assert!(matches!(error, Error::InvalidImporter { .. }), "{error}");
    }
    assert_eq!(registry.generation(), generation);
}

/// Rules that panic when they are asked, as long as they are told to.
#[derive(Debug)]
struct Fragile(Arc<std::sync::atomic::AtomicBool>);

impl Rules for Fragile {
    fn through_host_bridge(&self, crossing: &Crossing<'_>) -> Verdict {
        assert!(!self.0.load(std::sync::atomic::Ordering::Relaxed), "as it was told");
        KernelRules::default().through_host_bridge(crossing)
    }
}

#[test]
fn rules_that_panic_leave_the_registry_as_it_was() {
    let panics = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let registry = Registry::new(open_machine()).rules(Fragile(panics.clone()));
    let importer = registry.join(nic()).expect("joins");
    drop(registry.join_pagemap(spec()).expect("joins"));
    let generation = registry.generation();
    panics.store(true, std::sync::atomic::Ordering::Relaxed);
    let joining = std::panic::AssertUnwindSafe(|| registry.join_pagemap(spec()));
    assert!(std::panic::catch_unwind(joining).is_err());
    panics.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(registry.generation() <= generation + 1, "who had left was swept, and nothing else");
    let [one, other] = [(); 2].map(|()| registry.join_pagemap(spec()).expect("joins"));
    assert_ne!(one.tag(), other.tag());
    for pagemap in [&one, &other] {
        assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::HostBridge);
    }
    assert_eq!(registry.snapshot().pagemaps().count(), 2);
}
