//! A descriptor that has been looked at, and is a dma-buf.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, FsWord, OFlags, SeekFrom, fcntl_getfl, fstat, fstatfs, seek};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::error::{Error, Result};
use crate::uapi;

/// `DMA_BUF_MAGIC`: the type of the file system that all dma-bufs are in.
const MAGIC: FsWord = 0x444d_4142;

/// A dma-buf that this process has a descriptor of: memory that the kernel lends to several devices and processes.
#[derive(Debug)]
pub struct DmaBuf {
    /// Constant.
    fd: OwnedFd,
    /// Constant.
    len_bytes: u64,
    /// Whether it may be mapped for writing. Constant.
    writable: bool,
    /// Which of all dma-bufs it is. Constant.
    inode: u64,
}

/// What the kernel tells of a dma-buf beside its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DmaBufInfo {
    /// Who exported it: the name of a driver, `udmabuf`, `system` (a heap).
    pub exporter: String,
    /// The name that somebody has given it.
    pub name: Option<String>,
    /// How many have it: descriptors in all processes, mappings, importers in the kernel.
    pub references: u64,
}

impl DmaBuf {
    /// Takes a descriptor after a look at it.
    ///
    /// # Errors
    /// [`Error::NotADmaBuf`], which says what it is, and [`Error::Io`] when the kernel does not tell.
    pub fn new(fd: OwnedFd) -> Result<DmaBuf> {
        let (len_bytes, writable, inode) = look_at(fd.as_fd())?;
        Ok(DmaBuf { fd, len_bytes, writable, inode })
    }

    /// Takes a copy of a descriptor that stays its owner's, by number, as it comes from another language or a command line.
    ///
    /// # Errors
    /// As [`DmaBuf::new`]; [`Error::ClosedFd`] when there is no such descriptor, [`Error::NoDescriptorsLeft`] when there is none for the copy.
    pub fn from_raw(fd: RawFd) -> Result<DmaBuf> {
        if fd < 0 {
            return Err(Error::ClosedFd { fd });
        }
        // SAFETY: the number is used for one call, which fails with EBADF when no file is behind it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        DmaBuf::try_from(borrowed)
    }

    /// How large it is, in whole pages.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Which of all dma-bufs it is: descriptors of the same one have the same number, and since Linux 5.12 no other ever has it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether it may be mapped for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// A second descriptor of the same dma-buf.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    pub fn try_clone(&self) -> Result<DmaBuf> {
        let fd = fcntl_dupfd_cloexec(&self.fd, 0)
            .map_err(|errno| Error::of_descriptor("copy the descriptor of a dma-buf", errno))?;
        let &DmaBuf { len_bytes, writable, inode, .. } = self;
        Ok(DmaBuf { fd, len_bytes, writable, inode })
    }

    /// Gives it a name for people, which the kernel shows; cut off after 31 bytes, and at the first zero.
    ///
    /// # Errors
    /// [`Error::Io`] with what the kernel says.
    pub fn set_name(&self, name: &str) -> Result<()> {
        let mut end = name.len().min(uapi::dma_buf::NAME_BYTES - 1);
        end = name.bytes().position(|byte| byte == 0).map_or(end, |zero| end.min(zero));
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let name = CString::new(&name[..end]).expect("cut off at the first zero");
        uapi::dma_buf::set_name(self.as_fd(), &name)
            .map_err(|errno| Error::io("name a dma-buf", self.len_bytes, errno))
    }

    /// What the kernel tells of it now.
    ///
    /// # Errors
    /// [`Error::Io`] without `/proc`, [`Error::NoDescriptorsLeft`].
    pub fn info(&self) -> Result<DmaBufInfo> {
        // Of this thread: the process's own is empty once its first thread has ended.
        let mut path = String::from("/proc/thread-self/fdinfo/");
        write!(path, "{}", self.fd.as_raw_fd()).expect("a string takes everything");
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::of_std("read what the kernel tells of a dma-buf", 0, &error))?;
        Ok(DmaBufInfo::parse(&text))
    }

    /// Whether the kernel lets fences into it and out of it as descriptors: since Linux 6.0.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    pub fn takes_sync_files(&self) -> Result<bool> {
        match uapi::dma_buf::export_sync_file(self.as_fd(), uapi::dma_buf::Use::Read) {
            Ok(_sync_file) => Ok(true),
            Err(Errno::NOTTY) => Ok(false),
            Err(errno) => Err(Error::of_descriptor("ask a dma-buf for its fences", errno)),
        }
    }

    /// The descriptor itself.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl DmaBufInfo {
    fn parse(text: &str) -> DmaBufInfo {
        let mut info = DmaBufInfo::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key {
                "count" => info.references = value.parse().unwrap_or_default(),
                "exp_name" => value.clone_into(&mut info.exporter),
                "name" => info.name = Some(value.to_owned()),
                _ => {}
            }
        }
        info
    }
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TryFrom<OwnedFd> for DmaBuf {
    type Error = Error;

    fn try_from(fd: OwnedFd) -> Result<DmaBuf> {
        DmaBuf::new(fd)
    }
}

