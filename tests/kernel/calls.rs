//! Calls that tests have refused, by their numbers on x86-64.

use devpagemap::Error;

use crate::refusing::Call;

/// Of a file that is shared: the C library's own mappings are private.
pub const MMAP: Call = Call::system_with("mmap", 9, 3, 3, 1);
pub const EVENTFD: Call = Call::system("eventfd2", 290);
pub const EPOLL_CREATE: Call = Call::system("epoll_create1", 291);
pub const EPOLL_CTL: Call = Call::system("epoll_ctl", 233);
pub const CLONE: Call = Call::system("clone3", 435);
pub const UDMABUF_CREATE_LIST: Call = Call::ioctl("UDMABUF_CREATE_LIST", 0x4008_7543);
pub const DMA_HEAP_ALLOC: Call = Call::ioctl("DMA_HEAP_ALLOC", 0xc018_4800);
pub const CREATE_DUMB: Call = Call::ioctl("MODE_CREATE_DUMB", 0xc020_64b2);
pub const HANDLE_TO_FD: Call = Call::ioctl("PRIME_HANDLE_TO_FD", 0xc00c_642d);
pub const SYNC: Call = Call::ioctl("DMA_BUF_SYNC", 0x4008_6200);
pub const SET_NAME: Call = Call::ioctl("DMA_BUF_SET_NAME", 0x4008_6201);
pub const EXPORT_SYNC_FILE: Call = Call::ioctl("DMA_BUF_EXPORT_SYNC_FILE", 0xc008_6202);
pub const IMPORT_SYNC_FILE: Call = Call::ioctl("DMA_BUF_IMPORT_SYNC_FILE", 0x4008_6203);
pub const FILE_INFO: Call = Call::ioctl("SYNC_FILE_INFO", 0xc038_3e04);
/// On virtio-gpu the same number maps a buffer.
pub const VGEM_FENCE_ATTACH: Call = Call::ioctl("VGEM_FENCE_ATTACH", 0xc010_6441);
pub const SYNCOBJ_CREATE: Call = Call::ioctl("SYNCOBJ_CREATE", 0xc008_64bf);
pub const SYNCOBJ_HANDLE_TO_FD: Call = Call::ioctl("SYNCOBJ_HANDLE_TO_FD", 0xc018_64c1);
pub const SYNCOBJ_FD_TO_HANDLE: Call = Call::ioctl("SYNCOBJ_FD_TO_HANDLE", 0xc018_64c2);
pub const SYNCOBJ_IMPORT: Call = Call::ioctl("SYNCOBJ_FD_TO_HANDLE with a sync_file", 0xc010_64c2);
pub const SYNCOBJ_RESET: Call = Call::ioctl("SYNCOBJ_RESET", 0xc010_64c4);
pub const SYNCOBJ_QUERY: Call = Call::ioctl("SYNCOBJ_QUERY", 0xc018_64cb);
pub const SYNCOBJ_TRANSFER: Call = Call::ioctl("SYNCOBJ_TRANSFER", 0xc020_64cc);
pub const SYNCOBJ_SIGNAL: Call = Call::ioctl("SYNCOBJ_TIMELINE_SIGNAL", 0xc018_64cd);
pub const SYNCOBJ_EVENTFD: Call = Call::ioctl("SYNCOBJ_EVENTFD", 0xc018_64cf);

/// Whether this is what comes of a call that was refused. Of a thread the C library says that there is none now.
pub fn is_for_want_of_memory(error: &Error) -> bool {
    let said = error.to_string();
    said.contains("Cannot allocate memory") || said.contains("temporarily unavailable")
}
