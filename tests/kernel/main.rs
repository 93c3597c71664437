//! The library on a real kernel: the same program runs on any machine with `cargo test --test kernel`, and in guests with
//! `cargo xtask vm [FILTER]`, where everything that it asks for is there (docs/kernel-tests.md).
//!
//! How to add a test:
//!
//! - A module of its own for each subject, named below, with tests whose names are sentences. A long one is a folder (`exports`).
//! - A test begins by asking for what it needs: `if !need(&[Thing::Vgem, Thing::Udmabuf]) { return; }`. On a machine that
//!   does not have it the test says so and is skipped; in a guest that must have it the test fails. What no guest has
//!   yet goes into `Thing` (`setup.rs`), and into the lists of `xtask/src/vm/mod.rs`.
//! - In a guest tests run one at a time, on other machines several at a time, and there may be other users of the
//!   kernel. So no test counts what is in the kernel as a whole: it gives its buffers names, and looks for those.
//! - A test that uses up what a process has, or kills itself, runs in a process of its own (`tests/setup/child.rs`).
//! - What a guest is to say about the kernel and the processor: [`setup::guest`].

mod calls;
mod card;
#[path = "../setup/child.rs"]
mod child;
mod doctor;
mod drives;
mod exports;
mod fences;
mod imports;
#[path = "../setup/jobs.rs"]
mod jobs;
mod liars;
mod mapping;
mod nodes;
mod observe;
#[path = "../setup/pattern.rs"]
mod pattern;
mod pci;
#[path = "../setup/refusing.rs"]
mod refusing;
mod setup;
mod stranger;
mod syncobjs;
mod ttm;
mod two_processes;
mod who_imports;