/// Takes a copy of a descriptor that stays its owner's.
impl TryFrom<BorrowedFd<'_>> for DmaBuf {
    type Error = Error;

    fn try_from(fd: BorrowedFd<'_>) -> Result<DmaBuf> {
        let copy = fcntl_dupfd_cloexec(fd, 0).map_err(|errno| match errno {
            Errno::BADF => Error::ClosedFd { fd: fd.as_raw_fd() },
            errno => Error::of_descriptor("copy a descriptor", errno),
        })?;
        DmaBuf::new(copy)
    }
}

impl From<DmaBuf> for OwnedFd {
    fn from(dma_buf: DmaBuf) -> OwnedFd {
        dma_buf.fd
    }
}

/// The size of a dma-buf, whether it may be mapped for writing, and its inode.
fn look_at(fd: BorrowedFd<'_>) -> Result<(u64, bool, u64)> {
    let io = |errno| Error::of_descriptor("look at a descriptor", errno);
    let (file_system, status) = (fstatfs(fd).map_err(io)?, fstat(fd).map_err(io)?);
    if file_system.f_type != MAGIC {
        return Err(Error::NotADmaBuf {
            fd: fd.as_raw_fd(),
            is: what_it_is(FileType::from_raw_mode(status.st_mode)),
        });
    }
    let len_bytes = seek(fd, SeekFrom::End(0)).map_err(io)?;
    let access = fcntl_getfl(fd).map_err(io)? & OFlags::ACCMODE;
    Ok((len_bytes, access == OFlags::RDWR, status.st_ino))
}

fn what_it_is(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn refusal(fd: OwnedFd) -> String {
        DmaBuf::new(fd).expect_err("it is no dma-buf").to_string()
    }

    #[test]
    fn what_is_no_dma_buf_is_refused_by_what_it_is() {
        assert!(refusal(File::open("/proc/self/exe").expect("it runs").into()).contains("a file"));
        assert!(refusal(File::open("/").expect("there is a root").into()).contains("a directory"));
        assert!(refusal(File::open("/dev/null").expect("it is there").into()).contains("a character device"));
        let (end, _other) = rustix::pipe::pipe().expect("two descriptors");
        assert!(refusal(end).contains("a pipe"));
    }

    #[test]
    fn a_number_without_a_file_is_a_closed_descriptor() {
        for fd in [-1, 1 << 20] {
            assert_eq!(DmaBuf::from_raw(fd).expect_err("nothing is there"), Error::ClosedFd { fd });
        }
    }

    #[test]
    fn the_kernels_text_gives_exporter_name_and_references() {
        let text = "pos:\t0\nflags:\t02100002\nmnt_id:\t13\nino:\t7\nsize:\t8192\ncount:\t3\nexp_name:\tudmabuf\nname:\tframe: 1\n";
        let info = DmaBufInfo::parse(text);
        assert_eq!(
            (info.exporter.as_str(), info.name.as_deref(), info.references),
            ("udmabuf", Some("frame: 1"), 3)
        );
        assert_eq!(DmaBufInfo::parse("pos:\t0\n"), DmaBufInfo::default());
    }
}
