//! `cargo xtask vm`: the kernel tests, in guests that boot real kernels.
//!
//! | file | what it holds |
//! |---|---|
//! | `cache.rs` | the folder where kernels are kept |
//! | `packages.rs` | what the machine needs; Debian's packages |
//! | `stock_kernel.rs` | Debian's kernel and its modules |
//! | `own_kernel.rs` | a kernel of our own, from Debian's source |
//! | `programs.rs` | the test program and the command, with their libraries |
//! | `initramfs.rs`, `cpio.rs` | the first file system of a guest |
//! | `guest.rs` | QEMU, and the devices of a guest |
//! | `serial.rs` | what the guest said, and what to think of it |
//!
//! See `docs/kernel-tests.md`.

mod cache;
mod cpio;
mod guest;
mod initramfs;
mod own_kernel;
mod packages;
mod programs;
mod serial;
mod stock_kernel;

use crate::report::{Outcome, Step, seconds};
use crate::setup::{image_libraries, say_loudly};
use crate::tally::Tally;
use cache::Cache;
use guest::{Accelerator, Guest};
use initramfs::Orders;
use programs::Programs;
use serial::{Expected, Report};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the tests on both kernels should take on a machine with two processors that does nothing else.
const GOAL: Duration = Duration::from_secs(180);
/// What guests of both kernels must have.
const EVERYWHERE: [&str; 10] = [
    "vgem",
    "virtio-gpu",
    "bochs",
    "qxl",
    "udmabuf",
    "dma-heap",
    "dma-buf-list",
    "ivshmem",
    "ivshmem-wc",
    "nvme",
];
/// What runs on the own kernel: to what it makes a difference, but for the test that waits for ten seconds, which are as long there.
const OWN_MAX: &str = "nodes:: exports:: fences:: syncobjs:: who_imports:: pci:: drives:: \
    --skip work_that_takes_longer_than_vgems_fences_last";
/// What guests of the own kernel must have besides.
const OWN_ONLY: [&str; 3] = ["vkms", "sw-sync", "p2pmem"];

/// A kernel that can be booted.
pub struct Kernel {
    /// `stock` or `own`.
    name: &'static str,
    version: String,
    image: PathBuf,
    /// Modules in the order in which they are loaded.
    modules: Vec<PathBuf>,
}

/// Why there is no kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unready {
    /// The machine has not what it takes: a program, the network, the rights. The tests are skipped.
    Missing(String),
    /// It has, and it went wrong.
    Broken(String),
}

impl From<String> for Unready {
    fn from(reason: String) -> Unready {
        Unready::Broken(reason)
    }
}

/// What is asked for on the command line.
#[derive(Debug, Default, PartialEq)]
pub struct Options<'a> {
    /// Whether it is to be the own kernel.
    pub own_kernel: bool,
    /// Whether the processor is to run guests.
    pub kvm: bool,
    /// How large the main replay on a PCI device is to be, as `1/N`; when empty, as large as the kernel's guests have it.
    pub scale: &'a str,
    /// A part of the names of the tests that are to run.
    pub filter: &'a str,
}

