//! hwloc's XML.

use devpagemap::topology::{CpuVendor, Machine, NodeKind, PciIds};

use crate::{at, function, label};

/// Two packages; in the first a switch with two GPUs and an NVSwitch that they share, in the second an adapter.
const TWO_GPUS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0">
 <object type="Machine" os_index="0" gp_index="1">
  <object type="Package" os_index="0" gp_index="2">
   <info name="CPUVendor" value="GenuineIntel"/>
   <info name="CPUFamilyNumber" value="6"/>
   <object type="NUMANode" os_index="0" gp_index="3"/>
   <object type="Bridge" gp_index="4" bridge_type="0-1" bridge_pci="0000:[2b-36]">
    <object type="Bridge" gp_index="5" bridge_type="1-1" bridge_pci="0000:[2c-36]" pci_busid="0000:2b:00.0" pci_type="0604 [8086:2030] [8086:0000] 04 00" pci_link_speed="15.753846">
     <object type="Bridge" gp_index="6" bridge_type="1-1" bridge_pci="0000:[2d-36]" pci_busid="0000:2c:00.0" pci_type="0604 [10b5:9781] [10b5:9781] b0 00" pci_link_speed="15.753846">
      <object type="Bridge" gp_index="7" bridge_type="1-1" bridge_pci="0000:[34-34]" pci_busid="0000:2d:00.0" pci_type="0604 [10b5:9781] [10b5:9781] b0 00" pci_link_speed="15.753846">
       <object type="PCIDev" gp_index="8" pci_busid="0000:34:00.0" pci_type="0302 [10de:1db8] [10de:131d] a1 00" pci_link_speed="15.753846">
        <object type="OSDev" gp_index="9" name="nvml0" osdev_type="12"/>
       </object></object>
      <object type="Bridge" gp_index="10" bridge_type="1-1" bridge_pci="0000:[36-36]" pci_busid="0000:2d:10.0" pci_type="0604 [10b5:9781] [10b5:9781] b0 00" pci_link_speed="7.876923">
       <object type="PCIDev" gp_index="11" pci_busid="0000:36:00.0" pci_type="0302 [10de:1db8] [10de:131d] a1 00" pci_link_speed="0.000000">
        <object type="OSDev" gp_index="12" name="nvml1" osdev_type="12"><info name="RSMIVRAMSize" value="1024KiB"/><info name="RSMIVisibleVRAMSize" value="256"/></object>
       </object></object>
      <object type="PCIDev" gp_index="13" subtype="NVSwitch" pci_busid="0000:2d:1c.0" pci_type="0680 [10de:1ac2] [0000:0000] a1 00" pci_link_speed="1.000000"/>
     </object></object></object>
  </object>
  <object type="Package" os_index="1" gp_index="20">
   <info name="CPUVendor" value="GenuineIntel"/>
   <object type="NUMANode" os_index="1" gp_index="21"/>
   <object type="Bridge" gp_index="22" bridge_type="0-1" bridge_pci="0000:[80-81]">
    <object type="PCIDev" gp_index="23" pci_busid="0000:81:00.0" pci_type="0207 [15b3:101b] [15b3:0006] 00" pci_link_speed="15.753846">
     <object type="OSDev" gp_index="24" name="mlx5_0" osdev_type="3"/>
    </object></object>
  </object>
 </object>
 <distances2hetero nbobjs="3" kind="25" name="NVLinkBandwidth">
  <indexes length="30">OSDev:9 OSDev:12 </indexes>
  <indexes length="30">PCIDev:13 </indexes>
  <u64values length="10">1000000 0 150000 </u64values>
  <u64values length="10">0 1000000 75000 150000 50000 0</u64values>
 </distances2hetero>
</topology>
"#;

fn read(xml: &str) -> Result<Machine, String> {
    Machine::from_hwloc(xml.as_bytes(), "m.xml").map_err(|error| error.to_string())
}

/// The message for `TWO_GPUS` with one text replaced by another.
fn refusal(from: &str, to: &str) -> String {
    assert!(TWO_GPUS.contains(from), "{from}");
    read(&TWO_GPUS.replacen(from, to, 1)).expect_err("it is wrong")
}

