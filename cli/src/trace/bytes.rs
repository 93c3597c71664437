//! From a file to text: plain or gzip, with an upper bound, and line by line with numbers.

use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most that a trace file may hold once unpacked: 1 GiB. A packed file can otherwise expand without end.
pub const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Reads a file and unpacks it if it starts as gzip does, whatever its name says.
pub fn read_text(path: &Path) -> Result<String> {
    let shown = path.display().to_string();
    let unreadable = |source| Error::Read { path: shown.clone(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mut raw = Vec::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut raw).map_err(unreadable)?;
    decode(&shown, raw)
}

/// Unpacks `raw` if it is gzip, and checks that it is text.
pub fn decode(path: &str, raw: Vec<u8>) -> Result<String> {
    let bytes = if raw.starts_with(&[0x1f, 0x8b]) { gunzip(path, &raw)? } else { raw };
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(Error::input(path, None, format!("holds more than {MAX_TEXT_BYTES} bytes")));
    }
    if bytes.is_empty() {
        return Err(Error::input(path, None, "the file is empty"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() as u64;
        Error::input(path, line, format!("byte {good} of the file is not UTF-8 text"))
    })
}

fn gunzip(path: &str, raw: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let unpacked = MultiGzDecoder::new(raw).take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes);
    match unpacked {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let line = 1 + bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            Err(Error::input(path, line, format!("the gzip data is cut off or damaged: {error}")))
        }
    }
}

/// The lines of a text with their numbers from 1, without line ends and blanks around them.
pub fn numbered_lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    text.lines().enumerate().map(|(index, line)| (index as u64 + 1, line.trim()))
}
