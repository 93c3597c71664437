//! A kernel that refuses a call: a thread whose calls go through a filter of its own (seccomp).

use std::path::Path;

use rustix::io::Errno;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter,
};

/// A call, by what it is called and its numbers on x86-64.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    /// Of the system call.
    number: i64,
    /// Which argument tells it from others with the number, by which of its bits, and what these are.
    argument: Option<(u8, u64, u64)>,
}

const IOCTL: i64 = 16;

const fn ioctl(name: &'static str, request: u64) -> Call {
    Call { name, number: IOCTL, argument: Some((1, u32::MAX as u64, request)) }
}

/// Of a file that is shared: the C library's own are private.
pub const MMAP: Call = Call { name: "mmap", number: 9, argument: Some((3, 3, 1)) };
pub const MREMAP: Call = Call { name: "mremap", number: 25, argument: None };
pub const EVENTFD: Call = Call { name: "eventfd2", number: 290, argument: None };
pub const EPOLL_CREATE: Call = Call { name: "epoll_create1", number: 291, argument: None };
pub const EPOLL_CTL: Call = Call { name: "epoll_ctl", number: 233, argument: None };
pub const CLONE: Call = Call { name: "clone3", number: 435, argument: None };
pub const UDMABUF_CREATE_LIST: Call = ioctl("UDMABUF_CREATE_LIST", 0x4008_7543);
pub const DMA_HEAP_ALLOC: Call = ioctl("DMA_HEAP_ALLOC", 0xc018_4800);
pub const CREATE_DUMB: Call = ioctl("MODE_CREATE_DUMB", 0xc020_64b2);
pub const HANDLE_TO_FD: Call = ioctl("PRIME_HANDLE_TO_FD", 0xc00c_642d);
pub const SYNC: Call = ioctl("DMA_BUF_SYNC", 0x4008_6200);
pub const SET_NAME: Call = ioctl("DMA_BUF_SET_NAME", 0x4008_6201);
pub const EXPORT_SYNC_FILE: Call = ioctl("DMA_BUF_EXPORT_SYNC_FILE", 0xc008_6202);
pub const IMPORT_SYNC_FILE: Call = ioctl("DMA_BUF_IMPORT_SYNC_FILE", 0x4008_6203);
pub const FILE_INFO: Call = ioctl("SYNC_FILE_INFO", 0xc038_3e04);
/// On virtio-gpu the same number maps a buffer.
pub const VGEM_FENCE_ATTACH: Call = ioctl("VGEM_FENCE_ATTACH", 0xc010_6441);
pub const SYNCOBJ_CREATE: Call = ioctl("SYNCOBJ_CREATE", 0xc008_64bf);
pub const SYNCOBJ_HANDLE_TO_FD: Call = ioctl("SYNCOBJ_HANDLE_TO_FD", 0xc018_64c1);
pub const SYNCOBJ_FD_TO_HANDLE: Call = ioctl("SYNCOBJ_FD_TO_HANDLE", 0xc018_64c2);
pub const SYNCOBJ_IMPORT: Call = ioctl("SYNCOBJ_FD_TO_HANDLE with a sync_file", 0xc010_64c2);
pub const SYNCOBJ_RESET: Call = ioctl("SYNCOBJ_RESET", 0xc010_64c4);
pub const SYNCOBJ_QUERY: Call = ioctl("SYNCOBJ_QUERY", 0xc018_64cb);
pub const SYNCOBJ_TRANSFER: Call = ioctl("SYNCOBJ_TRANSFER", 0xc020_64cc);
pub const SYNCOBJ_SIGNAL: Call = ioctl("SYNCOBJ_TIMELINE_SIGNAL", 0xc018_64cd);
pub const SYNCOBJ_EVENTFD: Call = ioctl("SYNCOBJ_EVENTFD", 0xc018_64cf);

/// Why calls cannot be refused here, if so.
pub fn look() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the calls' numbers are those of another processor".into());
    }
    let actions = "/proc/sys/kernel/seccomp/actions_avail";
    match std::fs::read_to_string(Path::new(actions)) {
        Ok(known) if known.split_whitespace().any(|action| action == "errno") => Ok(()),
        Ok(known) => Err(format!("{actions} has {known}")),
        Err(error) => Err(format!("{actions}: {error}")),
    }
}

/// Runs `body` in a thread of its own, to which the kernel says that there is no memory, whenever it makes this call; also to threads that
/// it starts.
pub fn refusing<O: Send>(call: Call, body: impl FnOnce() -> O + Send) -> O {
    let rules = match call.argument {
        None => Vec::new(),
        Some((index, mask, value)) => {
            let equals = SeccompCmpOp::MaskedEq(mask);
            let is_it = SeccompCondition::new(index, SeccompCmpArgLen::Dword, equals, value);
            vec![SeccompRule::new(vec![is_it.expect("an argument")]).expect("a condition")]
        }
    };
    let no_memory = SeccompAction::Errno(Errno::NOMEM.raw_os_error().unsigned_abs());
    let calls = [(call.number, rules)].into();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, no_memory, TargetArch::x86_64);
    let program = filter.and_then(TryInto::try_into).expect("a short program");
    let program: seccompiler::BpfProgram = program;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&program).expect("a thread may filter its own calls");
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
