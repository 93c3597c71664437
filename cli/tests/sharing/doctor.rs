//! What the doctor says of this machine, whatever that has.

use crate::command::{run, text};
use serde_json::Value;

fn json() -> Value {
    let output = run(&["doctor", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_str(text(&output.stdout)).expect("standard output is one JSON object")
}

#[test]
fn the_json_has_the_promised_fields_in_the_promised_order() {
    let output = run(&["doctor", "--json", "-"]);
    let json = text(&output.stdout);
    let fields: Vec<&str> =
        json.split("\n  \"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
    let promised =
        ["kernel", "nodes", "nodes_problem", "exporters", "heaps", "fences", "peer_memory", "bars", "limits"];
    assert_eq!(fields, promised);
}

#[test]
fn every_way_is_either_usable_or_has_its_problem() {
    let json = json();
    let exporters = json["exporters"].as_array().unwrap();
    let ways: Vec<&str> = exporters.iter().map(|way| way["via"].as_str().unwrap()).collect();
    assert_eq!(ways, ["udmabuf", "dma-heap", "vgem", "virtio-gpu"]);
    for way in exporters {
        let usable = way["usable"].as_bool().unwrap();
        assert_eq!(usable, way["problem"].is_null(), "{way}");
        assert_eq!(usable, way["in_place"].is_boolean(), "{way}");
        let problem = way["problem"].as_str().unwrap_or_default();
        let is_missing = problem.starts_with("not on this machine") || problem.starts_with("no rights");
        assert!(!is_missing || way["remedy"].is_string(), "{way}");
    }
    let usable = exporters.iter().any(|way| way["usable"] == true);
    assert_eq!(usable, json["fences"]["sync_files"].is_boolean(), "only a dma-buf can be asked");
}

#[test]
fn limits_are_those_of_this_process() {
    let limits = &json()["limits"];
    assert!(limits["open_files"].as_u64().is_some_and(|files| files > 0), "{limits}");
    assert!(limits["system_files_max"].as_u64() > limits["system_files"].as_u64(), "{limits}");
}

#[test]
fn the_table_has_each_section_and_no_colours_in_a_pipe() {
    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(0));
    let table = text(&output.stdout);
    for title in [
        "this machine",
        "DRM nodes",
        "buffers as dma-bufs",
        "heaps",
        "fences in the kernel",
        "memory for peers",
        "BARs that could be video memory",
        "limits",
    ] {
        assert!(table.contains(title), "{title}:\n{table}");
    }
    assert!(!table.contains('\x1b'), "colours are for terminals");
}

#[test]
fn the_table_goes_to_standard_error_when_the_json_goes_to_standard_output() {
    let output = run(&["doctor", "--json", "-"]);
    assert!(text(&output.stderr).contains("buffers as dma-bufs"));
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok());
}
