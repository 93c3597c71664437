//! Everything that ends a command before its work starts: bad usage and bad input. A workload that fails while it
//! runs is not an error of this kind; it is a result, with its own exit status.

use std::fmt;

/// Why the command refused to start. Each of them ends it with exit status 2.
#[derive(Debug)]
pub enum Error {
    /// The command line asks for something that does not make sense.
    Usage {
        /// The option or argument, as typed (`--vram`).
        option: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The command line asks for something that this build does not have.
    Unsupported {
        /// What was asked for.
        what: String,
        /// What there is instead.
        instead: String,
    },
    /// A file could not be read.
    Read {
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read, and what it says is wrong.
    Input {
        /// The file.
        path: String,
        /// The line, counted from 1; `None` when the whole file is meant.
        line: Option<u64>,
        /// What is wrong there.
        reason: String,
    },
    /// A result file cannot be written.
    Write {
        /// The file.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something at a socket failed.
    Socket {
        /// The socket.
        path: String,
        /// What was attempted with it.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The operating system refused something that is about no file.
    System {
        /// What was attempted.
        action: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// Nothing on this machine makes a dma-buf of such a buffer.
    NotExportable {
        /// What was asked for, as `--via` calls it.
        via: String,
        /// Each way with its reason, and what to do about it.
        reasons: Vec<(String, Option<String>)>,
    },
    /// The device could not be built with these sizes.
    Device {
        /// What the manager said.
        source: devpagemap::Error,
    },
}

/// A result whose error ends the command.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Bad usage of `option`.
    pub fn usage(option: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Usage { option: option.into(), reason: reason.into() }
    }

    /// Wrong contents of `path` at `line` (counted from 1).
    pub fn input(path: impl Into<String>, line: impl Into<Option<u64>>, reason: impl Into<String>) -> Error {
        Error::Input { path: path.into(), line: line.into(), reason: reason.into() }
    }

    /// The process's exit status for this error.
    pub fn exit_status(&self) -> u8 {
        2
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { option, reason } => write!(f, "{option}: {reason}"),
            Error::Unsupported { what, instead } => write!(f, "{what} is not part of this build; {instead}"),
            Error::Read { path, source } => write!(f, "{path}: cannot be read: {source}"),
            Error::Input { path, line: Some(line), reason } => write!(f, "{path}:{line}: {reason}"),
            Error::Input { path, line: None, reason } => write!(f, "{path}: {reason}"),
            Error::Write { path, source } => write!(f, "{path}: cannot be written: {source}"),
            Error::Socket { path, action, source } => write!(f, "could not {action} {path}: {source}"),
            Error::System { action, source } => write!(f, "could not {action}: {source}"),
            Error::NotExportable { via, reasons } => {
                match via.as_str() {
                    "auto" => write!(f, "nothing on this machine exports such a buffer:")?,
                    via => write!(f, "--via {via}: such a buffer cannot be exported:")?,
                }
                for (reason, remedy) in reasons {
                    write!(f, "\n  {reason}")?;
                    if let Some(remedy) = remedy {
                        write!(f, "\n    → {remedy}")?;
                    }
                }
                Ok(())
            }
            Error::Device { source } => write!(f, "the device cannot be built: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Read { source, .. }
            | Error::Write { source, .. }
            | Error::Socket { source, .. }
            | Error::System { source, .. } => Some(source),
            Error::Device { source } => Some(source),
            _ => None,
        }
    }
}
