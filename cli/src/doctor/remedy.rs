//! What to do about what is missing.

use devpagemap::{Error, Via, WhyNot};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What makes an exporter usable.
pub fn of_exporter(via: &Via, why: &WhyNot) -> Option<String> {
    match why {
        WhyNot::NoRights { path } => Some(of_rights(Path::new(&**path))),
        WhyNot::NotHere { .. } => Some(
            match via {
                Via::Udmabuf => "modprobe udmabuf (CONFIG_UDMABUF)",
                Via::DmaHeap => "a kernel with CONFIG_DMABUF_HEAPS and CONFIG_DMABUF_HEAPS_SYSTEM",
                Via::Vgem => "modprobe vgem (CONFIG_DRM_VGEM)",
                Via::VirtioGpu => "in a virtual machine: -device virtio-gpu-pci, and modprobe virtio-gpu",
                _ => return None,
            }
            .to_owned(),
        ),
        _ => None,
    }
}

/// What makes nodes visible.
pub fn of_nodes(why: &WhyNot) -> Option<String> {
    match why {
        WhyNot::NoRights { path } => Some(of_rights(Path::new(&**path))),
        _ => None,
    }
}

/// What makes sw_sync usable.
pub fn of_sw_sync(why: &WhyNot) -> Option<String> {
    let text = match why {
        WhyNot::NotHere { .. } => {
            "mount -t debugfs debugfs /sys/kernel/debug, on a kernel with CONFIG_SW_SYNC (few have it)"
        }
        WhyNot::NoRights { .. } => "it is for root alone; vgem's fences do as well",
        _ => return None,
    };
    Some(text.to_owned())
}

/// What makes syncobjs usable.
pub fn of_syncobjs(error: &Error) -> Option<String> {
    let none = matches!(error, Error::NoSyncobjs { .. });
    none.then(|| "a GPU whose driver has them; in a virtual machine -device virtio-gpu-pci".to_owned())
}

/// What lets this user open a file, from who may now.
pub fn of_rights(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    match fs::metadata(path) {
        Ok(file) if file.mode() & 0o060 == 0o060 && file.gid() != 0 => {
            match group_name(&groups, file.gid()) {
                Some(group) => format!("usermod -aG {group} $USER, and log in again"),
                None => format!("join the group {} that may use {}", file.gid(), path.display()),
            }
        }
        _ => {
            format!("as root, or with a rule of udev's: KERNEL==\"{name}\", GROUP=\"render\", MODE=\"0660\"")
        }
    }
}

fn group_name(groups: &str, gid: u32) -> Option<&str> {
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(gid)))?;
    Some(line[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_may_use_a_file_is_known_by_its_name() {
        let groups = "root:x:0:\nvideo:x:44:\nrender:x:106:ann,bob\nbroken\n";
        assert_eq!(group_name(groups, 106), Some("render"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn what_only_root_may_use_needs_root_or_a_rule() {
        let remedy = of_rights(Path::new("/proc/1/mem"));
        assert!(remedy.starts_with("as root, or with a rule of udev's: KERNEL==\"mem\""), "{remedy}");
    }

    #[test]
    fn what_is_missing_has_a_remedy_and_what_failed_has_its_error() {
        let missing = WhyNot::NotHere { what: "there is none".into() };
        for via in [Via::Udmabuf, Via::DmaHeap, Via::Vgem, Via::VirtioGpu] {
            assert!(of_exporter(&via, &missing).is_some(), "{via}");
        }
        assert_eq!(of_exporter(&Via::Udmabuf, &WhyNot::NeverReadOnly), None);
    }
}
