//! NCCL's and RCCL's XML.

use devpagemap::topology::{CpuVendor, LinkKind, Machine, NodeKind, PciIds, PortKind};

use crate::{at, function, label};

/// Two GPUs and an adapter below a made-up switch, linked through an NVSwitch; a GPU beside them; one on another CPU.
const CLOUD: &str = r#"<!-- made by hand -->
<system version="1">
 <cpu numaid="0" affinity="00ff" arch="x86_64" vendor="AuthenticAMD" familyid="143" modelid="49">
  <pci busid="ffff:ff:01.0" class="0x060400" vendor="0xffff" device="0xffff" link_speed="16 GT/s" link_width="16">
   <pci busid="0000:10:1c.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="32.0 GT/s PCIe" link_width="16">
    <gpu dev="0" sm="90" rank="0" gdr="1">
     <nvlink target="0000:1c:00.0" count="5" tclass="0x068000"/>
     <nvlink target="0000:1b:00.0" count="4" tclass="0x068000"/>
    </gpu>
   </pci>
   <pci busid="0000:11:1c.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="32.0 GT/s PCIe" link_width="16">
    <gpu dev="1" sm="90" rank="1" gdr="1">
     <nvlink target="0000:1b:00.0" count="4" tclass="0x068000"/>
     <nvlink target="0000:1c:00.0" count="5" tclass="0x068000"/>
    </gpu>
   </pci>
   <pci busid="0000:12:00.0" class="0x020700" vendor="0x15b3" device="0x101b" link_speed="16.0 GT/s PCIe" link_width="16">
    <nic><net name="mlx5_0" dev="0" speed="200000" port="1" guid="0xd041" maxconn="262144" gdr="1"/></nic>
   </pci>
  </pci>
  <pci busid="0000:20:00.0" class="0x038000" vendor="0x1002" device="0x740c" link_speed="Unknown speed" link_width="16">
   <gpu dev="2" sm="104" gcn="910" arch="38911" rank="2" gdr="1">
    <xgmi target="0000:30:00.0" count="4" tclass="0x038000"/>
   </gpu>
  </pci>
 </cpu>
 <cpu numaid="1" arch="x86_64" vendor="AuthenticAMD" familyid="143" modelid="49">
  <pci busid="0000:30:00.0" class="0x038000" vendor="0x1002" device="0x740c" link_speed="16 GT/s" link_width="8">
   <gpu dev="3" sm="104" gcn="910" rank="3" gdr="1"><c2c bw="45000" count="10"/></gpu>
  </pci>
 </cpu>
</system>
"#;

fn read(xml: &str) -> Result<Machine, String> {
    Machine::from_nccl(xml.as_bytes(), "n.xml").map_err(|error| error.to_string())
}

fn refusal(from: &str, to: &str) -> String {
    assert!(CLOUD.contains(from), "{from}");
    read(&CLOUD.replacen(from, to, 1)).expect_err("it is wrong")
}

#[test]
fn cpus_are_numa_nodes_and_a_listed_bridge_is_a_whole_switch() {
    let machine = read(CLOUD).unwrap();
    let gpu = at(&machine, "10:1c.0");
    assert_eq!(machine.numa_of(gpu), Some(0));
    let cpu = machine.cpu_of(gpu).unwrap();
    assert_eq!((&cpu.vendor, cpu.family, cpu.model), (&Some(CpuVendor::Amd), Some(0x17), Some(49)));
    let switch = machine.node(gpu).parent.unwrap();
    let invented = machine.node(switch).function().unwrap();
    assert_eq!(
        (invented.address, invented.ids, machine.port_kind(switch)),
        (None, None, Some(PortKind::Switch))
    );
    let root = machine.node(machine.host_bridge_of(gpu).unwrap());
    assert_eq!(root.kind, NodeKind::HostBridge { bus: None, ids: None });
    assert_eq!(function(&machine, "10:1c.0").ids, Some(PciIds { vendor: 0x10de, device: 0x2330 }));
    assert_eq!(label(&machine, "10:1c.0", "12:00.0"), "PIX");
    assert_eq!(label(&machine, "10:1c.0", "20:00.0"), "PHB");
    assert_eq!(label(&machine, "10:1c.0", "30:00.0"), "SYS");
}