impl<'a> Options<'a> {
    /// Reads the arguments behind `vm`; `None` for what makes no sense.
    pub fn parse(arguments: &[&'a str]) -> Option<Options<'a>> {
        let mut options = Options::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match *argument {
                "--own-kernel" => options.own_kernel = true,
                "--kvm" => options.kvm = true,
                "--scale" => {
                    let is_scale = |scale: &&&str| scale.strip_prefix("1/").is_some_and(is_positive);
                    options.scale = arguments.next().filter(is_scale)?;
                }
                filter if !filter.starts_with('-') && options.filter.is_empty() => options.filter = filter,
                _ => return None,
            }
        }
        Some(options)
    }
}

fn is_positive(number: &str) -> bool {
    number.parse::<u32>().is_ok_and(|number| number > 0)
}

/// `cargo xtask vm`.
pub fn run(options: &Options<'_>) -> Outcome {
    let kernel = packages::for_guests().map_err(Unready::Missing).and_then(|()| match options.own_kernel {
        true => own(),
        false => stock(),
    });
    on(kernel, options)
}

/// The step that sees to it that everything is installed.
pub fn packages() -> Outcome {
    let is_own_there = || Cache::open().is_ok_and(|cache| own_kernel::is_cached(&cache));
    if let Err(reason) = packages::for_images() {
        say_loudly(&format!("{reason}: nothing is tested with libgbm"));
    }
    let ready = packages::for_guests().and_then(|()| match is_own_there() {
        true => Ok(()),
        false => packages::for_building(),
    });
    match ready {
        Ok(()) => Outcome::passed("everything is there"),
        Err(reason) => {
            say_loudly(&format!("{reason}: kernel tests will be skipped"));
            Outcome::skipped(reason)
        }
    }
}

/// Both kernels, fetched and built behind everything else that goes on. It takes minutes when the cache has none.
pub struct Preparation {
    stock: JoinHandle<Result<Kernel, Unready>>,
    own: JoinHandle<Result<Kernel, Unready>>,
}

impl Preparation {
    /// Begins with it.
    pub fn begin() -> Preparation {
        let ready = || packages::for_guests().map_err(Unready::Missing);
        Preparation {
            stock: std::thread::spawn(move || ready().and_then(|()| stock())),
            own: std::thread::spawn(move || ready().and_then(|()| own())),
        }
    }

    /// Waits for the kernels, runs the tests on both, and says how long that took with the kernels at hand.
    pub fn steps(self) -> [Step; 2] {
        let mut took = Duration::ZERO;
        let mut test = |kernel: JoinHandle<Result<Kernel, Unready>>| {
            let kernel = kernel.join().expect("preparing does not panic");
            let begin = Instant::now();
            let outcome = on(kernel, &Options::default());
            took += begin.elapsed();
            outcome
        };
        let steps = [
            Step::timed("kernel tests, stock kernel", || test(self.stock)),
            Step::timed("kernel tests, own kernel", || test(self.own)),
        ];
        println!("\nthe kernel tests took {}; they should take less than {}", seconds(took), seconds(GOAL));
        steps
    }
}

fn stock() -> Result<Kernel, Unready> {
    stock_kernel::get(&Cache::open().map_err(Unready::Missing)?)
}

fn own() -> Result<Kernel, Unready> {
    own_kernel::get(&Cache::open().map_err(Unready::Missing)?)
}

/// The tests on a kernel, if there is one.
fn on(kernel: Result<Kernel, Unready>, options: &Options<'_>) -> Outcome {
    match kernel {
        Ok(kernel) => boot_all(&kernel, options).unwrap_or_else(|reason| {
            println!("{reason}");
            Outcome::failed(reason.lines().next().unwrap_or_default())
        }),
        Err(Unready::Missing(reason)) => {
            say_loudly(&format!("{reason}: kernel tests are skipped"));
            Outcome::skipped(reason)
        }
        Err(Unready::Broken(reason)) => {
            println!("{reason}");
            Outcome::failed(reason)
        }
    }
}

/// Boots one guest for each processor that makes a difference.
fn boot_all(kernel: &Kernel, options: &Options<'_>) -> Result<Outcome, String> {
    let cache = Cache::open()?;
    let programs = Programs::build()?;
    if programs.listed(options.filter)?.is_empty() {
        return Err(format!("no kernel test has `{}` in its name", options.filter));
    }
    let accelerator = accelerator(kernel, options);
    let (mut tally, mut remarks) = (Tally::default(), vec![kernel.version.clone()]);
    for (processor, all) in kernel.processors() {
        let filter = if options.filter.is_empty() { all } else { options.filter };
        let tests = programs.listed(filter)?.len() as u64;
        let scale = if options.scale.is_empty() { kernel.scale() } else { options.scale };
        let run = Run { cache: &cache, kernel, programs: &programs, tests, processor, accelerator, scale };
        match run.once(filter) {
            Ok((report, took)) => {
                tally += report.tally;
                remarks.push(format!("{processor}: {took}, up after {:.1} s", report.boot_seconds));
            }
            Err(reason) => {
                println!("*** {}, {processor}: {reason} ***", kernel.name);
                tally += Tally::FAILED;
                remarks.push(format!("{processor}: {reason}"));
            }
        }
    }
    Ok(Outcome { tally, remark: remarks.join("; ") })
}

fn accelerator(kernel: &Kernel, options: &Options<'_>) -> Accelerator {
    match options.kvm {
        true if guest::kvm_works(&kernel.image) => Accelerator::Kvm,
        true => {
            say_loudly("no guest boots with KVM on this machine: QEMU emulates the processor");
            Accelerator::Tcg
        }
        false => Accelerator::Tcg,
    }
}

impl Kernel {
    /// The processors that are tried, and which tests run on each when none are asked for by name: all on the stock kernel, on the own one
    /// those to which it or the processor makes a difference.
    fn processors(&self) -> &'static [(&'static str, &'static str)] {
        match self.name {
            "own" => &[("max", OWN_MAX), ("EPYC", "nodes:: drives::")],
            _ => &[("max", "")],
        }
    }

