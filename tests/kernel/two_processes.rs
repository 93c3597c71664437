//! The command in two processes, with a buffer between them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::observe::DMA_BUFS;
use crate::setup::{Thing, need, say_loudly};

/// Every way that the guest has, with what it needs.
const WAYS: [(&str, Thing); 4] = [
    ("udmabuf", Thing::Udmabuf),
    ("dma-heap", Thing::DmaHeap),
    ("vgem", Thing::Vgem),
    ("virtio-gpu", Thing::VirtioGpu),
];
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command, where the guest has it; said loudly where it is not.
pub fn command() -> Option<Command> {
    let Some(path) = std::env::var_os("DEVPAGEMAP_COMMAND") else {
        assert!(crate::setup::guest().is_none(), "a guest has the command");
        say_loudly("skipped: DEVPAGEMAP_COMMAND does not say where the command is");
        return None;
    };
    Some(Command::new(path))
}

/// An exporter in a process of its own, killed at the end.
struct Exporter {
    child: Child,
    lines: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Exporter {
    fn start(mut command: Command, name: &str, arguments: &[&str]) -> Exporter {
        let socket = std::env::temp_dir().join(format!("{name}-{}.sock", std::process::id()));
        command.arg("export").args(arguments).arg("--socket").arg(&socket);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut exporter = Exporter { child, lines, socket };
        let heard = exporter.hear("serving at");
        assert!(heard.contains("serving at"), "{arguments:?}: {heard}");
        exporter
    }

    /// What it prints up to a line with these words, or to its end.
    fn hear(&mut self, words: &str) -> String {
        let mut heard = String::new();
        loop {
            let from = heard.len();
            let read = self.lines.read_line(&mut heard).expect("it prints text");
            if read == 0 || heard[from..].contains(words) {
                return heard;
            }
        }
    }

    fn importer(&self, arguments: &[&str]) -> Command {
        let mut importer = command().expect("there was an exporter");
        importer.arg("import").arg("--socket").arg(&self.socket).args(arguments).stdin(Stdio::null());
        importer
    }

    /// Waits for its own end, and returns its status and the rest of what it printed.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("it prints text");
        (self.child.wait().expect("it was started").code(), rest)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // It may have ended.
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The kernel's list of dma-bufs has none with `name`; waits while the last user's end is still under way.
#[track_caller]
fn the_kernel_has_none(name: &str) {
    let start = Instant::now();
    loop {
        let list = std::fs::read_to_string(DMA_BUFS).expect("it was readable");
        if !list.contains(name) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{name} leaks:\n{list}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_way_hands_a_buffer_to_another_process_and_back() {
    for (way, thing) in WAYS {
        let Some(command) = command().filter(|_| need(&[thing])) else { continue };
        let exporter = Exporter::start(command, way, &["--via", way, "--size", "1MiB", "--once"]);
        let output = exporter.importer(&[]).output().expect("it starts");
        let said = told(&output);
        assert_eq!(output.status.code(), Some(0), "{way}: {said}");
        assert!(said.contains("read 1 MiB: every byte right"), "{way}: {said}");
        assert!(
            said.contains("wrote an answer; the exporter finds 1 MiB: every byte right"),
            "{way}: {said}"
        );
        let socket = exporter.socket.clone();
        let (status, said) = exporter.end();
        assert_eq!(status, Some(0), "{way}: {said}");
        assert!(said.contains("wrote its answer, every byte right"), "{way}: {said}");
        assert!(!socket.exists(), "{way}: the socket stays behind");
    }
}

#[test]
fn importers_are_served_one_after_the_other_each_with_new_bytes() {
    let Some(command) = command().filter(|_| need(&[Thing::Udmabuf, Thing::DmaBufList])) else { return };
    let mut exporter = Exporter::start(command, "many", &["--size", "256KiB"]);
    let name = format!("devpagemap export {}", exporter.child.id());
    for _ in 0..3 {
        let output = exporter.importer(&[]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        let heard = exporter.hear("importer ");
        assert!(heard.contains("every byte right") && !heard.contains("WRONG"), "{heard}");
    }
    let pid = rustix::process::Pid::from_child(&exporter.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let socket = exporter.socket.clone();
    let (status, said) = exporter.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("3 importers served"), "{said}");
    assert!(!socket.exists(), "Ctrl-C takes the socket away");
    the_kernel_has_none(&name);
}

#[test]
fn a_kernel_driver_takes_what_it_takes_and_the_other_is_said_no_beforehand() {
    if !need(&[Thing::Udmabuf, Thing::Vgem, Thing::VirtioGpu]) {
        return;
    }
    let Some(command) = command() else { return };
    let exporter = Exporter::start(command, "into", &["--via", "udmabuf", "--size", "64KiB"]);
    let output = exporter.importer(&["--into", "vgem"]).output().expect("it starts");
    let said = told(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("vgem took it as handle") && said.contains("the very dma-buf"), "{said}");
    let output = exporter.importer(&["--into", "virtio-gpu"]).output().expect("it starts");
    let said = told(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("virtio_gpu does not import dma-bufs of udmabuf"), "{said}");
}

#[test]
fn a_read_only_buffer_is_read_and_not_answered() {
    let Some(command) = command().filter(|_| need(&[Thing::Vgem])) else { return };
    let arguments = ["--via", "vgem", "--size", "64KiB", "--read-only", "--once"];
    let exporter = Exporter::start(command, "read-only", &arguments);
    let output = exporter.importer(&[]).output().expect("it starts");
    let said = told(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("wrote nothing; the exporter finds 64 KiB: every byte right"), "{said}");
    assert_eq!(exporter.end().0, Some(0));
}

#[test]
fn when_the_exporter_is_killed_the_importer_keeps_every_byte_and_the_kernel_keeps_nothing_after_it() {
    let mut left_over = None;
    for (way, thing) in WAYS {
        let Some(command) = command().filter(|_| need(&[thing, Thing::DmaBufList])) else { continue };
        let mut exporter = Exporter::start(command, "killed", &["--via", way, "--size", "2MiB"]);
        let name = format!("devpagemap export {}", exporter.child.id());
        let held = exporter.importer(&["--hold", "3"]).stdout(Stdio::piped()).spawn();
        let mut importer = held.expect("it starts");
        let mut lines = BufReader::new(importer.stdout.take().expect("it was asked for"));
        let mut said = String::new();
        while !said.contains("holding the buffer") {
            assert_ne!(lines.read_line(&mut said).expect("it prints text"), 0, "{way}: {said}");
        }
        // The importer has the pages mapped and has written them. SIGKILL leaves the exporter no time for anything.
        exporter.child.kill().expect("it runs");
        exporter.child.wait().expect("it was started");
        let list = std::fs::read_to_string(DMA_BUFS).expect("it was readable");
        assert!(list.contains(&name), "{way}: the importer's dma-buf stays:\n{list}");
        lines.read_to_string(&mut said).expect("it prints text");
        let status = importer.wait().expect("it was started");
        assert!(said.contains("the exporter is gone; the buffer stays"), "{way}: {said}");
        assert!(said.contains("after holding it: every byte right"), "{way}: {said}");
        assert_eq!(status.code(), Some(0), "{way}: {said}");
        the_kernel_has_none(&name);
        // The killed exporter's socket is a left-over, and no obstacle for the next one.
        assert!(exporter.socket.exists(), "{way}: SIGKILL takes nothing away");
        left_over = Some(exporter.socket.clone());
    }
    if let Some(socket) = left_over {
        std::fs::remove_file(socket).expect("it was left over");
    }
}
