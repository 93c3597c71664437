//! Files that a test makes for itself.

use std::path::PathBuf;

/// A file that only this test has, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str, contents: impl AsRef<[u8]>) -> Scratch {
        let path = std::env::temp_dir().join(format!("devpagemap-test-{}-{name}", std::process::id()));
        std::fs::write(&path, contents).expect("the folder for temporary files is writable");
        Scratch(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("a temporary path is text")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("the file is still there");
    }
}
