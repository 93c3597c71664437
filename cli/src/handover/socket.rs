//! The socket: made where nothing is in the way, taken away again at the end.
//!
//! A socket file outlives a process that is killed. Such a one is known by nobody listening behind it, and is replaced; a socket that
//! somebody listens to, and anything that is no socket, is never touched.

use super::interrupt::{Interrupt, Woken};
use super::messages::Message;
use super::refusal::Refusal;
use super::wire;
use crate::error::{Error, Result};
use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, Stat, chmod, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many importers may wait for their turn.
const WAITING: i32 = 16;

/// A socket that importers connect to.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Which file it is, so that another one at the same path is left alone.
    file: Option<(u64, u64)>,
}

/// The other side of a connection.
#[derive(Debug)]
pub struct Peer {
    fd: OwnedFd,
    path: PathBuf,
}

/// A message, and what came with it.
#[derive(Debug)]
pub struct Incoming<M> {
    /// The message.
    pub message: M,
    /// The descriptors beside it.
    pub descriptors: Vec<OwnedFd>,
    /// Whether there were more.
    pub lost_descriptors: bool,
}

/// Why there is no message.
#[derive(Debug)]
pub enum NoMessage {
    /// Ctrl-C.
    Interrupted,
    /// It took too long.
    TimedOut,
    /// What came is wrong, or the other side left.
    Refused(Refusal),
    /// The kernel failed.
    Failed(Error),
}

impl Listener {
    /// Makes the socket, which only this user may connect to.
    ///
    /// # Errors
    /// When something is in the way, or the folder is missing or may not be written.
    pub fn bind(path: &Path) -> Result<Listener> {
        let address = address(path)?;
        make_way(path, &address)?;
        let fd = seqpacket(path)?;
        let refused = |errno| match errno {
            Errno::ADDRINUSE => refusal(path, "something came to be there just now"),
            Errno::NOENT => refusal(path, "there is no such folder"),
            Errno::NOTDIR => refusal(path, "the folder is no folder"),
            Errno::ACCESS | Errno::PERM => refusal(path, "no rights to make a socket there"),
            Errno::ROFS => refusal(path, "the folder may only be read"),
            errno => failed(path, "make a socket", errno),
        };
        bind(&fd, &address).map_err(refused)?;
        let mut listener = Listener { fd, path: path.into(), file: None };
        let stat = lstat(path).map_err(|errno| failed(path, "look at the new socket", errno))?;
        listener.file = Some(identity(&stat));
        // Before it listens nobody can connect.
        chmod(path, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(path, "keep others out of", errno))?;
        listen(&listener.fd, WAITING).map_err(|errno| failed(path, "listen at", errno))?;
        Ok(listener)
    }

    /// The next importer; `None` at Ctrl-C.
    ///
    /// # Errors
    /// With a full table of descriptors.
    pub fn accept(&self, interrupt: &Interrupt) -> Result<Option<Peer>> {
        loop {
            match interrupt.wait_for(self.fd.as_fd(), PollFlags::IN, None)? {
                Woken::Interrupted => return Ok(None),
                Woken::Ready | Woken::TimedOut => {}
            }
            match accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Some(Peer { fd, path: self.path.clone() })),
                Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                Err(errno) => return Err(failed(&self.path, "accept an importer at", errno)),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let still_ours = lstat(&self.path).is_ok_and(|stat| Some(identity(&stat)) == self.file);
        if still_ours {
            // Somebody may have been quicker; gone is gone.
            let _gone = unlink(&self.path);
        }
    }
}

impl Peer {
    /// Connects to an exporter.
    ///
    /// # Errors
    /// When there is none, or it may not be reached.
    pub fn connect(path: &Path) -> Result<Peer> {
        let address = address(path)?;
        let fd = seqpacket(path)?;
        let refused = |errno| match errno {
            Errno::NOENT => refusal(path, "nobody exports there: there is no such file"),
            Errno::CONNREFUSED if is_socket(path) => {
                refusal(path, "nobody exports there any more: the socket is a left-over")
            }
            Errno::CONNREFUSED => refusal(path, "it is no socket"),
            Errno::PROTOTYPE => refusal(path, "it is a socket of another program"),
            Errno::ACCESS | Errno::PERM => refusal(path, "no rights to connect"),
            Errno::NOTDIR => refusal(path, "the folder is no folder"),
            errno => failed(path, "connect to", errno),
        };
        rustix::io::retry_on_intr(|| connect(&fd, &address)).map_err(refused)?;
        Ok(Peer { fd, path: path.into() })
    }

