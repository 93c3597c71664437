//! Where something was said, and what is wrong with it.

use std::fmt;
use std::sync::Arc;

/// Where a source says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or what else it was read from.
    pub file: Arc<str>,
    /// The line, counted from 1; `None` when the whole file is meant.
    pub line: Option<u64>,
}

impl Place {
    /// A whole file.
    pub fn file(file: impl Into<Arc<str>>) -> Place {
        Place { file: file.into(), line: None }
    }

    /// A line of it, counted from 1.
    #[must_use]
    pub fn line(&self, line: u64) -> Place {
        Place { file: Arc::clone(&self.file), line: Some(line) }
    }

    /// An error here.
    pub fn error(&self, reason: impl Into<String>) -> TopologyError {
        TopologyError { place: self.clone(), reason: reason.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A source that cannot be read, or that says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl std::error::Error for TopologyError {}

/// Something that a reader left out, and went on: a device that vanished while it was read, a file without rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub place: Place,
    /// What is not there, and what stays unknown for it.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}
