//! A guest: a machine of QEMU's with the devices that the tests are about.
//!
//! ```text
//! q35 ─┬─ virtio-gpu, bochs, qxl           DRM drivers
//!      ├─ ivshmem, 512 MiB prefetchable    a PCI BAR to serve as VRAM
//!      ├─ root port ── switch ─┬─ nvme A, with 64 MiB of controller memory
//!      │                       └─ nvme B
//!      └─ root port ── nvme C
//! ```
//!
//! A peer transfer between A's memory and A or B stays below the switch; one to C crosses the host bridge, which the
//! kernel allows on some processors: on EPYC, and not on what QEMU calls `max`.

use super::cache::Scratch;
use crate::process::{self, Captured};
use crate::setup::say_loudly;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Far beyond what a run takes on a slow machine that does something else beside.
const LIMIT: Duration = Duration::from_secs(900);
/// When a guest that says nothing is given up; seconds are enough for the slowest that does.
const FIRST_WORD: Duration = Duration::from_secs(90);
/// What the first process says when the tests begin.
const UP: &str = "guest: up after ";
/// How long a kernel has to say its first word to the processor.
const KVM_LIMIT: Duration = Duration::from_secs(20);
/// How large each drive is.
const DRIVE_BYTES: u64 = 64 << 20;
/// The drives.
const DRIVES: [&str; 3] = ["a", "b", "c"];
/// The memory of a guest. The main replay in its full size may have 1.3 GiB in use outside of the BAR: all its buffers, and what it evicts
/// before the copies are done.
const MEMORY_MIB: &str = "2048";
/// The switch and the drives.
const TOPOLOGY: [&str; 8] = [
    "pcie-root-port,id=port1,chassis=1,slot=1",
    "x3130-upstream,id=switch,bus=port1",
    "xio3130-downstream,id=below1,bus=switch,chassis=2,slot=1",
    "xio3130-downstream,id=below2,bus=switch,chassis=3,slot=2",
    "pcie-root-port,id=port2,chassis=4,slot=2",
    "nvme,serial=A,drive=a,bus=below1,cmb_size_mb=64",
    "nvme,serial=B,drive=b,bus=below2",
    "nvme,serial=C,drive=c,bus=port2",
];

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself: works everywhere.
    Tcg,
    /// The processor.
    Kvm,
}

/// What to boot.
pub struct Guest<'a> {
    /// The kernel's image.
    pub image: &'a Path,
    /// The first file system.
    pub initramfs: &'a [u8],
    /// The processor, by QEMU's name.
    pub processor: &'a str,
    /// Who runs it.
    pub accelerator: Accelerator,
    /// A folder of the host that it may read.
    pub shared: Option<&'a Path>,
}

/// How many drives a guest has.
pub fn drives() -> usize {
    DRIVES.len()
}

impl Guest<'_> {
    /// Boots it, shows what it says, and returns that when it is off.
    ///
    /// # Errors
    /// That QEMU cannot be started.
    pub fn run(&self, scratch: &Scratch) -> Result<Captured, String> {
        let run = self.boot(scratch)?;
        if has_come_up(&run.output) {
            return Ok(run);
        }
        let end = run.status.map_or("ended by us".to_owned(), |status| status.to_string());
        let last = run.output.lines().map(str::trim).rfind(|line| !line.is_empty());
        let last = last.unwrap_or("(nothing)");
        say_loudly(&format!(
            "the guest did not come up in {:?} ({end}), and said last: {last}; once more",
            run.took
        ));
        self.boot(scratch)
    }

    fn boot(&self, scratch: &Scratch) -> Result<Captured, String> {
        let initramfs = scratch.path().join("initramfs");
        std::fs::write(&initramfs, self.initramfs)
            .map_err(|error| format!("{}: {error}", initramfs.display()))?;
        let mut command = machine(self.image, self.processor, self.accelerator);
        command.arg("-initrd").arg(&initramfs);
        command.args(["-device", "virtio-gpu-pci", "-device", "bochs-display", "-device", "qxl"]);
        command.args(["-object", "memory-backend-memfd,id=bar,size=512M,share=on"]);
        command.args(["-device", "ivshmem-plain,memdev=bar"]);
        for drive in DRIVES {
            let backend = drive_file(scratch.path(), drive)?;
            command.args(["-drive", &backend]);
        }
        if let Some(folder) = self.shared {
            let path = folder.display();
            command.arg("-virtfs");
            command.arg(format!("local,path={path},mount_tag=shared,security_model=none,readonly=on"));
        }
        for device in TOPOLOGY {
            command.args(["-device", device]);
        }
        process::run_watched(&mut command, LIMIT, FIRST_WORD)
    }
}

/// Whether a kernel says anything when the processor runs it. There are machines that have `/dev/kvm`, and make a
/// guest's processor, which then does nothing.
pub fn kvm_works(image: &Path) -> bool {
    // Without a file system it soon gives up, and not without a word.
    let run = process::run_captured(&mut machine(image, "max", Accelerator::Kvm), KVM_LIMIT);
    run.is_ok_and(|run| run.output.contains("Linux version") || run.output.contains("Kernel panic"))
}

/// What all guests have in common.
fn machine(image: &Path, processor: &str, accelerator: Accelerator) -> Command {
    // QEMU goes when we go, however we go.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-M", "q35", "-smp", "2", "-m", MEMORY_MIB, "-nic", "none", "-vga", "none"]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]);
    command.args(match accelerator {
        Accelerator::Tcg => ["-accel", "tcg,thread=multi"],
        Accelerator::Kvm => ["-accel", "kvm"],
    });
    // What of a processor QEMU does not emulate is no news.
    command.args(["-cpu", &format!("{processor},check=off")]).arg("-kernel").arg(image);
    // A busy host may starve the guest's timer while the kernel tests it.
    command.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
    command
}

/// Makes an empty drive, and returns what QEMU is to know of it.
fn drive_file(folder: &Path, drive: &str) -> Result<String, String> {
    let path = folder.join(format!("drive-{drive}"));
    let file = File::create(&path).and_then(|file| file.set_len(DRIVE_BYTES));
    file.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(format!("if=none,format=raw,cache=unsafe,id={drive},file={}", path.display()))
}

/// Whether the first process has come as far as the tests. One run in many ends before that, with QEMU crashing or standing still, or with
/// a kernel that meets code which QEMU has not seen being patched: none of it is about what is tested.
fn has_come_up(output: &str) -> bool {
    output.lines().any(|line| line.starts_with(UP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_says_nothing_or_dies_while_it_boots_has_not_come_up() {
        for dead in ["", "\r\n", "[    2.3] Oops: int3: 0000 [#1] SMP\r\n[    2.4] guest: up after\r\n"] {
            assert!(!has_come_up(dead), "{dead}");
        }
        assert!(has_come_up("BIOS\r\nguest: up after 2.50 s\r\nrunning 3 tests\r\n"));
    }
}
