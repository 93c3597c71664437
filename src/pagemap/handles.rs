//! What whoever has joined holds, and what whoever looks up again and again does.

use std::fmt;

use devpagemap_fence::sync::Arc;

use super::decision::Decision;
use super::owner::{Owner, PagemapSpec};
use super::profile::Profile;
use super::registry::{Cause, Registry};
use super::snapshot::{Fate, Snapshot};
use super::tag::{ImporterId, PageTag, PagemapId};

/// A pagemap that has joined, until dropped.
#[must_use = "dropping it is leaving"]
pub struct Pagemap {
    pub(super) registry: Registry,     // constant
    pub(super) id: PagemapId,          // constant
    pub(super) spec: Arc<PagemapSpec>, // constant
    pub(super) fate: Arc<Fate>,
}

impl Pagemap {
    /// Its number.
    pub fn id(&self) -> PagemapId {
        self.id
    }

    /// What its pages carry.
    pub fn tag(&self) -> PageTag {
        self.id.tag()
    }

    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.spec.owner
    }

    /// What it said when it joined.
    pub fn spec(&self) -> &PagemapSpec {
        &self.spec
    }

    /// The registry that it has joined.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its memory is taken away: nobody reaches it until [`rearm`](Pagemap::rearm). Look-ups see it at once, in every snapshot.
    pub fn revoke(&self) {
        self.fate.revoke(true);
        self.registry.tell_of(Cause::Revoked(self.id));
    }

    /// Its memory is there again.
    pub fn rearm(&self) {
        self.fate.revoke(false);
        self.registry.tell_of(Cause::Rearmed(self.id));
    }

    /// Whether its memory has been taken away.
    pub fn is_revoked(&self) -> bool {
        self.fate.is_revoked()
    }

    /// Leaves, and has its slot freed at once. Not for use inside a fence's callback or with a lock held, where dropping is.
    pub fn leave(self) {
        let registry = self.registry.clone();
        drop(self);
        registry.sweep();
    }
}

impl Drop for Pagemap {
    fn drop(&mut self) {
        self.registry.depart(&self.fate);
    }
}

impl fmt::Debug for Pagemap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pagemap").field("id", &self.id).field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// An importer that has joined, until dropped.
#[must_use = "dropping it is leaving"]
pub struct JoinedImporter {
    pub(super) registry: Registry,    // constant
    pub(super) id: ImporterId,        // constant
    pub(super) profile: Arc<Profile>, // constant
    pub(super) fate: Arc<Fate>,
}

impl JoinedImporter {
    /// Its number.
    pub fn id(&self) -> ImporterId {
        self.id
    }

    /// What it said when it joined.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The registry that it has joined.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// As [`Pagemap::leave`].
    pub fn leave(self) {
        let registry = self.registry.clone();
        drop(self);
        registry.sweep();
    }
}

impl Drop for JoinedImporter {
    fn drop(&mut self) {
        self.registry.depart(&self.fate);
    }
}

impl fmt::Debug for JoinedImporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("JoinedImporter");
        debug.field("id", &self.id).field("profile", &self.profile).finish_non_exhaustive()
    }
}

/// Looks decisions up again and again: it keeps the snapshot, and asks only whether there is a later one.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) registry: Registry, // constant
    /// As it was read before the snapshot was.
    pub(super) generation: u64,
    pub(super) snapshot: Arc<Snapshot>,
}

impl Reader {
    /// The current snapshot.
    #[inline]
    pub fn snapshot(&mut self) -> &Snapshot {
        let generation = self.registry.generation();
        if generation != self.generation {
            self.snapshot = self.registry.snapshot();
            self.generation = generation;
        }
        &self.snapshot
    }

    /// How an importer reaches a pagemap.
    #[inline]
    pub fn decision(&mut self, pagemap: PagemapId, importer: ImporterId) -> Decision {
        self.snapshot().decision(pagemap, importer)
    }
}
