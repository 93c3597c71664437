//! udmabuf: pages of a memfd, as they are, as a dma-buf.
//!
//! The kernel has limits on how many runs and how many bytes one has, as parameters of the module; the defaults are
//! 1024 and 64 MiB. Who writes them may change them at any time, so they are read at each use.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::DmaBuf;
use super::exporter::{Abilities, Exporter, Made, Source, Wanted};
use crate::error::{Error, Result};
use crate::share::WhyNot;
use crate::uapi::udmabuf;

/// Where the limits are.
const PARAMETERS: &str = "/sys/module/udmabuf/parameters";
/// What they are in a kernel that does not tell.
const LIST_LIMIT: u64 = 1024;
const SIZE_LIMIT_MB: u64 = 64;

/// The device, open.
#[derive(Debug)]
pub(crate) struct Udmabuf(OwnedFd);

impl Udmabuf {
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open() -> Result<Udmabuf, WhyNot> {
        open_device("open the device of udmabuf", udmabuf::PATH).map(Udmabuf)
    }
}

impl Exporter for Udmabuf {
    fn abilities(&self) -> Abilities {
        Abilities {
            in_place: true,
            max_bytes: parameter("size_limit_mb", SIZE_LIMIT_MB) << 20,
            max_runs: parameter("list_limit", LIST_LIMIT) as usize,
            read_only: false,
        }
    }

    fn make(&self, wanted: Wanted, source: Source<'_>) -> Result<Made> {
        let Source::InPlace { memfd, runs } = source else {
            return Err(Error::Unsupported { what: "udmabuf has no pages of its own" });
        };
        debug_assert_eq!(wanted.len_bytes, runs.iter().map(|(_, len)| len).sum::<u64>());
        let fd = udmabuf::create(self.0.as_fd(), memfd, runs)
            .map_err(|errno| Error::io("make a udmabuf", wanted.len_bytes, errno))?;
        Ok(Made::of(DmaBuf::new(fd)?))
    }
}

fn parameter(name: &str, default: u64) -> u64 {
    let read = std::fs::read_to_string(format!("{PARAMETERS}/{name}"));
    read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
}

/// Opens a device that may not be there.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn open_device(action: &'static str, path: &str) -> Result<OwnedFd, WhyNot> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            WhyNot::NotHere { what: format!("there is no {path}").into() }
        }
        errno => WhyNot::of(Error::of_path(action, path, errno)),
    })
}
