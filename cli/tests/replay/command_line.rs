//! The command as scripts see it: exit status, JSON, messages, files.

use crate::recordings::recording;
use crate::scratch::Scratch;
use serde_json::Value;
use std::process::{Command, Output, Stdio};

const SMALL: [&str; 4] = ["replay", "builtin:frames", "--scale", "1/64"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devpagemap"));
    command.args(arguments).env_remove("NO_COLOR");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().expect("the command can be started")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the command prints text")
}

/// The names of an object's fields, in the order in which they are printed.
fn field_names(json: &str, indent: usize) -> Vec<String> {
    let starts = format!("\n{}\"", " ".repeat(indent));
    let field = |part: &str| part.split('"').next().unwrap_or_default().to_string();
    json.split(&starts).skip(1).map(field).collect()
}

#[test]
fn the_json_has_the_promised_fields_in_the_promised_order() {
    let output = run(&[&SMALL[..], &["--json", "-"]].concat());
    assert_eq!(output.status.code(), Some(0));
    let json = text(&output.stdout);
    let value: Value = serde_json::from_str(json).expect("standard output is one JSON object");
    assert_eq!(field_names(json, 2), ["trace", "config", "result"]);
    let expected = "name format events bos batches peak_live_bytes largest_batch_bytes \
        vram_bytes bar_bytes gtt_bytes placement policy data scale seed \
        batches_done batches_failed allocs frees evictions evicted_bytes restores restored_bytes \
        relocations relocated_bytes moves moved_bytes visibility_moved_bytes bounced_bytes bar_fallbacks cpu_maps peer_maps demotions cleared_bytes vram_peak_bytes vram_in_use_at_end_bytes fence_waits \
        cpu_waits_in_validate cpu_wait_ns wall_ns copy_bytes_per_s reasons verify";
    assert_eq!(field_names(json, 4), expected.split_whitespace().collect::<Vec<_>>());
    let result = &value["result"];
    assert_eq!(result["batches_done"], 101);
    assert_eq!(result["verify"]["mismatches"], 0);
    assert!(result["verify"]["bytes_checked"].as_u64() > Some(0));
    assert_eq!(value["config"]["scale"], "1/64");
    assert_eq!(value["trace"]["name"], "builtin:frames");
    assert!(text(&output.stderr).contains("101 of 101"), "the summary goes to standard error");
}

#[test]
fn without_a_subcommand_it_replays_the_built_in_frames() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(0));
    let summary = text(&output.stdout);
    assert!(summary.contains("builtin:frames") && summary.contains("101 of 101"), "{summary}");
    assert!(!summary.contains('\x1b'), "no colour when nobody looks");
    assert!(output.stderr.is_empty(), "no progress when nobody looks");
}

#[test]
fn the_summary_fits_eighty_columns() {
    let output = run(&[&SMALL[..], &["--vram", "5MiB"]].concat());
    for line in text(&output.stdout).lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
}

#[test]
fn a_workload_that_fails_exits_with_1_and_still_writes_its_json() {
    let json = Scratch::new("failed.json", b"");
    let output = run(&[&SMALL[..], &["--vram", "4MiB", "--json", json.path()]].concat());
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let failed = value["result"]["batches_failed"].as_array().unwrap();
    assert!(!failed.is_empty());
    for batch in failed {
        assert!(batch["index"].is_u64());
        assert!(batch["error"].as_str().unwrap().contains("VRAM exhausted: wanted"));
    }
    assert_eq!(value["result"]["batches_done"], 101 - failed.len());
    assert!(text(&output.stdout).contains(&format!("batch {}", failed[0]["index"])));
}

#[test]
fn vram_smaller_than_a_buffer_is_a_failed_workload_and_not_bad_input() {
    let file = Scratch::new("large.wsim", b"w.1.8m/4k\n1.RCS.100.r1-0.0\n1.RCS.100.w1-1.0\n");
    let output = run(&["replay", file.path(), "--vram", "1MiB", "--json", "-"]);
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["result"]["batches_done"], 1);
    assert_eq!(value["result"]["batches_failed"][0]["index"], 0);
    assert!(value["result"]["batches_failed"][0]["error"].as_str().unwrap().contains("8388608"));
}

