//! Where the recorded machines are.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use devpagemap::topology::Machine;
use flate2::read::GzDecoder;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Hwloc,
    Nccl,
}

impl Kind {
    /// The option that reads it.
    pub fn option(self) -> &'static str {
        match self {
            Kind::Hwloc => "--hwloc",
            Kind::Nccl => "--nccl",
        }
    }

    /// Reads it.
    pub fn read(self, bytes: &[u8], file: &str) -> Result<Machine, String> {
        let machine = match self {
            Kind::Hwloc => Machine::from_hwloc(bytes, file),
            Kind::Nccl => Machine::from_nccl(bytes, file),
        };
        machine.map_err(|error| error.to_string())
    }
}

/// A recorded machine.
pub struct Recording {
    pub kind: Kind,
    /// Its name, without folder and endings.
    pub name: String,
    pub path: PathBuf,
    /// What it says, unpacked.
    pub bytes: Vec<u8>,
}

impl Recording {
    pub fn machine(&self) -> Machine {
        self.kind
            .read(&self.bytes, &self.name)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path of letters")
    }
}

/// All recorded machines, or none when this machine does not have them; then it says so.
pub fn all() -> Vec<Recording> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces");
    let traces = std::env::var_os("DEVPAGEMAP_TRACES").map_or(beside, PathBuf::from);
    let folders =
        [("topology-hwloc", Kind::Hwloc), ("topology-nccl", Kind::Nccl), ("topology-rccl", Kind::Nccl)];
    let found: Vec<Recording> =
        folders.iter().flat_map(|(folder, kind)| in_folder(&traces.join(folder), *kind)).collect();
    if found.is_empty() {
        let line = format!(
            "\n*** skipped: no recorded machines in {} (set DEVPAGEMAP_TRACES) ***\n",
            traces.display()
        );
        std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    }
    found
}

/// One of them.
pub fn one(name: &str) -> Option<Recording> {
    let all = all();
    let is_here = !all.is_empty();
    let found = all.into_iter().find(|recording| recording.name == name);
    assert!(found.is_some() || !is_here, "there is no recording {name} among the others");
    found
}

fn in_folder(folder: &Path, kind: Kind) -> Vec<Recording> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<Recording> = entries
        .map(|entry| entry.expect("a folder that can be read").path())
        .filter_map(|path| {
            let file = path.file_name()?.to_str()?.to_string();
            let name = file.strip_suffix(".xml").or(file.strip_suffix(".xml.gz"))?.to_string();
            let bytes = unpacked(std::fs::read(&path).expect("a file that can be read"));
            Some(Recording { kind, name, path, bytes })
        })
        .collect();
    found.sort_by(|one, two| one.name.cmp(&two.name));
    found
}

fn unpacked(raw: Vec<u8>) -> Vec<u8> {
    if !raw.starts_with(&[0x1f, 0x8b]) {
        return raw;
    }
    let mut bytes = Vec::new();
    GzDecoder::new(raw.as_slice()).read_to_end(&mut bytes).expect("good gzip data");
    bytes
}
