//! A table of descriptors that is full after the first, the second, the third ..: every step that needs one fails once, and says so.

use crate::command::{socket_path, text};
use devpagemap::Offers;
use devpagemap_cli::handover::{Interrupt, Listener, Message, Offer, wire};
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};

/// Enough for the command to be loaded, and more than it uses.
const FEWEST: u32 = 4;
const MOST: u32 = 40;

/// The command with so many descriptors.
fn run_with(descriptors: u32, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_devpagemap")]).args(arguments).stdin(Stdio::null());
    command.output().expect("there is a shell")
}

#[test]
fn an_importer_without_descriptors_left_says_so_whatever_it_was_about_to_do() {
    let path = socket_path("few-importer");
    let listener = Listener::bind(&path).expect("nothing is in the way");
    let end = Interrupt::never().expect("one for each");
    let exporter = std::thread::spawn({
        let end = end.clone();
        move || {
            let offer = Offer {
                size_bytes: 4096,
                seed: 1,
                answer_seed: 2,
                writable: true,
                exporter: "nobody".into(),
                name: "nothing".into(),
            };
            let file = memfd_create("no dma-buf", MemfdFlags::CLOEXEC).expect("there is memory");
            while let Some(peer) = listener.accept(&end).expect("it listens") {
                // An importer may be gone already.
                let _gone = wire::send(peer.as_fd(), &offer.encode(), &[file.as_fd()]);
            }
        }
    });
    let mut said = Vec::new();
    for descriptors in FEWEST..MOST {
        let output = run_with(descriptors, &["import", "--socket", path.to_str().unwrap()]);
        let message = text(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(2), "{descriptors}: {message}");
        assert!(message.contains("devpagemap: "), "{descriptors}: {message}");
        said.push(message);
    }
    end.set();
    exporter.join().expect("it served");
    assert!(said.iter().any(|message| message.contains("this process has none left for it")), "{said:#?}");
    assert!(said.last().is_some_and(|message| message.ends_with("is no dma-buf but a file")), "{said:#?}");
}

#[test]
fn an_exporter_without_descriptors_left_says_so_and_takes_its_socket_away() {
    let usable = Offers::of_this_machine().exporters.iter().any(|(_, usable)| usable.is_ok());
    let most = if usable { FEWEST + 3 } else { MOST };
    let path = socket_path("few-exporter");
    for descriptors in FEWEST..most {
        let output = run_with(descriptors, &["export", "--size", "4096", "--socket", path.to_str().unwrap()]);
        let message = text(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(2), "{descriptors}: {message}");
        assert!(message.contains("devpagemap: "), "{descriptors}: {message}");
        assert!(!path.exists(), "{descriptors}: {message}");
    }
}

#[test]
fn a_doctor_without_descriptors_left_finds_less_and_does_not_fail() {
    for descriptors in FEWEST..MOST {
        let output = run_with(descriptors, &["doctor"]);
        let status = output.status.code();
        assert_eq!(status, Some(0), "{descriptors}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("buffers as dma-bufs"), "{descriptors}");
    }
}
