//! A driver's node, which a test asks without the library.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use crate::setup::node;

/// The primary node of a driver, open.
pub struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

impl Card {
    /// That of `driver`, which the test has asked for before.
    pub fn open(driver: &str) -> Card {
        let path = node(driver).expect("it was looked for");
        Card(File::options().read(true).write(true).open(path).expect("it was opened before"))
    }
}
