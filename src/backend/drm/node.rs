//! Nodes below `/dev/dri`, found by the name that their driver gives.
//!
//! The number in a node's name says in which order drivers came up, and nothing else. A *primary* node (`card0`) does everything, setting modes
//! included; a *render* node (`renderD128`) does what one needs no screen for, and makes no dumb buffers.

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devpagemap_fence::Outside;
use drm::Device as _;
use rustix::fs::{Mode, OFlags, open};

use super::prime::Handles;
use crate::error::{Error, Result, errno_of};

/// Where nodes are.
const DIR: &str = "/dev/dri";
/// Where the kernel tells of them to those who may not open them.
const CLASS: &str = "/sys/class/drm";

/// What can be done with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    /// Everything: `card0`.
    Primary,
    /// What needs no screen: `renderD128`.
    Render,
}

impl NodeKind {
    fn name(self) -> &'static str {
        match self {
            NodeKind::Primary => "primary",
            NodeKind::Render => "render",
        }
    }

    fn of(name: &str) -> Option<NodeKind> {
        let numbered = |prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        };
        match name {
            _ if numbered("card") => Some(NodeKind::Primary),
            _ if numbered("renderD") => Some(NodeKind::Render),
            _ => None,
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A node that is there, whether or not this process may open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFound {
    /// Its path.
    pub path: PathBuf,
    /// What can be done with it.
    pub kind: NodeKind,
    /// The name that its driver gives itself, or why that could not be asked.
    pub driver: Result<String>,
}

/// An open node. Handles of buffers belong to it, and are gone with it.
pub(crate) struct DrmNode {
    /// Constant.
    fd: OwnedFd,
    /// Constant.
    path: PathBuf,
    /// The name that the driver gives itself. Constant.
    driver: String,
    /// How often each handle is held. Its own lock, held while the kernel is asked for or told of a handle: see `prime.rs`.
    pub(super) handles: Outside<Handles>,
}

impl DrmNode {
    /// Opens the first node of this kind whose driver calls itself so.
    ///
    /// # Errors
    /// [`Error::NoNode`] when there is none, [`Error::NoRights`] when one that may be it cannot be opened, [`Error::NoDescriptorsLeft`].
    pub(crate) fn open(driver: &'static str, kind: NodeKind) -> Result<Arc<DrmNode>> {
        let mut locked = None;
        for (path, _) in paths()?.into_iter().filter(|(_, found)| *found == kind) {
            match DrmNode::at(&path) {
                Ok(node) if node.driver == driver => return Ok(Arc::new(node)),
                Ok(_) => {}
                Err(error @ Error::NoRights { .. }) if may_be(&path, driver) => {
                    locked = locked.or(Some(error))
                }
                Err(error @ Error::NoDescriptorsLeft { .. }) => return Err(error),
                Err(error) => tracing::debug!(path = %path.display(), %error, "a node is passed over"),
            }
        }
        Err(locked.unwrap_or(Error::NoNode { driver, kind: kind.name() }))
    }

    /// All nodes that there are, by kind and number.
    ///
    /// # Errors
    /// When the directory of nodes is there and cannot be read.
    pub(crate) fn all() -> Result<Vec<NodeFound>> {
        let found = paths()?.into_iter().map(|(path, kind)| {
            let driver = DrmNode::at(&path).map(|node| node.driver);
            NodeFound { path, kind, driver }
        });
        Ok(found.collect())
    }

    /// Opens a node and asks who it is.
    ///
    /// # Errors
    /// [`Error::NoRights`], [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub(crate) fn at(path: &Path) -> Result<DrmNode> {
        let name = path.to_string_lossy();
        let fd = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::of_path("open a DRM node", &name, errno))?;
        let mut node = DrmNode {
            fd,
            path: path.to_path_buf(),
            driver: String::new(),
            handles: Outside::new("GEM handles", Handles::default()),
        };
        let version =
            node.get_driver().map_err(|error| Error::of_std("ask a DRM node for its driver", 0, &error))?;
        node.driver = version.name.to_string_lossy().into_owned();
        // Who opens a primary node first becomes its master, and a display server that comes later would find it taken. Whoever was not, is
        // told so by an error.
        let _was_no_master = node.release_master_lock();
        Ok(node)
    }

    /// The name that its driver gives itself.
    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for DrmNode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl drm::Device for DrmNode {}
impl drm::control::Device for DrmNode {}

impl fmt::Debug for DrmNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DrmNode({} of {})", self.path.display(), self.driver)
    }
}

/// Types of nodes whose driver's name has been looked at.
macro_rules! node_of_driver {
    ($(#[$doc:meta])* $node:ident, $driver:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $node(Arc<DrmNode>);

        impl $node {
            /// The name that the driver gives itself.
            pub(crate) const DRIVER: &'static str = $driver;

            /// # Errors
            /// As [`DrmNode::open`].
            pub(crate) fn open(kind: NodeKind) -> Result<$node> {
                DrmNode::open(Self::DRIVER, kind).map($node)
            }
        }

        impl Deref for $node {
            type Target = Arc<DrmNode>;

            fn deref(&self) -> &Arc<DrmNode> {
                &self.0
            }
        }

        impl AsFd for $node {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
    };
}

node_of_driver! {
    /// A node of vgem: buffers without a GPU, and fences that a program signals.
    VgemNode, "vgem"
}
node_of_driver! {
    /// A node of the GPU that a virtual machine's host provides.
    VirtioGpuNode, "virtio_gpu"
}

/// The nodes below [`DIR`], by kind and number.
fn paths() -> Result<Vec<(PathBuf, NodeKind)>> {
    let entries = match std::fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::of_path("look for DRM nodes", DIR, errno_of(&error))),
    };
    let mut found: Vec<(PathBuf, NodeKind)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.path(), NodeKind::of(entry.file_name().to_str()?)?))
        })
        .collect();
    // Shorter names have smaller numbers.
    found.sort_by_key(|(path, kind)| (*kind, path.as_os_str().len(), path.clone()));
    Ok(found)
}

/// Whether a node that cannot be opened may be one of this driver, as far as sysfs tells: a device on a bus has its driver there, one on no
/// bus has its driver's name, and what is behind virtio's bridge is not told.
fn may_be(node: &Path, driver: &str) -> bool {
    let Some(name) = node.file_name() else { return false };
    let device = Path::new(CLASS).join(name).join("device");
    let told = std::fs::canonicalize(device.join("driver")).or_else(|_| std::fs::canonicalize(device));
    let Some(told) = told.ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())) else {
        return true;
    };
    if told.starts_with("virtio-") {
        return driver.starts_with("virtio");
    }
    let plain = |name: &str| name.replace('-', "_");
    plain(&told).trim_end_matches(|end: char| end == '.' || end.is_ascii_digit()) == plain(driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_kind_is_in_its_name() {
        assert_eq!(NodeKind::of("card0"), Some(NodeKind::Primary));
        assert_eq!(NodeKind::of("renderD128"), Some(NodeKind::Render));
        for other in ["by-path", "card", "card0-DP-1", "controlD64", ""] {
            assert_eq!(NodeKind::of(other), None, "{other}");
        }
    }

    #[test]
    fn a_driver_that_no_machine_has_is_not_there() {
        let error = DrmNode::open("no such driver", NodeKind::Render).expect_err("nobody calls a driver so");
        assert!(error.to_string().contains("no such driver"), "{error}");
    }
}