    /// The process at the other end, if the kernel says.
    pub fn process(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.fd).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }

    /// Sends a message, with a descriptor beside it or without; whether the other side was still there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, message: &impl Message, descriptor: Option<BorrowedFd<'_>>) -> Result<bool> {
        match wire::send(self.fd.as_fd(), &message.encode(), descriptor.as_slice()) {
            Ok(()) => Ok(true),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(false),
            Err(errno) => Err(failed(&self.path, "send through", errno)),
        }
    }

    /// Waits for a message, for as long as it takes without a limit.
    ///
    /// # Errors
    /// Why there is none.
    pub fn receive<M: Message>(
        &self,
        interrupt: &Interrupt,
        limit: Option<Duration>,
    ) -> std::result::Result<Incoming<M>, NoMessage> {
        match interrupt.wait_for(self.fd.as_fd(), PollFlags::IN, limit).map_err(NoMessage::Failed)? {
            Woken::Ready => {}
            Woken::Interrupted => return Err(NoMessage::Interrupted),
            Woken::TimedOut => return Err(NoMessage::TimedOut),
        }
        let left = || NoMessage::Refused(Refusal::Left { awaited: M::WHAT });
        let received = match wire::receive(self.fd.as_fd()) {
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Err(left()),
            Err(errno) => return Err(NoMessage::Failed(failed(&self.path, "receive through", errno))),
        };
        if received.bytes.is_empty() && received.descriptors.is_empty() && !received.lost_descriptors {
            return Err(left());
        }
        let message = M::decode(&received.bytes).map_err(NoMessage::Refused)?;
        let (descriptors, lost_descriptors) = (received.descriptors, received.lost_descriptors);
        Ok(Incoming { message, descriptors, lost_descriptors })
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<M> Incoming<M> {
    /// The one descriptor that has to be there.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn only_descriptor(mut self) -> std::result::Result<(M, OwnedFd), Refusal> {
        match (self.descriptors.len(), self.lost_descriptors) {
            (0, false) => Err(Refusal::NoDescriptor),
            (0, true) => Err(Refusal::NoRoomForDescriptor),
            (1, false) => Ok((self.message, self.descriptors.remove(0))),
            (count, lost) => Err(Refusal::ManyDescriptors { count: count + usize::from(lost) }),
        }
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => refusal(path, "the path of a socket has at most 107 bytes"),
        _ => refusal(path, "it is no path that a socket can have"),
    })
}

fn seqpacket(path: &Path) -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failed(path, "make a socket for", errno))
}

/// Takes a left-over away; anything else that is in the way is named.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let stat = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ACCESS) => return Err(refusal(path, "no rights to look there")),
        Err(Errno::NOTDIR) => return Err(refusal(path, "the folder is no folder")),
        Err(errno) => return Err(failed(path, "look at", errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(refusal(path, "it exists and is no socket; choose another path"));
    }
    match connect(seqpacket(path)?, address) {
        Err(Errno::CONNREFUSED) => {}
        Ok(()) => return Err(refusal(path, "somebody exports there already")),
        Err(Errno::AGAIN) => return Err(refusal(path, "somebody exports there already, and is busy")),
        Err(Errno::PROTOTYPE) => return Err(refusal(path, "it is a socket of another program")),
        Err(Errno::ACCESS | Errno::PERM) => return Err(refusal(path, "it is a socket of another user")),
        Err(errno) => return Err(failed(path, "find out who listens at", errno)),
    }
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => {
            Err(refusal(path, "it is a left-over socket, and there are no rights to remove it"))
        }
        Err(errno) => Err(failed(path, "remove the left-over", errno)),
    }
}

fn is_socket(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn refusal(path: &Path, reason: &str) -> Error {
    Error::usage(format!("--socket {}", path.display()), reason)
}

fn failed(path: &Path, action: &'static str, errno: Errno) -> Error {
    Error::Socket { path: path.display().to_string(), action, source: errno.into() }
}