#[test]
fn devices_have_the_names_that_the_file_gives() {
    let machine = read(CLOUD).unwrap();
    assert_eq!(machine.named("gpu1").collect::<Vec<_>>(), [at(&machine, "11:1c.0")]);
    assert_eq!(machine.named("mlx5_0").collect::<Vec<_>>(), [at(&machine, "12:00.0")]);
}

#[test]
fn a_link_is_as_fast_as_speed_and_width_say_and_unknown_without() {
    let machine = read(CLOUD).unwrap();
    assert_eq!(function(&machine, "12:00.0").link.bytes_per_s, Some(31_507_692_307));
    assert_eq!(function(&machine, "30:00.0").link.bytes_per_s, Some(15_753_846_153));
    assert_eq!(function(&machine, "20:00.0").link.bytes_per_s, None);
}

#[test]
fn private_links_go_through_switches_one_way_and_to_the_cpu() {
    let machine = read(CLOUD).unwrap();
    let of = |from: &str, to: &str| machine.link_between(at(&machine, from), at(&machine, to)).copied();
    let switched = of("10:1c.0", "11:1c.0").unwrap();
    assert_eq!(
        (switched.kind, switched.count, switched.bytes_per_s),
        (LinkKind::NvLink, 9, Some(225_000_000_000))
    );
    assert_eq!(label(&machine, "11:1c.0", "10:1c.0"), "NV9");
    let one_way = of("20:00.0", "30:00.0").unwrap();
    assert_eq!(
        (one_way.kind, one_way.count, one_way.bytes_per_s),
        (LinkKind::Xgmi, 4, Some(200_000_000_000))
    );
    assert_eq!(of("30:00.0", "20:00.0"), None, "the file says it in one direction");
    let to_cpu = machine.links_from(at(&machine, "30:00.0"));
    assert_eq!(to_cpu.iter().map(|link| link.bytes_per_s).collect::<Vec<_>>(), [Some(450_000_000_000)]);
    assert_eq!(machine.node(to_cpu[0].to).kind, NodeKind::Numa(1));
}

#[test]
fn a_machine_without_numa_nodes_is_read() {
    let machine = read(&CLOUD.replacen("numaid=\"0\"", "numaid=\"-1\"", 1)).unwrap();
    assert_eq!(machine.numa_of(at(&machine, "10:1c.0")), None);
}

#[test]
fn an_end_point_keeps_an_address_that_a_switch_claims_too() {
    let switch = CLOUD.replacen("ffff:ff:01.0", "0000:20:00.0", 1);
    let machine = read(&switch).unwrap();
    assert!(function(&machine, "20:00.0").is_gpu());
    let note =
        "n.xml:4: 0000:20:00.0: a device is there too, and has it: the address of the switch is unknown";
    assert_eq!(machine.notes()[0].to_string(), note);
    let below_itself = CLOUD.replacen("ffff:ff:01.0", "0000:12:00.0", 1);
    assert_eq!(read(&below_itself).unwrap_err(), "n.xml:17: 0000:12:00.0 is there twice");
}