/// Runs and expects status 2, nothing on standard output, and a message with `expected` in it.
fn assert_refused(arguments: &[&str], expected: &str) {
    let output = run(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(message.contains(expected), "{arguments:?} said {message:?}, not {expected:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_usage_is_refused_with_a_plain_sentence() {
    for (arguments, expected) in [
        (&["replay"][..], "FILE"),
        (&["dance"], "dance"),
        (&["replay", "builtin:frames", "--vram", "0"], "--vram: a GPU with 0 bytes"),
        (&["replay", "builtin:frames", "--vram", "12MB"], "sizes are binary"),
        (&["replay", "builtin:frames", "--vram", "4097"], "not whole pages"),
        (&["replay", "builtin:frames", "--vram", "999999999TiB"], "more than 128 TiB"),
        (&["replay", "builtin:frames", "--scale", "2"], "1/N"),
        (&["replay", "builtin:frames", "--placement", "attic"], "attic"),
        (&["replay", "builtin:frames", "--policy", "coin"], "coin"),
        (&["replay", "builtin:frames", "--format", "wsim"], "no file format"),
        (&["replay", "builtin:nothing"], "builtin:nothing"),
        (
            &["replay", "builtin:frames", "--device", "pci:ffff:fe:1f.7"],
            "--device: ffff:fe:1f.7 cannot be used: there is no such PCI device",
        ),
        (&["replay", "builtin:frames", "--device", "pci:fe"], "`fe` is no PCI address"),
        (&["replay", "builtin:frames", "--device", "pci:fe:00.0/bar9"], "`/bar9` is none of /bar0"),
        (&["replay", "builtin:frames", "--device", "abacus"], "`abacus` is neither"),
        (&["replay", "builtin:frames", "--html", "-"], "only --json"),
        (&["replay", "builtin:frames", "--html", "/dev/null", "--json", "/dev/null"], "the same file"),
        (&["replay", "/nowhere/at-all.wsim"], "/nowhere/at-all.wsim: cannot be read"),
        (&["replay", "/tmp"], "/tmp: cannot be read"),
        (
            &["replay", "builtin:frames", "--json", "/nowhere/out.json"],
            "/nowhere/out.json: cannot be written",
        ),
        (&["export"], "--size"),
        (&["import"], "--socket"),
    ] {
        assert_refused(arguments, expected);
    }
}

#[test]
fn bad_input_is_refused_with_file_line_and_reason() {
    let rmv = "time_us,ev,va,size,pref\n";
    for (name, contents, expected) in [
        ("empty.wsim", &b""[..], "empty.wsim: the file is empty"),
        ("blank.wsim", b"\n\n", "blank.wsim: the file holds no line"),
        ("step.wsim", b"w.1.4k\n1.RCS.100.r1-7.0\n", "step.wsim:2: object 7 of working set 1"),
        ("bytes.wsim", b"d.1\n\xff\xfe\n", "bytes.wsim:2: byte 4 of the file is not UTF-8"),
        ("cut.gz", b"\x1f\x8b\x08\x00", "cut.gz:1: the gzip data is cut off or damaged"),
        ("page.html", b"<html>\n", "page.html:1: neither a wsim workload nor an rmv table"),
        (
            "free.csv",
            &[rmv.as_bytes(), b"0,va_alloc,0x1000,8192,system\n0,va_free,0x2000,,\n"].concat(),
            "free.csv:3: 0x2000 is freed, which lies inside a live allocation",
        ),
        (
            "zero.csv",
            &[rmv.as_bytes(), b"0,va_alloc,0x1000,0,system\n"].concat(),
            "zero.csv:2: an allocation of 0 bytes",
        ),
        ("huge.csv", &[rmv.as_bytes(), b"0,va_alloc,0,9223372036854775808,system\n"].concat(), "huge.csv:2:"),
        (
            "short.csv",
            &[rmv.as_bytes(), b"0,va_free\n"].concat(),
            "short.csv:2: 2 values in a table of 5 columns",
        ),
        ("columns.csv", b"ev,va\nva_free,0x1000\n", "columns.csv:1: the header has no column `time_us`"),
    ] {
        let file = Scratch::new(name, contents);
        assert_refused(&["replay", file.path()], expected);
    }
}

#[test]
fn a_description_beside_a_recording_must_be_right_too() {
    let table = b"time_us,ev,va,size,pref\n0,va_alloc,0x1000,4096,local_visible\n1,va_free,0x1000,,\n";
    let recording = Scratch::new("beside.csv", table);
    let sidecar = Scratch::new("beside.meta.json", b"{ not json");
    assert_refused(&["replay", recording.path()], "beside.meta.json:1: not a recording's description");
    let heaps = r#"{"heaps":[{"heap":"local_visible","size":65536}],"va_peak_live_bytes":12288}"#;
    std::fs::write(sidecar.path(), heaps).unwrap();
    let output = run(&["replay", recording.path()]);
    assert_eq!(output.status.code(), Some(1), "its total is not that of its events");
    let summary = text(&output.stdout);
    assert!(summary.contains("12288") && summary.contains("4096"), "{summary}");
}

#[test]
fn batches_that_the_client_holds_back_run_once_it_lets_them() {
    let steps = b"w.1.4n64k\n1.RCS.10.w1-0.0\nf\n2.VCS1.10.f-1/r1-0/w1-1.0\n2.VCS2.10.f-2/w1-2.0\n\
        1.RCS.10.w1-3.1\na.-4\ns.-3\n1.RCS.10.r1-0-3.0\n";
    let file = Scratch::new("held.wsim", steps);
    let timeline = Scratch::new("held.json", b"");
    let output = run(&["replay", file.path(), "--vram", "192KiB", "--perfetto", timeline.path()]);
    assert_eq!(output.status.code(), Some(1), "the last batch needs 256 KiB");
    assert!(text(&output.stdout).contains("4 of 5") && text(&output.stdout).contains("every byte right"));
    let timeline: Value = serde_json::from_slice(&std::fs::read(timeline.path()).unwrap()).unwrap();
    let slice = |name: &str| {
        timeline["traceEvents"].as_array().unwrap().iter().find(|event| event["name"] == name).unwrap()
    };
    let released_after = slice("batch 3")["args"]["submitted_us"].as_f64().unwrap();
    for held in ["batch 1", "batch 2"] {
        assert!(slice(held)["ts"].as_f64().unwrap() >= released_after, "{held} did not wait");
    }
}

#[test]
fn a_result_file_is_opened_before_the_replay_and_replaced_after_it() {
    let html = Scratch::new("charts.html", vec![b'x'; 1 << 20]);
    let timeline = Scratch::new("timeline.json", b"old");
    let output = run(&[&SMALL[..], &["--html", html.path(), "--perfetto", timeline.path()]].concat());
    assert_eq!(output.status.code(), Some(0));
    let page = std::fs::read_to_string(html.path()).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http"));
    let timeline: Value = serde_json::from_slice(&std::fs::read(timeline.path()).unwrap()).unwrap();
    let events = timeline["traceEvents"].as_array().unwrap();
    let of_kind = |kind: &str| events.iter().filter(|event| event["ph"] == kind).count();
    assert_eq!(of_kind("X"), 101, "a slice for every batch");
    assert!(of_kind("C") > 300, "counters for the memory");
    assert!(events.iter().all(|event| event["ph"] != "X" || event["dur"].as_f64() >= Some(0.0)));
}

#[test]
fn nobody_reading_the_output_is_no_reason_to_panic() {
    let mut child = command(&[&SMALL[..], &["--json", "-"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"));
}

#[test]
fn a_full_disk_is_reported() {
    if !std::path::Path::new("/dev/full").exists() {
        crate::recordings::say_loudly("skipped: this machine has no /dev/full");
        return;
    }
    assert_refused(
        &[&SMALL[..], &["--json", "/dev/full"]].concat(),
        "/dev/full: cannot be written: No space left",
    );
}

#[test]
fn ctrl_c_ends_the_replay_in_order() {
    let Some(path) = recording("radeon-memory-trace/rx5500xt.csv.gz") else { return };
    let json = Scratch::new("interrupted.json", b"");
    let child = command(&["replay", path.to_str().unwrap(), "--scale", "1/4", "--json", json.path()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    wait_until_it_has_memory(child.id());
    let sent =
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("there is a kill");
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let value: Value = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let failed = value["result"]["batches_failed"].as_array().unwrap();
    assert!(failed.iter().any(|batch| batch["error"] == "interrupted"));
    assert_eq!(value["result"]["batches_done"].as_u64().unwrap() as usize + failed.len(), 938);
    assert_eq!(value["result"]["vram_in_use_at_end_bytes"], 0);
    assert_eq!(value["result"]["allocs"], value["result"]["frees"]);
    assert_eq!(value["result"]["verify"]["mismatches"], 0);
}

/// Once a replay holds 64 MiB of its 960 it has begun, and is far from its end.
fn wait_until_it_has_memory(process: u32) {
    let pages = || {
        let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
        statm.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    while pages().expect("the replay runs") < 16_384 {
        std::thread::yield_now();
    }
}
