//! Ctrl-C, and waits that it ends.

use crate::error::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Set by the first Ctrl-C; the second ends the process.
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// Readable from the first Ctrl-C on.
    event: Arc<OwnedFd>,
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// What was waited for is there.
    Ready,
    /// Ctrl-C.
    Interrupted,
    /// It took too long.
    TimedOut,
}

impl Interrupt {
    /// One that nothing sets.
    ///
    /// # Errors
    /// With a full table of descriptors.
    pub fn never() -> Result<Interrupt> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
            Error::System { action: "make a descriptor for Ctrl-C", source: errno.into() }
        })?;
        Ok(Interrupt { event: Arc::new(event) })
    }

    /// Set by Ctrl-C from now on.
    ///
    /// # Errors
    /// With a full table of descriptors.
    pub fn on_ctrl_c() -> Result<Interrupt> {
        let interrupt = Interrupt::never()?;
        let set = interrupt.clone();
        let handler = move || {
            if set.is_set() {
                std::process::exit(130);
            }
            set.set();
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            // Nobody may be reading.
            let _nobody_reads =
                writeln!(std::io::stderr(), "devpagemap: Ctrl-C will end the command at once: {error}");
        }
        Ok(interrupt)
    }

    /// As Ctrl-C does.
    pub fn set(&self) {
        // It fails only when it has been set 2^64 - 2 times.
        let _set_already = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Whether Ctrl-C came.
    pub fn is_set(&self) -> bool {
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Lets time pass, unless Ctrl-C comes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pause(&self, long: Duration) -> Result<()> {
        // Nothing is asked of the descriptor, so only Ctrl-C and the end of the time wake.
        self.wait_for(self.event.as_fd(), PollFlags::empty(), Some(long)).map(|_woken| ())
    }

    /// Waits until `fd` is ready for `what`, or has an error that the next call on it will tell.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait_for(&self, fd: BorrowedFd<'_>, what: PollFlags, limit: Option<Duration>) -> Result<Woken> {
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let event = self.event.as_fd();
            let mut fds = [PollFd::new(&event, PollFlags::IN), PollFd::new(&fd, what)];
            match poll(&mut fds, left.as_ref()) {
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::System { action: "wait for a descriptor", source: errno.into() });
                }
                Ok(0) => return Ok(Woken::TimedOut),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Woken::Interrupted),
                Ok(_) => return Ok(Woken::Ready),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_the_descriptor_is_ready_or_at_ctrl_c_or_in_time() {
        let (silent, told) = (Interrupt::never().unwrap(), Interrupt::never().unwrap());
        let wait = |on: &Interrupt, limit| on.wait_for(told.event.as_fd(), PollFlags::IN, limit).unwrap();
        assert_eq!(wait(&silent, Some(Duration::from_millis(1))), Woken::TimedOut);
        told.set();
        assert_eq!(wait(&silent, None), Woken::Ready);
        silent.set();
        assert_eq!(wait(&silent, None), Woken::Interrupted);
        assert!(silent.is_set());
    }
}