#[test]
fn elements_of_newer_versions_are_passed_over() {
    let more = "<gpu dev=\"1\" sm=\"90\"><future><nvlink target=\"nowhere\" count=\"0\"/></future>";
    assert!(read(&CLOUD.replacen("<gpu dev=\"1\" sm=\"90\" rank=\"1\" gdr=\"1\">", more, 1)).is_ok());
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for (from, to, line, reason) in [
        ("0000:11:1c.0", "0000:10:1c.0", 11, "0000:10:1c.0 is there twice"),
        ("0000:30:00.0\" class", "ffff:ff:01.0\" class", 28, "ffff:ff:01.0 is there twice"),
        ("dev=\"3\"", "dev=\"1\"", 29, "gpu 1 is there twice"),
        ("numaid=\"1\"", "numaid=\"0\"", 27, "NUMA node 0 is there twice"),
        ("numaid=\"1\"", "numaid=\"-2\"", 27, "neither a number of a NUMA node nor -1"),
        (
            "target=\"0000:30:00.0\"",
            "target=\"0000:31:00.0\"",
            23,
            "a link to 0000:31:00.0, which is not in the file",
        ),
        ("target=\"0000:30:00.0\"", "target=\"0000:20:00.0\"", 23, "a link from a device to itself"),
        ("target=\"0000:30:00.0\"", "target=\"there\"", 23, "`there` is no PCI address"),
        ("target=\"0000:30:00.0\"", "", 23, "<xgmi> has no `target`"),
        ("count=\"4\" tclass=\"0x038000\"", "count=\"0\" tclass=\"0x038000\"", 23, "a link of 0 lanes"),
        ("count=\"4\" tclass=\"0x038000\"", "count=\"4294967296\"", 23, "count=\"4294967296\" is no number"),
        ("count=\"5\"", "count=\"4294967295\"", 7, "a link of 4294967295 lanes"),
        ("link_width=\"8\"", "link_width=\"0\"", 28, "link_width=\"0\" is no width"),
        ("link_width=\"8\"", "link_width=\"-8\"", 28, "is no width of a link"),
        ("0x020700", "0x1020700", 17, "is no PCI class"),
        ("vendor=\"0x15b3\"", "vendor=\"mellanox\"", 17, "is no PCI id"),
        ("busid=\"0000:12:00.0\"", "busid=\"0000:12:00.8\"", 17, "is no PCI address"),
        ("busid=\"0000:12:00.0\"", "", 17, "<pci> has no `busid`"),
        ("familyid=\"143\"", "familyid=\"zen\"", 3, "is no CPU family"),
        ("class=\"0x060400\"", "class=\"0x030000\"", 5, "below a device that is no bridge"),
        ("<nic>", "<nic><pci busid=\"0000:13:00.0\"/>", 18, "a <pci> where none can be"),
        ("</system>", "", 33, "the file ends inside the element that line 2 begins"),
    ] {
        let message = refusal(from, to);
        assert!(
            message.starts_with(&format!("n.xml:{line}: ")) && message.contains(reason),
            "{to}: {message}"
        );
    }
}

#[test]
fn a_file_of_another_kind_is_refused_by_name() {
    let message = read("<topology/>").unwrap_err();
    assert_eq!(message, "n.xml:1: the root element is <topology>; NCCL's XML has <system>");
    assert_eq!(read("<system/>").unwrap_err(), "n.xml:1: there is no cpu in it");
}

#[test]
fn a_machine_of_10_000_levels_is_refused_with_its_line() {
    let pcis = (0..10_000).map(|n| format!("<pci busid=\"{n:x}:00:00.0\" class=\"0x060400\">\n"));
    let deep = format!("<system>\n<cpu numaid=\"0\">\n{}", pcis.collect::<String>());
    assert_eq!(read(&deep).unwrap_err(), "n.xml:1001: elements are nested more than 1000 levels deep");
}

#[test]
fn more_links_than_a_machine_has_are_refused() {
    let gpus = (0..4_000).map(|n| {
        format!(
            "<pci busid=\"{n:x}:00:00.0\" class=\"0x030200\"><gpu><nvlink target=\"s\" count=\"1\" tclass=\"0x068000\"/></gpu></pci>\n"
        )
    });
    let message = read(&format!("<system><cpu>{}</cpu></system>", gpus.collect::<String>())).unwrap_err();
    assert_eq!(message, "n.xml:1: more than 8388608 pairs of devices are linked by switches");
}
