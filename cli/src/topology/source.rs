//! Where a machine is read from.

use crate::error::{Error, Result};
use crate::options::MachineSource;
use crate::trace::bytes::read_text;
use devpagemap::topology::{Machine, TopologyError};
use std::path::{Path, PathBuf};

/// What it was read from, for the reader: the words of the option, and a path.
pub struct Origin {
    /// `sysfs`, `hwloc` or `nccl`.
    pub kind: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Whether it is the machine that this runs on.
    pub is_here: bool,
}

impl Origin {
    /// What to type to read the same again, after a command: ` --hwloc machine.xml`.
    pub fn arguments(&self) -> String {
        match self.is_here {
            true => String::new(),
            false => format!(" --{} {}", self.kind, self.path.display()),
        }
    }
}

/// Reads the machine.
pub fn read(source: &MachineSource) -> Result<(Origin, Machine)> {
    let origin = |kind, path: &Path| Origin { kind, path: path.to_path_buf(), is_here: false };
    match source {
        MachineSource { hwloc: Some(path), .. } => {
            let machine = read_file(path, Machine::from_hwloc)?;
            Ok((origin("hwloc", path), machine))
        }
        MachineSource { nccl: Some(path), .. } => {
            let machine = read_file(path, Machine::from_nccl)?;
            Ok((origin("nccl", path), machine))
        }
        MachineSource { sysfs: Some(path), .. } => {
            Ok((origin("sysfs", path), Machine::from_sysfs(path).map_err(wrong)?))
        }
        MachineSource { .. } => {
            let root = Path::new("/");
            let machine = Machine::from_sysfs(root).map_err(wrong)?;
            Ok((Origin { is_here: true, ..origin("sysfs", root) }, machine))
        }
    }
}

type ReadXml = fn(&[u8], &str) -> std::result::Result<Machine, TopologyError>;

fn read_file(path: &Path, read: ReadXml) -> Result<Machine> {
    read(read_text(path)?.as_bytes(), &path.display().to_string()).map_err(wrong)
}

fn wrong(error: TopologyError) -> Error {
    Error::input(error.place.file.to_string(), error.place.line, error.reason)
}
