//! `cargo xtask vm`: the kernel tests, in guests that boot real kernels.
//!
//! | file | what it holds |
//! |---|---|
//! | `cache.rs` | the folder where kernels are kept |
//! | `packages.rs` | what the machine needs; Debian's packages |
//! | `stock_kernel.rs` | Debian's kernel and its modules |
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
mod packages;
mod programs;
mod serial;
mod stock_kernel;

use crate::report::{Outcome, seconds};
use crate::setup::say_loudly;
use crate::tally::Tally;
use cache::Cache;
use guest::{Accelerator, Guest};
use initramfs::Orders;
use programs::Programs;
use serial::{Expected, Report};
use std::path::PathBuf;

/// What both kernels have.
const EVERYWHERE: [&str; 8] =
    ["vgem", "virtio-gpu", "bochs", "qxl", "udmabuf", "dma-heap", "ivshmem", "nvme"];

/// A kernel that can be booted.
pub struct Kernel {
    /// `stock` or `own`.
    name: &'static str,
    version: String,
    image: PathBuf,
    /// Modules in the order in which they are loaded.
    modules: Vec<PathBuf>,
}

/// What is asked for on the command line.
#[derive(Debug, Default, PartialEq)]
pub struct Options<'a> {
    /// Whether the processor is to run guests.
    pub kvm: bool,
    /// A part of the names of the tests that are to run.
    pub filter: &'a str,
}

impl<'a> Options<'a> {
    /// Reads the arguments behind `vm`; `None` for what makes no sense.
    pub fn parse(arguments: &[&'a str]) -> Option<Options<'a>> {
        let mut options = Options::default();
        for argument in arguments {
            match *argument {
                "--kvm" => options.kvm = true,
                filter if !filter.starts_with('-') && options.filter.is_empty() => options.filter = filter,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// The kernel tests on Debian's kernel.
pub fn stock(options: &Options<'_>) -> Outcome {
    let prepared = packages::for_guests().and_then(|()| {
        let cache = Cache::open()?;
        Ok((stock_kernel::get(&cache)?, cache))
    });
    match prepared {
        Ok((kernel, cache)) => outcome(on_kernel(&cache, &kernel, &["max"], options)),
        Err(reason) => skipped(&reason),
    }
}

fn skipped(reason: &str) -> Outcome {
    say_loudly(&format!("{reason}: the kernel tests are skipped"));
    Outcome::skipped(reason)
}

fn outcome(result: Result<Outcome, String>) -> Outcome {
    result.unwrap_or_else(|reason| {
        println!("{reason}");
        Outcome::failed(reason.lines().next().unwrap_or_default())
    })
}

/// Runs the tests on a kernel, with each of these processors.
fn on_kernel(
    cache: &Cache,
    kernel: &Kernel,
    processors: &[&str],
    options: &Options<'_>,
) -> Result<Outcome, String> {
    let programs = Programs::build()?;
    let tests = programs.listed(options.filter)?;
    if tests.is_empty() {
        return Err(format!("no kernel test has `{}` in its name", options.filter));
    }
    let (mut tally, mut remarks) = (Tally::default(), vec![kernel.version.clone()]);
    for processor in processors {
        let run = Run { cache, kernel, programs: &programs, tests: tests.len() as u64, processor, options };
        match run.once() {
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

/// One boot of one guest.
struct Run<'a> {
    cache: &'a Cache,
    kernel: &'a Kernel,
    programs: &'a Programs,
    tests: u64,
    processor: &'a str,
    options: &'a Options<'a>,
}

impl Run<'_> {
    /// Boots, judges, and shows the log of a failure.
    fn once(&self) -> Result<(Report, String), String> {
        let orders = Orders {
            token: format!("run-{}", std::process::id()),
            filter: self.options.filter.to_owned(),
            guest: format!("{},{}", self.kernel.name, self.processor),
            required: EVERYWHERE.join(","),
            drives: guest::drives(),
        };
        println!(
            "booting {} with the processor {}: {} tests",
            self.kernel.version, self.processor, self.tests
        );
        let guest = Guest {
            image: self.kernel.image.clone(),
            initramfs: initramfs::archive(self.kernel, self.programs, &orders)?,
            processor: self.processor,
            accelerator: if self.options.kvm { Accelerator::Kvm } else { Accelerator::Tcg },
        };
        let scratch = self.cache.scratch(&format!("guest-{}-{}", self.kernel.name, self.processor))?;
        let captured = guest.run(&scratch, true)?;
        let report = serial::judge(&captured, &Expected { token: &orders.token, tests: self.tests })?;
        for reason in &report.skips {
            println!("skipped in {}: {reason}", orders.guest);
        }
        let failed = serial::failed_tests(&captured.output);
        if report.tally.failed > 0 {
            println!("failed in {}: {}", orders.guest, failed.join(", "));
        }
        Ok((report, seconds(captured.took)))
    }
}
