//! An exporter that sends a real dma-buf and lies about it. The header is written here byte by byte, as its page describes it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use devpagemap::{Device, ExportRequest, Place, Size, SoftwareGpu, Via};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept, bind, listen, sendmsg, socket_with,
};

use crate::setup::{Thing, need};
use crate::two_processes::command;

const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
const SEED: u64 = 5;
/// Sizes are whole pages of these.
const PAGE_BYTES: u64 = 4096;

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sum of the words that the seed stands for.
fn sum(size_bytes: u64) -> u64 {
    let key = mix(mix(SEED ^ STRIDE).wrapping_add(1));
    let word = |index: u64| key.wrapping_add(index.wrapping_mul(STRIDE));
    (0..size_bytes / 8).map(word).fold(0, u64::wrapping_add)
}

fn header(size_bytes: u64, writable: bool) -> Vec<u8> {
    let mut header = b"DPMoffer".to_vec();
    header.extend(1_u32.to_le_bytes());
    header.extend(128_u32.to_le_bytes());
    for number in [size_bytes, SEED, sum(size_bytes), SEED + 1] {
        header.extend(number.to_le_bytes());
    }
    header.extend(u32::from(writable).to_le_bytes());
    header.extend([0; 4]);
    header.extend(b"udmabuf");
    header.resize(128, 0);
    header
}

fn exported(request: impl Into<ExportRequest>) -> OwnedFd {
    let gpu = SoftwareGpu::builder().build().expect("it has memory");
    let device = Device::builder(gpu).vram(Size::mib(1)).build().expect("it is a device");
    let buffer =
        device.buffer(Size::bytes(4 * PAGE_BYTES)).prefer(Place::VRAM).create().expect("there is room");
    buffer.export(request).expect("it is exported").into()
}

/// What the importer says to this header and this descriptor.
fn told(name: &str, header: &[u8], dma_buf: &OwnedFd) -> Option<String> {
    let mut importer = command()?;
    let path = std::env::temp_dir().join(format!("liar-{name}-{}.sock", std::process::id()));
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = socket.expect("there are sockets");
    bind(&socket, &SocketAddrUnix::new(&path).expect("a short path")).expect("nothing is in the way");
    listen(&socket, 1).expect("it is bound");
    importer.arg("import").arg("--socket").arg(&path).stdin(Stdio::null());
    let importer = importer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let peer = accept(&socket).expect("it connects");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = [dma_buf.as_fd()];
    assert!(beside.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for one");
    sendmsg(&peer, &[IoSlice::new(header)], &mut beside, SendFlags::NOSIGNAL).expect("it listens");
    drop(peer);
    let output = importer.wait_with_output().expect("it ends");
    std::fs::remove_file(&path).expect("it was made");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    Some(said)
}

#[test]
fn a_header_that_lies_about_the_size_of_a_real_dma_buf_is_refused_with_both_sizes() {
    if !need(&[Thing::Udmabuf]) {
        return;
    }
    let dma_buf = exported(Via::Udmabuf);
    for says_bytes in [3 * PAGE_BYTES, 5 * PAGE_BYTES] {
        let Some(said) = told("size", &header(says_bytes, true), &dma_buf) else { return };
        assert!(said.contains(&format!("the header says {says_bytes} bytes")), "{said}");
        assert!(said.contains("but the dma-buf has 16384 (16 KiB)"), "{said}");
    }
}

#[test]
fn a_header_that_lies_about_rights_to_a_real_dma_buf_is_refused() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let dma_buf = exported(Via::Vgem.read_only());
    let Some(said) = told("rights", &header(4 * PAGE_BYTES, true), &dma_buf) else { return };
    assert!(said.contains("may be written, but its descriptor is for reading only"), "{said}");
}
