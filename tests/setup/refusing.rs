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

impl Call {
    /// A system call whatever its arguments.
    pub const fn system(name: &'static str, number: i64) -> Call {
        Call { name, number, argument: None }
    }

    /// A system call whose argument at `index` has this value in the bits of `mask`.
    pub const fn system_with(name: &'static str, number: i64, index: u8, mask: u64, value: u64) -> Call {
        Call { name, number, argument: Some((index, mask, value)) }
    }

    /// A request to a device.
    pub const fn ioctl(name: &'static str, request: u32) -> Call {
        Call::system_with(name, IOCTL, 1, u32::MAX as u64, request as u64)
    }
}

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
            apply_filter(&program).unwrap_or_else(|error| panic!("{} cannot be refused: {error}", call.name));
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