#[test]
fn the_tree_is_read_with_packages_memory_and_every_bridge() {
    let machine = read(TWO_GPUS).unwrap();
    let gpu = at(&machine, "34:00.0");
    assert_eq!(machine.named("nvml0").collect::<Vec<_>>(), [gpu]);
    assert_eq!(
        machine.upwards(gpu).count(),
        8,
        "port, port, root port, host bridge, NUMA node, package, machine"
    );
    assert_eq!((machine.numa_of(gpu), function(&machine, "34:00.0").numa), (Some(0), Some(0)));
    let cpu = machine.cpu_of(gpu).unwrap();
    assert_eq!((&cpu.vendor, cpu.family, cpu.model), (&Some(CpuVendor::Intel), Some(6), None));
    let root = machine.host_bridge_of(gpu).unwrap();
    let NodeKind::HostBridge { bus, ids } = machine.node(root).kind else { panic!("a host bridge") };
    assert_eq!(bus.map(|bus| bus.to_string()), Some("pci0000:2b".to_string()));
    assert_eq!(ids, Some(PciIds { vendor: 0x8086, device: 0x2030 }), "the root port at 00.0 stands for it");
    assert!(function(&machine, "34:00.0").is_gpu() && function(&machine, "81:00.0").is_nic());
    assert_eq!(machine.notes(), []);
}

#[test]
fn speeds_are_read_and_what_a_file_lacks_is_unknown() {
    let machine = read(TWO_GPUS).unwrap();
    let gpu = function(&machine, "34:00.0");
    assert_eq!(gpu.link.bytes_per_s, Some(15_753_846_000));
    assert_eq!((gpu.acs, &gpu.bars, gpu.atomics, gpu.vram), (None, &None, None, None));
    let other = function(&machine, "36:00.0");
    assert_eq!(other.link.bytes_per_s, None, "0 stands for unknown");
    let vram = other.vram.unwrap();
    assert_eq!((vram.total_bytes, vram.visible_bytes), (1 << 20, Some(256 << 10)));
}

#[test]
fn the_way_through_an_nvswitch_is_one_link_as_wide_as_its_narrower_side() {
    let machine = read(TWO_GPUS).unwrap();
    let links: Vec<_> = machine.links().iter().map(|link| (link.count, link.bytes_per_s)).collect();
    assert_eq!(links, [(2, Some(50_000_000_000)), (3, Some(75_000_000_000))]);
    assert_eq!(label(&machine, "34:00.0", "36:00.0"), "NV2");
    assert_eq!(label(&machine, "36:00.0", "34:00.0"), "NV3");
    assert_eq!(label(&machine, "34:00.0", "2d:1c.0"), "PIX");
    assert_eq!(label(&machine, "34:00.0", "81:00.0"), "SYS");
}

#[test]
fn version_1_nests_packages_in_memory_and_devices_in_it() {
    let machine = read(
        r#"<topology><object type="Machine">
        <object type="NUMANode" os_index="0"><object type="Socket" os_index="0"><info name="CPUVendor" value="AuthenticAMD"/></object>
         <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[00-08]">
          <object type="PCIDev" pci_busid="0000:00:02.0" pci_type="0300 [1002:6863] [1002:6b76] 00"><object type="OSDev" name="card0" osdev_type="1"/></object></object></object>
        <object type="NUMANode" os_index="1"><object type="Socket" os_index="1"><info name="CPUVendor" value="GenuineIntel"/></object>
         <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[40-48]">
          <object type="PCIDev" pci_busid="0000:41:00.0" pci_type="0108 [144d:a808] [144d:a801] 00"/></object></object>
        </object></topology>"#,
    )
    .unwrap();
    assert_eq!(machine.cpu_of(at(&machine, "00:02.0")).unwrap().vendor, Some(CpuVendor::Amd));
    assert_eq!(machine.cpu_of(at(&machine, "41:00.0")).unwrap().vendor, Some(CpuVendor::Intel));
    assert_eq!(label(&machine, "00:02.0", "41:00.0"), "SYS");
}

#[test]
fn devices_whose_bridges_were_left_out_have_roots_of_their_own_and_a_note_each() {
    let device = |address: &str| {
        format!(
            "<object type=\"PCIDev\" pci_busid=\"{address}\" pci_type=\"0302 [10de:1db8] [10de:131d] a1 00\"/>\n"
        )
    };
    let machine = read(&format!(
        "<topology version=\"2.0\"><object type=\"Machine\"><object type=\"Package\" os_index=\"0\">\n{}{}</object></object></topology>",
        device("0000:34:00.0"),
        device("0000:36:00.0")
    ))
    .unwrap();
    assert_eq!(label(&machine, "34:00.0", "36:00.0"), "NODE");
    let notes: Vec<String> = machine.notes().iter().map(ToString::to_string).collect();
    let why = "no bridge is above it in the file: how it is connected is unknown";
    assert_eq!(notes, [format!("m.xml:2: {why}"), format!("m.xml:3: {why}")]);
}

#[test]
fn a_device_that_cannot_be_at_its_address_keeps_its_name_and_loses_the_address() {
    let machine = read(&TWO_GPUS.replace("0000:81:00.0", "0000:34:00.0")).unwrap();
    let adapter = machine.named("mlx5_0").next().unwrap();
    assert_eq!(machine.node(adapter).function().unwrap().address, None);
    assert_eq!(machine.named("nvml0").next(), machine.at("34:00.0".parse().unwrap()));
    let note = "m.xml:27: 0000:34:00.0 is not on 0000:[80-81], the buses of the bridge above it: its address is unknown";
    assert_eq!(machine.notes()[0].to_string(), note);
}

