//! One message through a socket, with the descriptors beside it.

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// More descriptors than this in one message are closed by the kernel.
const MOST_DESCRIPTORS: usize = 8;
/// More than any message has.
const MOST_BYTES: usize = 512;

/// What came.
#[derive(Debug)]
pub struct Received {
    /// The message; no bytes when the other side has closed.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, which close when they are dropped.
    pub descriptors: Vec<OwnedFd>,
    /// Whether there were more of them than this process could take.
    pub lost_descriptors: bool,
}

/// Sends a message whole, with a descriptor if there is one to send.
///
/// # Errors
/// What the kernel says: `EPIPE` and `ECONNRESET` when the other side has closed.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS);
    }
    let message = [IoSlice::new(bytes)];
    retry_on_intr(|| sendmsg(socket, &message, &mut beside, SendFlags::NOSIGNAL)).map(|_whole_message| ())
}

/// Takes the next message, and waits for it as long as the socket says.
///
/// # Errors
/// What the kernel says.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MOST_BYTES];
    let message = retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    bytes.truncate(message.bytes);
    let mut descriptors = Vec::new();
    for part in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    Ok(Received { bytes, descriptors, lost_descriptors: message.flags.contains(ReturnFlags::CTRUNC) })
}
