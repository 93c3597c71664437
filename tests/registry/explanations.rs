//! What is said when somebody asks why.

use devpagemap::pagemap::{
    Observation, Observed, Owner, PagemapSpec, Policy, Profile, Reason, Registry, Remedy, Route,
};
use devpagemap::topology::Machine;

use crate::sketch::{NOBODY, OFF, ON, Sketch, UNLISTED, XEON, ZEN, address, gen4};

const GPU: &str = "03:00.0";
const NIC: &str = "41:00.0";

/// The GPU is below a switch, the NIC in a slot of the same host bridge.
fn switch_and_slot() -> Machine {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    sketch.switch(host, 0x3c, OFF, &[GPU]);
    sketch.slot(host, "40:01.0", NIC);
    sketch.build()
}

fn below_one_switch(acs: Option<devpagemap::topology::Acs>) -> Machine {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    sketch.switch(host, 0, acs, &[GPU, NIC]);
    sketch.build()
}

fn explained(registry: &Registry, spec: PagemapSpec, profile: Profile) -> devpagemap::pagemap::Explanation {
    let pagemap = registry.join_pagemap(spec).expect("joins");
    let importer = registry.join(profile).expect("joins");
    registry.explain(pagemap.id(), importer.id())
}

fn gpu() -> Owner {
    Owner::at(address(GPU))
}

fn nic() -> Profile {
    Profile::pinned().at(address(NIC))
}

#[test]
fn why_a_card_is_staged_is_one_line() {
    let registry = Registry::new(switch_and_slot());
    let explanation = explained(&registry, PagemapSpec::visible(&gpu()), nic().policy(Policy::Preferred));
    assert_eq!(
        explanation.to_string(),
        "staging, 15.8 GB/s: 0000:41:00.0 reaches 0000:03:00.0 only through the host bridge 8086:3420, which is not \
         known to forward peer traffic; behind the switch 0000:3d:00.0 it would be p2p at 31.5 GB/s"
    );
    assert_eq!(
        (explanation.exporter.as_str(), explanation.importer.as_str()),
        ("0000:03:00.0", "0000:41:00.0")
    );
}

#[test]
fn all_that_stands_in_the_way_is_named_at_once() {
    let registry = Registry::new(switch_and_slot());
    let importer = nic().system_only().dma_mask_bits(32).policy(Policy::Forbidden);
    let explanation = explained(&registry, PagemapSpec::hidden(&gpu()), importer);
    let expected = [Reason::Forbidden, Reason::NotPeerCapable, Reason::Hidden];
    assert_eq!(explanation.reasons[..3], expected);
    assert!(matches!(explanation.reasons[3], Reason::HostBridgeNotListed { ids: UNLISTED }));
    let Some(Reason::Would { remedies, route, .. }) = explanation.reasons.last() else {
        panic!("{explanation}");
    };
    assert_eq!(*route, Route::Switch);
    let switch = Some(address("3d:00.0"));
    assert_eq!(
        *remedies,
        [
            Remedy::AnotherPolicy,
            Remedy::PeerCapable,
            Remedy::LargerBar,
            Remedy::BelowSwitch { switch },
            // Where a larger BAR would be, nobody can say.
            Remedy::Known,
        ]
    );
}

#[test]
fn redirection_is_blamed_on_the_port_that_does_it() {
    let registry = Registry::new(below_one_switch(ON));
    let text = explained(&registry, PagemapSpec::visible(&gpu()), nic()).to_string();
    assert_eq!(
        text,
        "staging, 15.8 GB/s: the port 0000:02:00.0 sends peer traffic up to the host bridge; 0000:41:00.0 reaches \
         0000:03:00.0 only through the host bridge 8086:3420, which is not known to forward peer traffic; without \
         redirection by ACS at 0000:02:00.0 it would be p2p at 31.5 GB/s"
    );
}

#[test]
fn what_is_not_known_is_said_to_be_not_known() {
    let registry = Registry::new(below_one_switch(None));
    let explanation = explained(&registry, PagemapSpec::visible(&gpu()), nic());
    assert!(explanation.reasons.iter().any(Reason::is_unknown), "{explanation}");
    assert!(
        explanation
            .to_string()
            .ends_with("if what is not known turned out well it would be p2p at 31.5 GB/s")
    );

    let mut sketch = Sketch::new(NOBODY);
    let host = sketch.host(sketch.package, None);
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    let explanation = explained(&Registry::new(sketch.build()), PagemapSpec::visible(&gpu()), nic());
    assert_eq!(explanation.decision.p2p, None);
    assert!(explanation.to_string().contains("it is not known which that is"), "{explanation}");
}