    /// How large the main replay on a PCI device is: in its full size once, in the guest that has time for it.
    fn scale(&self) -> &'static str {
        if self.name == "own" { "1/1" } else { "1/8" }
    }

    /// The folder of the host with libraries for images. They are 200 MB, so only one kernel has what it takes to see them.
    fn shared(&self) -> Option<PathBuf> {
        if self.name == "stock" { image_libraries().ok() } else { None }
    }

    fn required(&self) -> String {
        let own: &[&str] = if self.name == "own" { &OWN_ONLY } else { &["seccomp"] };
        let images: &[&str] = if self.shared().is_some() { &["gbm"] } else { &[] };
        [&EVERYWHERE, own, images].concat().join(",")
    }
}

/// One boot of one guest.
struct Run<'a> {
    cache: &'a Cache,
    kernel: &'a Kernel,
    programs: &'a Programs,
    tests: u64,
    processor: &'a str,
    accelerator: Accelerator,
    /// Of the main replay on a PCI device.
    scale: &'a str,
}

impl Run<'_> {
    /// Boots, judges, and names what failed and what was skipped.
    fn once(&self, filter: &str) -> Result<(Report, String), String> {
        let (kernel, processor) = (self.kernel, self.processor);
        let orders = Orders {
            token: format!("run-{}", std::process::id()),
            filter: filter.to_owned(),
            guest: format!("{},{processor}", kernel.name),
            required: kernel.required(),
            scale: self.scale.to_owned(),
            drives: guest::drives(),
            shared: kernel.shared(),
        };
        println!("booting {} with the processor {processor}: {} tests", kernel.version, self.tests);
        let guest = Guest {
            image: &kernel.image,
            initramfs: &initramfs::archive(kernel, self.programs, &orders)?,
            processor,
            accelerator: self.accelerator,
            shared: orders.shared.as_deref(),
        };
        let scratch = self.cache.scratch(&format!("guest-{}-{processor}", kernel.name))?;
        let captured = guest.run(&scratch)?;
        let report = serial::judge(&captured, &Expected { token: &orders.token, tests: self.tests })?;
        for reason in &report.skips {
            println!("skipped in {}: {reason}", orders.guest);
        }
        let slowest = report.slowest.iter().map(|(name, took)| format!("{name} {}", seconds(*took)));
        println!("longest in {}: {}", orders.guest, slowest.collect::<Vec<_>>().join(", "));
        if report.tally.failed > 0 {
            println!("failed in {}: {}", orders.guest, serial::failed_tests(&captured.output).join(", "));
        }
        Ok((report, seconds(captured.took)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_one_filter_may_come_in_any_order() {
        let options = Options { own_kernel: true, kvm: false, scale: "1/2", filter: "pci" };
        assert_eq!(Options::parse(&["pci", "--scale", "1/2", "--own-kernel"]), Some(options));
        assert_eq!(Options::parse(&[]), Some(Options::default()));
        assert_eq!(Options::parse(&["pci", "exports"]), None);
        assert_eq!(Options::parse(&["--shell"]), None);
        for wrong in ["2", "1/0", "1/x", "", "pci"] {
            assert_eq!(Options::parse(&["--scale", wrong]), None, "{wrong:?}");
        }
        assert_eq!(Options::parse(&["--scale"]), None);
    }
}