#[test]
fn what_is_there_twice_is_refused() {
    assert_eq!(refusal("0000:2d:1c.0", "0000:2d:10.0"), "m.xml:20: 0000:2d:10.0 is there twice");
    assert_eq!(refusal("0000:36:00.0", "0000:34:00.0"), "m.xml:17: 0000:34:00.0 is there twice");
    assert_eq!(refusal("gp_index=\"13\"", "gp_index=\"12\""), "m.xml:20: gp_index=\"12\" is there twice");
    assert_eq!(
        refusal("\"NUMANode\" os_index=\"1\"", "\"NUMANode\" os_index=\"0\""),
        "m.xml:25: NUMA node 0 is there twice"
    );
    assert_eq!(refusal("0000:[80-81]", "0000:[2b-81]"), "m.xml:26: pci0000:2b is there twice");
    let second = refusal(" <distances2hetero", " <object type=\"Machine\"/><distances2hetero");
    assert_eq!(second, "m.xml:32: there is a second machine");
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for (from, to, line, reason) in [
        ("0000:[2c-36]", "0000:[36-2c]", 10, "bridge_pci=\"0000:[36-2c]\" is no range of buses"),
        (
            "0000:[2c-36]",
            "0000:[2b-36]",
            10,
            "the bridge 0000:2b:00.0 is on 0000:[2b-36], the buses below itself",
        ),
        ("0000:34:00.0", "0000:34:20.0", 13, "pci_busid=\"0000:34:20.0\" is no PCI address"),
        ("pci_busid=\"0000:34:00.0\"", "", 13, "a PCI device without `pci_busid`"),
        ("0302 [10de:1db8]", "0302 [10de]", 13, "is no PCI type"),
        ("15.753846", "-15.753846", 10, "pci_link_speed=\"-15.753846\" is no speed in GB/s"),
        ("15.753846", "1e400", 10, "is no speed in GB/s"),
        ("bridge_type=\"0-1\"", "bridge_type=\"2-1\"", 9, "is neither 0-1 nor 1-1"),
        (
            "<object type=\"NUMANode\" os_index=\"0\"",
            "<object type=\"NUMANode\"",
            8,
            "a NUMA node without `os_index`",
        ),
        ("gp_index=\"13\"", "gp_index=\"-13\"", 20, "gp_index=\"-13\" is no number"),
        ("CPUFamilyNumber\" value=\"6\"", "CPUFamilyNumber\" value=\"4294967296\"", 7, "is no number"),
        ("value=\"256\"", "value=\"2048\"", 17, "2097152 bytes of 1048576 bytes of memory are visible"),
        ("value=\"256\"", "value=\"18446744073709551615\"", 18, "is no size in KiB"),
        ("OSDev:12 ", "OSDev:99 ", 32, "OSDev:99 is not in the file"),
        ("OSDev:12 ", "OSDev:x ", 32, "`OSDev:x` is no index"),
        ("nbobjs=\"3\"", "nbobjs=\"0\"", 32, "nbobjs=\"0\" is not from 1 to 1024"),
        ("nbobjs=\"3\"", "nbobjs=\"4\"", 32, "instead of 4 and 16"),
        ("nbobjs=\"3\"", "nbobjs=\"2\"", 32, "more than 2 indexes"),
        ("75000", "18446744073709551615", 32, "a link of 18446744073709551615 MB/s"),
        ("75000", "-75000", 32, "`-75000` is no value"),
        ("</topology>", "", 39, "the file ends inside the element that line 3 begins"),
    ] {
        let message = refusal(from, to);
        assert!(
            message.starts_with(&format!("m.xml:{line}: ")) && message.contains(reason),
            "{to}: {message}"
        );
    }
}

#[test]
fn a_file_of_another_kind_is_refused_by_name() {
    let message = read("<system version=\"1\"/>").unwrap_err();
    assert_eq!(message, "m.xml:1: the root element is <system>; hwloc's XML has <topology>");
    assert_eq!(read("<topology/>").unwrap_err(), "m.xml:1: there is no machine in it");
}

#[test]
fn a_machine_of_10_000_levels_is_refused_with_its_line() {
    let bridges =
        (0..10_000).map(|n| format!("<object type=\"Bridge\" gp_index=\"{n}\" bridge_type=\"0-1\">\n"));
    let deep = format!("<topology version=\"2.0\">\n{}", bridges.collect::<String>());
    assert_eq!(read(&deep).unwrap_err(), "m.xml:1001: elements are nested more than 1000 levels deep");
}
