//! The command as scripts see it: matrix, explanation, JSON, messages, exit status.

use crate::recordings::{Recording, all, one};
use crate::scratch::Scratch;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output, Stdio};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devpagemap"));
    command.args(arguments).env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command can be started")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the command prints text")
}

/// What a command prints that does what it should.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).to_string()
}

/// The message of a command that is refused.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "");
    text(&output.stderr).trim_end().to_string()
}

/// The JSON of a recorded machine.
fn json(recording: &Recording) -> Value {
    let json = printed(&["topo", recording.kind.option(), recording.path(), "--json", "-"]);
    serde_json::from_str(&json).expect("standard output is one JSON object")
}

/// The fields of an object, in the order in which they are printed.
fn field_names(json: &str, indent: usize) -> Vec<String> {
    let starts = format!("\n{}\"", " ".repeat(indent));
    json.split(&starts).skip(1).map(|part| part.split('"').next().unwrap_or_default().to_string()).collect()
}

/// Two GPUs on an Intel CPU and one on an AMD CPU; two adapters below a switch with the first.
const THREE_GPUS: &str = r#"<system version="1">
 <cpu numaid="0" vendor="GenuineIntel" familyid="6" modelid="85">
  <pci busid="0000:3d:00.0" class="0x060400" vendor="0x1000" device="0xc010" link_speed="16 GT/s" link_width="16">
   <pci busid="0000:3f:00.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="16 GT/s" link_width="16"><gpu dev="0" sm="90"/></pci>
   <pci busid="0000:40:00.0" class="0x020700" vendor="0x15b3" device="0x101b" link_speed="16 GT/s" link_width="8"><nic><net name="mlx5_0"/><net name="mlx5_1"/></nic></pci>
   <pci busid="0000:41:00.0" class="0x020700" vendor="0x15b3" device="0x101b" link_speed="16 GT/s" link_width="8"/>
  </pci>
  <pci busid="0000:50:00.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="16 GT/s" link_width="16"><gpu dev="1" sm="90"/></pci>
  <pci busid="0000:51:00.0" class="0x0c0330"/>
 </cpu>
 <cpu numaid="1" vendor="GenuineIntel" familyid="6" modelid="85">
  <pci busid="0000:80:00.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="16 GT/s" link_width="16"><gpu dev="2" sm="90"/></pci>
 </cpu>
</system>
"#;

#[test]
fn every_recorded_machine_has_a_decision_for_each_gpu_and_device() {
    for recording in all() {
        let json = json(&recording);
        let devices = json["devices"].as_array().unwrap();
        let placed = |device: &&Value| device["name"].as_str().unwrap().contains(':');
        let names: BTreeSet<&str> =
            devices.iter().filter(placed).map(|device| device["name"].as_str().unwrap()).collect();
        let gpus = devices.iter().filter(|device| device["kind"] == "gpu").count();
        let decisions = json["decisions"].as_array().unwrap();
        assert!(gpus >= 2 && decisions.len() == gpus * names.len(), "{}", recording.name);
        let mut seen = BTreeSet::new();
        for decision in decisions {
            let [exporter, importer] = ["exporter", "importer"].map(|end| decision[end].as_str().unwrap());
            assert!(names.contains(exporter) && names.contains(importer), "{decision}");
            assert!(seen.insert((exporter, importer)), "{}: {exporter} and {importer} twice", recording.name);
            let reasons = decision["reasons"].as_array().unwrap();
            assert!(!reasons.is_empty() && reasons.iter().all(Value::is_string), "{decision}");
            let is_staged = decision["route"] == "staging";
            assert_eq!(is_staged, decision["p2p"] != Value::Bool(true), "{}: {decision}", recording.name);
            assert_eq!(exporter == importer, decision["route"] == "same_device", "{decision}");
        }
    }
}

