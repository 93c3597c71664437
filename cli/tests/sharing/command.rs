//! The command line, and an exporter on this machine.

use devpagemap::Offers;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

pub fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devpagemap"));
    command.args(arguments).env_remove("NO_COLOR").stdin(Stdio::null()).output().expect("it can be started")
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the command prints text")
}

/// The message of a command that is refused.
pub fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stdout));
    text(&output.stderr).trim_end().to_string()
}

/// A path for a socket that nobody else has, in a folder that exists.
pub fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("devpagemap-test-{}-{name}.sock", std::process::id()))
}

#[test]
fn sizes_that_no_buffer_has_are_refused_before_there_is_a_socket() {
    let path = socket_path("sizes");
    let export = |size| refusal(&["export", "--size", size, "--socket", path.to_str().unwrap()]);
    assert_eq!(export("0"), "devpagemap: --size: a buffer of 0 bytes holds nothing");
    assert_eq!(export("4097"), "devpagemap: --size: 4097 bytes are not whole pages of 4096 bytes");
    assert!(export("12MB").contains("sizes are binary"));
    assert!(!path.exists());
}

#[test]
fn what_is_asked_for_must_be_known() {
    assert!(refusal(&["export", "--via", "ttm", "--size", "4096", "--socket", "s"]).contains("virtio-gpu"));
    assert!(refusal(&["import", "--into", "udmabuf", "--socket", "s"]).contains("possible values"));
    assert!(refusal(&["export", "--size", "4096"]).contains("--socket"));
    assert!(refusal(&["import"]).contains("--socket"));
}

#[test]
fn a_way_that_is_not_here_is_refused_with_its_reason_and_a_remedy() {
    let path = socket_path("reasons");
    let offers = Offers::of_this_machine();
    for (via, usable) in &offers.exporters {
        if usable.is_ok() {
            continue;
        }
        let (name, socket) = (via.to_string(), path.to_str().unwrap());
        let message = refusal(&["export", "--via", &name, "--size", "4096", "--socket", socket]);
        assert!(message.contains(&format!("--via {name}: such a buffer cannot be exported:")), "{message}");
        assert!(message.contains("→ "), "{message}");
        assert!(!path.exists(), "the socket is taken away");
    }
}

#[test]
fn where_nothing_exports_every_reason_is_told() {
    let path = socket_path("nothing");
    let offers = Offers::of_this_machine();
    if offers.exporters.iter().any(|(_, usable)| usable.is_ok()) {
        eprintln!("\n*** skipped: this machine exports ***\n");
        return;
    }
    let message = refusal(&["export", "--size", "64KiB", "--socket", path.to_str().unwrap()]);
    assert!(message.contains("nothing on this machine exports such a buffer:"), "{message}");
    for (via, _) in &offers.exporters {
        assert!(message.contains(&format!("\n  {via}: ")), "{via}: {message}");
    }
    assert!(!path.exists());
}
