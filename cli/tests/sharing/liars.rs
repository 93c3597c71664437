//! Exporters that send what no exporter should, and what the importer makes of it.

use crate::command::{refusal, socket_path, text};
use devpagemap_cli::handover::{Interrupt, Listener, Message, Offer, Refusal, wire};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::pipe;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

fn offer() -> Vec<u8> {
    let offer = Offer {
        size_bytes: 4096,
        seed: 1,
        answer_seed: 2,
        writable: true,
        exporter: "udmabuf".into(),
        name: "a lie".into(),
    };
    offer.encode()
}

fn memfd() -> OwnedFd {
    memfd_create("no dma-buf", MemfdFlags::CLOEXEC).expect("there is memory")
}

/// What `devpagemap import` says to an exporter that sends these bytes and descriptors and leaves.
fn told(name: &str, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> String {
    let path = socket_path(name);
    let listener = Listener::bind(&path).expect("nothing is in the way");
    let mut command = Command::new(env!("CARGO_BIN_EXE_devpagemap"));
    command.args(["import", "--socket", path.to_str().unwrap()]).stdin(Stdio::null());
    let importer = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let peer = listener.accept(&Interrupt::never().unwrap()).unwrap().expect("it connects");
    wire::send(peer.as_fd(), bytes, descriptors).expect("it listens");
    drop(peer);
    let output = importer.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(2), "{name}: {}", text(&output.stdout));
    let message = text(&output.stderr).trim_end().to_string();
    let begin = format!("devpagemap: {}: ", path.display());
    message.strip_prefix(&begin).unwrap_or_else(|| panic!("{name}: {message}")).to_string()
}

#[test]
fn each_lie_has_its_own_message_and_ends_with_status_2() {
    let (one, two) = (memfd(), memfd());
    let fd = [one.as_fd()];
    let changed = |at: usize, byte: u8| {
        let mut bytes = offer();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(
        told("magic", &changed(0, b'X'), &fd),
        "the message is no header of devpagemap: it begins with `XPMoffer`"
    );
    assert_eq!(
        told("future", &changed(8, 9), &fd),
        "the message is of version 9; this command knows versions up to 1"
    );
    assert_eq!(told("truncated", &offer()[..40], &fd), "the header is truncated: 40 bytes of 128");
    assert_eq!(told("none", &offer(), &[]), "the header came without a descriptor");
    assert_eq!(
        told("two", &offer(), &[one.as_fd(), two.as_fd()]),
        "the header came with 2 descriptors; it has to come with one"
    );
    assert_eq!(
        told("odd", &changed(16, 1), &fd),
        "the header says 4097 bytes, which are not whole pages of 4096 bytes"
    );
    assert!(told("seed", &changed(24, 77), &fd).starts_with("the header contradicts itself"));
    assert!(told("long", &[offer(), vec![0]].concat(), &fd).contains("longer than its 128 bytes"));
}

#[test]
fn what_is_no_dma_buf_is_told_by_what_it_is() {
    let (end, _other) = pipe().expect("two descriptors");
    let root = File::open("/").expect("there is a root");
    for (name, fd, is) in [
        ("file", memfd().as_fd().try_clone_to_owned().unwrap(), "a file"),
        ("pipe", end, "a pipe"),
        ("folder", root.into(), "a directory"),
    ] {
        let message = told(name, &offer(), &[fd.as_fd()]);
        assert!(message.starts_with("what came with the header: descriptor "), "{message}");
        assert!(message.ends_with(&format!("is no dma-buf but {is}")), "{message}");
    }
}

#[test]
fn an_exporter_that_leaves_at_once_is_told_so() {
    let path = socket_path("leaves");
    let listener = Listener::bind(&path).expect("nothing is in the way");
    let importer = std::thread::spawn({
        let path = path.clone();
        move || refusal(&["import", "--socket", path.to_str().unwrap()])
    });
    drop(listener.accept(&Interrupt::never().unwrap()).unwrap().expect("it connects"));
    let message = importer.join().expect("it was refused");
    assert!(message.ends_with("the other side left before its header"), "{message}");
}

#[test]
fn descriptors_of_a_message_that_is_refused_are_closed() {
    let path = socket_path("closed");
    let listener = Listener::bind(&path).expect("nothing is in the way");
    let never = Interrupt::never().unwrap();
    let importer = devpagemap_cli::handover::Peer::connect(&path).expect("it listens");
    let peer = listener.accept(&never).unwrap().expect("it connected");
    let mut bad = offer();
    bad[0] = b'X';
    for (bytes, count) in [(bad, 1), (offer(), 2)] {
        let (end, other) = pipe().expect("two descriptors");
        wire::send(peer.as_fd(), &bytes, &vec![other.as_fd(); count]).expect("it listens");
        drop(other);
        let refused = match importer.receive::<Offer>(&never, None) {
            Ok(incoming) => incoming.only_descriptor().map(drop),
            Err(_wrong_magic) => Err(Refusal::NoDescriptor),
        };
        assert!(refused.is_err());
        // If anybody still had the other end, this would wait for ever.
        let mut rest = Vec::new();
        File::from(end).read_to_end(&mut rest).expect("it is a pipe");
        assert!(rest.is_empty());
    }
}
