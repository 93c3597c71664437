//! Result files: opened before the replay starts, so that a wrong path costs no time, and written at its end.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// A place that a result will be written to.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file, open.
    File {
        /// Its name, for messages.
        path: String,
        /// Open for writing; what it held before is still there.
        file: File,
    },
}

impl Output {
    /// Opens a file for writing; `-` is standard output.
    pub fn open(path: &Path) -> Result<Output> {
        if path.as_os_str() == "-" {
            return Ok(Output::Stdout);
        }
        let shown = path.display().to_string();
        match File::options().write(true).create(true).truncate(false).open(path) {
            Ok(file) => Ok(Output::File { path: shown, file }),
            Err(source) => Err(Error::Write { path: shown, source }),
        }
    }

    /// Replaces what the place holds by `text`.
    pub fn write(self, text: &str) -> Result<()> {
        match self {
            Output::Stdout => print(&mut std::io::stdout().lock(), text),
            Output::File { path, mut file } => {
                replace(&mut file, text).map_err(|source| Error::Write { path, source })
            }
        }
    }
}

fn replace(file: &mut File, text: &str) -> std::io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())?;
    file.flush()
}

/// Writes to a terminal or pipe. That nobody reads any more is no error.
pub fn print(stream: &mut impl Write, text: &str) -> Result<()> {
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(Error::Write { path: "standard output".into(), source }),
        Ok(()) => Ok(()),
    }
}