#[test]
fn below_one_switch_nothing_is_said_to_be_impossible_and_nothing_unknown_is_said_to_work() {
    for recording in all() {
        let vendors = vendors(&recording);
        for decision in json(&recording)["decisions"].as_array().unwrap() {
            let through_the_bus = decision["label"] == decision["bus_label"];
            match decision["bus_label"].as_str().unwrap() {
                _ if !through_the_bus => assert_eq!(decision["route"], "private_link", "{decision}"),
                "PIX" | "PXB" => {
                    assert_ne!(decision["p2p"], Value::Bool(false), "{}: {decision}", recording.name)
                }
                "PHB" | "NODE" | "SYS" if recording.kind.option() == "--nccl" => {
                    // The file has no host bridges; only the CPU can settle it.
                    let settled = vendors.contains("AuthenticAMD").then_some(true);
                    assert_eq!(decision["p2p"].as_bool(), settled, "{}: {decision}", recording.name);
                }
                _ => {}
            }
        }
    }
}

fn vendors(recording: &Recording) -> BTreeSet<&'static str> {
    let text = String::from_utf8_lossy(&recording.bytes);
    ["GenuineIntel", "AuthenticAMD"].into_iter().filter(|vendor| text.contains(vendor)).collect()
}

#[test]
fn the_order_of_the_devices_in_a_file_changes_no_decision() {
    let lines: Vec<&str> = THREE_GPUS.lines().collect();
    // The second CPU first; of the first, what is below the root and below its switch from the last to the first.
    let moved = [0, 10, 11, 12, 1, 8, 7, 2, 5, 4, 3, 6, 9, 13].map(|line| lines[line]).join("\n");
    let (one, other) = (Scratch::new("order-1.xml", THREE_GPUS), Scratch::new("order-2.xml", &moved));
    let decisions = |scratch: &Scratch| -> BTreeMap<String, Value> {
        let json = printed(&["topo", "--nccl", scratch.path(), "--json", "-"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        let all = json["decisions"].as_array().unwrap().clone();
        all.into_iter().map(|one| (format!("{} {}", one["exporter"], one["importer"]), one)).collect()
    };
    let (first, second) = (decisions(&one), decisions(&other));
    assert_eq!(first.len(), 15);
    assert_eq!(first, second);
}

#[test]
fn the_json_has_the_promised_fields_in_the_promised_order() {
    let machine = Scratch::new("fields.xml", THREE_GPUS);
    let json = printed(&["topo", "--nccl", machine.path(), "--json", "-"]);
    assert_eq!(field_names(&json, 2), ["devices", "decisions", "notes", "source"]);
    let value: Value = serde_json::from_str(&json).unwrap();
    let decision = &json[json.find("\"exporter\"").unwrap() - 8..];
    let fields = field_names(&decision[..decision.find("\n    }").unwrap()], 6);
    assert_eq!(fields[..6], ["exporter", "importer", "route", "p2p", "bandwidth_bytes_per_s", "reasons"]);
    assert_eq!(value["devices"][3]["name"], "0000:40:00.0");
    assert_eq!(value["devices"][3]["names"], serde_json::json!(["mlx5_0", "mlx5_1"]));
}

#[test]
fn the_matrix_has_labels_signs_and_a_legend_for_those_that_occur() {
    let machine = Scratch::new("matrix.xml", THREE_GPUS);
    let matrix = printed(&["topo", "--nccl", machine.path()]);
    let row = |name: &str| {
        let lines = matrix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let is_row = |words: &Vec<&str>| words.len() == 6 && words[0] == name && !words[1].contains(':');
        lines.into_iter().find(is_row).unwrap_or_else(|| panic!("no row {name}:\n{matrix}"))
    };
    assert!(matrix.contains("GPU0  GPU1  GPU2  NIC0  NIC1"), "{matrix}");
    assert_eq!(row("GPU0"), ["GPU0", "X", "PHB?", "SYS?", "PIX?", "PIX?"]);
    assert_eq!(row("GPU1"), ["GPU1", "PHB?", "X", "SYS?", "PHB?", "PHB?"]);
    assert!(matrix.contains("PIX    over one PCIe switch at most"), "{matrix}");
    assert!(matrix.contains("?      what would decide it is not known, so staging"));
    assert!(!matrix.contains("NV#") && !matrix.contains("peer-to-peer: the device"));
    assert!(matrix.contains("NIC0  0000:40:00.0  15b3:101b  NUMA 0  15.8 GB/s  mlx5_0 mlx5_1"), "{matrix}");
    assert!(!matrix.contains('\x1b'), "colours are for terminals");
}

#[test]
fn an_explanation_has_the_decision_every_reason_and_the_way() {
    let machine = Scratch::new("explain.xml", THREE_GPUS);
    let told = printed(&["explain", "3f", "mlx5_1", "--nccl", machine.path()]);
    assert!(
        told.contains("NIC0, 0000:40:00.0 (mlx5_0, mlx5_1) reaches the memory of GPU0, 0000:3f:00.0 (gpu0)"),
        "{told}"
    );
    for words in [
        "staging",
        "peer-to-peer not known",
        "Why",
        "1. ",
        "Way",
        "PIX",
        "meet  0000:3d:00.0 switch [1000:c010]",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let any = printed(&["explain", "GPU1", "51:00.0", "--nccl", machine.path()]);
    assert!(
        any.contains("0000:51:00.0 reaches the memory of GPU1"),
        "any PCI device can be asked about: {any}"
    );
}

#[test]
fn an_explanation_as_json_is_about_the_two_devices_alone() {
    let machine = Scratch::new("explain-json.xml", THREE_GPUS);
    let output = run(&["explain", "GPU0", "GPU2", "--nccl", machine.path(), "--json", "-"]);
    let json: Value = serde_json::from_str(text(&output.stdout)).expect("one JSON object");
    assert!(text(&output.stderr).contains("reaches the memory of"), "the text goes to standard error then");
    assert_eq!(json["devices"].as_array().unwrap().len(), 2);
    let [decision] = json["decisions"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(
        (&decision["exporter"], &decision["importer"]),
        (&"0000:3f:00.0".into(), &"0000:80:00.0".into())
    );
    assert!(json["path"].as_array().unwrap().len() > 3);
}

#[test]
fn the_dgx_2_is_told_as_its_owner_knows_it() {
    let Some(recording) = one("dgx2-v100x16") else { return };
    let matrix = printed(&["topo", "--hwloc", recording.path()]);
    assert!(matrix.contains("2 CPU packages, 2 NUMA nodes, 16 GPUs"), "{matrix}");
    let row = matrix.lines().find(|line| line.starts_with("  GPU0 ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().skip(1).collect();
    assert_eq!(cells[0], "X");
    assert!(
        cells[1..8].iter().all(|cell| *cell == "NV6+") && cells[8..].iter().all(|cell| *cell == "SYS+"),
        "{row}"
    );
    let told = printed(&["explain", "nvml0", "nvml9", "--hwloc", recording.path()]);
    assert!(told.contains("the host bridge 8086:2030 is known to forward peer traffic"), "{told}");
}

/// Two GPUs below one root of a Zen CPU; the bus sees a quarter of the first one's memory.
const SMALL_BAR: &str = r#"<topology version="2.0"><object type="Machine"><object type="Package" os_index="0">
 <info name="CPUVendor" value="AuthenticAMD"/><info name="CPUFamilyNumber" value="23"/>
 <object type="NUMANode" os_index="0"/>
 <object type="Bridge" bridge_type="0-1" bridge_pci="0000:[00-08]">
  <object type="PCIDev" pci_busid="0000:07:00.0" pci_type="0300 [1002:67df] [0000:0000] 00" pci_link_speed="15.753846">
   <object type="OSDev" name="rsmi0" osdev_type="5">
    <info name="RSMIVRAMSize" value="1048576"/><info name="RSMIVisibleVRAMSize" value="262144"/></object></object>
  <object type="PCIDev" pci_busid="0000:08:00.0" pci_type="0300 [1002:67df] [0000:0000] 00" pci_link_speed="15.753846"/>
 </object></object></object></topology>"#;

#[test]
fn memory_that_the_bus_sees_a_part_of_has_an_answer_for_each_part() {
    let machine = Scratch::new("bar.xml", SMALL_BAR);
    let matrix = printed(&["topo", "--hwloc", machine.path()]);
    assert!(matrix.contains("GPU0  X     PHB~") && matrix.contains("GPU1  PHB+  X"), "{matrix}");
    assert!(matrix.contains("for the part of the memory that the bus sees"), "{matrix}");
    let json: Value =
        serde_json::from_str(&printed(&["topo", "--hwloc", machine.path(), "--json", "-"])).unwrap();
    let decisions = json["decisions"].as_array().unwrap();
    assert_eq!(decisions.len(), 4, "one for each pair");
    let pair = decisions
        .iter()
        .find(|one| one["exporter"] == "0000:07:00.0" && one["importer"] == "0000:08:00.0")
        .unwrap();
    assert_eq!((&pair["route"], &pair["p2p"]), (&"host_bridge".into(), &true.into()));
    assert_eq!((&pair["hidden"]["route"], &pair["hidden"]["p2p"]), (&"staging".into(), &false.into()));
    let told = printed(&["explain", "rsmi0", "08:00.0", "--hwloc", machine.path()]);
    assert!(told.contains("staging for the part that the bus does not see"), "{told}");
    assert!(told.contains("with a BAR of 0000:07:00.0 that shows all of its memory"), "{told}");
}

#[test]
fn a_device_whose_place_is_not_known_has_no_decision_and_says_so() {
    let Some(recording) = one("sandybridge-mixed-gpus") else { return };
    let matrix = printed(&["topo", "--hwloc", recording.path()]);
    assert!(matrix.contains("address unknown") && matrix.contains("Left out"), "{matrix}");
    let message = refusal(&["explain", "84:00.0", "mlx5_0", "--hwloc", recording.path()]);
    assert_eq!(message, "devpagemap: IMPORTER: where NIC2 is is not known, so nothing can be decided");
}

#[test]
fn this_machine_is_read_when_no_other_is_named() {
    let json: Value = serde_json::from_str(&printed(&["topo", "--json", "-"])).unwrap();
    assert_eq!(json["source"]["kind"], "sysfs");
    assert!(printed(&["topo"]).contains("this machine"));
}

#[test]
fn wrong_names_are_answered_with_what_was_meant() {
    let machine = Scratch::new("names.xml", THREE_GPUS);
    let asked =
        |exporter: &str, importer: &str| refusal(&["explain", exporter, importer, "--nccl", machine.path()]);
    assert_eq!(asked("GPU9", "NIC0"), "devpagemap: EXPORTER: there is no device `GPU9`; did you mean GPU0?");
    assert_eq!(
        asked("GPU0", "mlx5_2"),
        "devpagemap: IMPORTER: there is no device `mlx5_2`; did you mean mlx5_0?"
    );
    assert_eq!(
        asked("NIC0", "GPU0"),
        "devpagemap: EXPORTER: NIC0 is no GPU, and has no memory that others reach"
    );
}

#[test]
fn wrong_files_are_refused_with_file_and_line() {
    let cut = Scratch::new("cut.xml", &THREE_GPUS[..900]);
    let message = refusal(&["topo", "--nccl", cut.path()]);
    assert!(
        message.starts_with(&format!("devpagemap: {}:", cut.path())) && message.contains("the file ends"),
        "{message}"
    );
    let other = Scratch::new("other.xml", THREE_GPUS);
    let message = refusal(&["topo", "--hwloc", other.path()]);
    assert!(message.ends_with(":1: the root element is <system>; hwloc's XML has <topology>"), "{message}");
    let twice = Scratch::new("twice.xml", THREE_GPUS.replace("0000:80:00.0", "0000:50:00.0"));
    let message = refusal(&["topo", "--nccl", twice.path()]);
    assert!(message.ends_with(":12: 0000:50:00.0 is there twice"), "{message}");
    let bomb = Scratch::new("bomb.xml", "<!DOCTYPE system [\n<!ENTITY a \"aa\">]>\n<system/>");
    assert!(refusal(&["topo", "--nccl", bomb.path()]).contains("it declares entities"));
    assert!(refusal(&["topo", "--nccl", "/no/such/file.xml"]).contains("/no/such/file.xml: cannot be read"));
    assert!(refusal(&["topo", "--sysfs", "/no/such/folder"]).contains("/no/such/folder"));
}

#[test]
fn two_sources_are_refused() {
    let message = refusal(&["topo", "--nccl", "a.xml", "--hwloc", "b.xml"]);
    assert!(message.contains("cannot be used with"), "{message}");
}