#[test]
fn a_good_route_has_its_reason_too() {
    let registry = Registry::new(below_one_switch(OFF));
    let explanation = explained(&registry, PagemapSpec::visible(&gpu()), nic());
    assert_eq!(
        explanation.to_string(),
        "p2p below a switch, 31.5 GB/s: 0000:41:00.0 and 0000:03:00.0 are both below the switch 0000:01:00.0"
    );
    let mut sketch = Sketch::new(ZEN);
    let host = sketch.host(sketch.package, None);
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    sketch.link(NIC, GPU, 50_000_000_000);
    let registry = Registry::new(sketch.build());
    assert_eq!(
        explained(&registry, PagemapSpec::visible(&gpu()), nic()).to_string(),
        "private link, 50.0 GB/s: 0000:41:00.0 reaches 0000:03:00.0 over NVLink x4"
    );
    let back = explained(
        &registry,
        PagemapSpec::visible(&Owner::at(address(NIC))),
        Profile::dynamic().at(address(GPU)),
    );
    assert_eq!(
        back.to_string(),
        "p2p through the host bridge, 31.5 GB/s: the NVLink between the two carries no requests of 0000:03:00.0; \
         the host bridges of an AMD CPU of family 0x17 forward peer traffic"
    );
}

#[test]
fn who_requires_p2p_and_cannot_have_it_is_told_that_nothing_else_will_do() {
    let registry = Registry::new(switch_and_slot());
    let explanation = explained(&registry, PagemapSpec::visible(&gpu()), nic().policy(Policy::Required));
    assert_eq!(explanation.decision.route, Route::Refused);
    assert!(explanation.reasons.contains(&Reason::NothingElseWillDo));
    assert!(explanation.to_string().starts_with("refused: "), "{explanation}");
    assert!(explanation.to_string().ends_with("behind the switch 0000:3d:00.0 it would be p2p at 31.5 GB/s"));
}

#[test]
fn measured_rates_are_named() {
    let registry = Registry::new(below_one_switch(OFF));
    for what in [Observed::P2pRate(9_900_000_000), Observed::StagingRate(22_140_000_000)] {
        registry.observe(Observation::new(address(GPU), address(NIC), what));
    }
    assert_eq!(
        explained(&registry, PagemapSpec::visible(&gpu()), nic()).to_string(),
        "staging, 22.1 GB/s: 0000:41:00.0 and 0000:03:00.0 are both below the switch 0000:01:00.0; peer-to-peer access \
         was measured at 9.9 GB/s, staging at 22.1 GB/s; with another policy it would be p2p at 9.9 GB/s"
    );
}

#[test]
fn names_are_those_that_were_given() {
    let registry = Registry::unknown();
    let explanation = explained(
        &registry,
        PagemapSpec::visible(&Owner::new("gpu0")),
        Profile::dynamic().named("encoder").system_only(),
    );
    assert_eq!(
        explanation.to_string(),
        "staging: encoder can use nothing but system memory; if encoder could use bus addresses it would be p2p"
    );
    assert_eq!(explanation.sentences().len(), 2);
}

#[test]
fn a_narrow_link_is_what_can_be_expected() {
    let mut sketch = Sketch::new(ZEN);
    let host = sketch.host(sketch.package, None);
    sketch.slot(host, "00:01.0", GPU);
    let narrow = devpagemap::topology::Function {
        address: Some(address(NIC)),
        acs: OFF,
        link: gen4(4),
        ..Default::default()
    };
    sketch.add(host, devpagemap::topology::NodeKind::Function(narrow));
    let registry = Registry::new(sketch.build());
    let p2p = explained(&registry, PagemapSpec::visible(&gpu()), nic()).decision;
    assert_eq!(p2p.bandwidth_bytes_per_s, gen4(4).bytes_per_s);
    let staged = explained(&registry, PagemapSpec::visible(&gpu()), nic().policy(Policy::Forbidden)).decision;
    let (wide, narrow) =
        (gen4(16).bytes_per_s.expect("16 lanes") as f64, gen4(4).bytes_per_s.expect("4") as f64);
    let expected = 1.0 / (1.0 / wide + 1.0 / narrow);
    let rate = staged.bandwidth_bytes_per_s.expect("both links are known") as f64;
    assert!((rate - expected).abs() < 2.0, "{rate} for {expected}");
}
