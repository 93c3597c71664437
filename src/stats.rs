//! What a device counts. Every fallback is counted with its reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use devpagemap_fence::{Held, Lock, levels};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Running totals. Each is its own atomic: they are statistics, and order nothing.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// What a device has done so far, and what it holds now. Sizes in bytes, times in ns.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Touches of CPU maps that found their bytes away, and slept.
            pub cpu_touches: u64,
            /// How often a part of a CPU map was pointed at its bytes.
            pub cpu_points: u64,
            /// How often a part of a CPU map was taken away because its buffer moved.
            pub cpu_zaps: u64,
            /// How long copy engines were busy, summed over engines.
            pub copy_busy_ns: u64,
            /// Bytes that went through the CPU because no engine could copy them.
            pub fallback_bytes: u64,
            /// Bytes that went through system memory because no engine reaches both ends of their move.
            pub ring_copied_bytes: u64,
            /// Bytes of system memory that this takes; none until the first such move.
            pub staging_ring_bytes: u64,
            /// Kernel fences that were made for work on shared buffers, and for descriptors.
            pub kernel_fences: u64,
            /// How often one was renewed because its work went on.
            pub kernel_fences_renewed: u64,
            /// How many the kernel had signalled before their work had ended.
            pub kernel_fences_expired: u64,
            /// Fences of others that something had to wait for.
            pub foreign_fences: u64,
            /// How many of them failed, or did not signal in time.
            pub foreign_fences_failed: u64,
            /// Bytes of VRAM that buffers own now.
            pub vram_used_bytes: u64,
            /// The most bytes of VRAM that buffers ever owned at once.
            pub vram_peak_bytes: u64,
            /// Bytes of VRAM that are free behind a fence.
            pub vram_pending_bytes: u64,
            /// Moved and destroyed buffers whose old place in VRAM is not idle yet.
            pub vram_ghosts: u64,
            /// Bytes of VRAM that are pinned.
            pub vram_pinned_bytes: u64,
            /// Bytes of VRAM that are never used again, as somebody did not let go of them when VRAM was taken away.
            pub vram_quarantined_bytes: u64,
            /// Bytes of the BAR that peers have mapped now.
            pub p2p_used_bytes: u64,
            /// Bytes of the BAR that peers have given back and may use until fences signal.
            pub p2p_pending_bytes: u64,
            /// The most bytes of the BAR that peers ever used at once, those given back included.
            pub p2p_peak_bytes: u64,
            /// Bytes of a BAR of windows that show something now.
            pub window_bytes: u64,
            /// Bytes of it that are free behind a fence.
            pub window_pending_bytes: u64,
            /// Bytes of it that CPU users keep, each counted for itself.
            pub window_cpu_held_bytes: u64,
            /// Bytes of GTT that buffers own now.
            pub gtt_used_bytes: u64,
            /// Bytes of System that buffers own now.
            pub system_used_bytes: u64,
            /// Bytes of system memory that are free behind a fence.
            pub system_pending_bytes: u64,
            /// Bytes of other people's dma-bufs that are mapped now.
            pub imported_bytes: u64,
            /// Bytes of buffers that others have as dma-bufs now, as far as is known.
            pub exported_bytes: u64,
            /// Bytes that are mapped now of pages that were made elsewhere so that buffers can be exported.
            pub export_pages_bytes: u64,
            /// Why a fallback or a move for visibility happened, and how often.
            pub reasons: BTreeMap<String, u64>,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* ..Stats::default() }
            }
        }
    };
}

counters! {
    /// Buffers created.
    allocs,
    /// Buffers destroyed.
    frees,
    /// Bytes of the buffers that exist now, as they were asked for.
    live_bo_bytes,
    /// The most that `live_bo_bytes` has been.
    live_bo_peak_bytes,
    /// Buffers made of other people's dma-bufs. They count in none of the above.
    imports,
    /// Buffers moved out of a region to make room.
    evictions,
    /// Their bytes.
    evicted_bytes,
    /// Buffers moved within VRAM to make room in a part of it, most often the part that the CPU sees. They are no evictions.
    relocations,
    /// Their bytes.
    relocated_bytes,
    /// Bytes moved only so that the CPU reaches something: what it accessed, what left the visible part of VRAM for that, and what of
    /// both came back. Part of `moved_bytes`; `reasons` has how often it was what.
    visibility_moved_bytes,
    /// Buffers moved from GTT to System to make room; their pages stay, nothing is copied.
    gtt_demotions,
    /// Evicted buffers that came back to VRAM.
    restores,
    /// Their bytes.
    restored_bytes,
    /// Copies queued because a buffer moved: evictions, restores and first placements of what the CPU wrote.
    moves,
    /// Their bytes.
    moved_bytes,
    /// Bytes cleared because a buffer got its first place.
    cleared_bytes,
    /// Bytes that the CPU reached only through a copy, because the BAR does not show them.
    bounced_bytes,
    /// CPU maps, and moves for other accesses, that could not be served from visible VRAM.
    bar_fallbacks,
    /// CPU maps.
    cpu_maps,
    /// Peer maps, those that share what was mapped already included.
    peer_maps,
    /// Windows made; a range that is shown already needs none.
    windows_made,
    /// Windows whose space was taken for others.
    windows_reclaimed,
    /// Buffers that importers reached through the BAR and that were moved to system memory, once for each importer.
    demotions,
    /// Demoted ones that importers reach through the BAR again.
    promotions,
    /// Peer maps that were given system memory instead of the BAR.
    p2p_fallbacks,
    /// Peer maps that were refused.
    p2p_refusals,
    /// Lists of addresses made for peer maps; those of a range are kept while its buffer stays where it is.
    scatter_lists,
    /// Peer maps that were given a copy in system memory.
    staged_maps,
    /// Bytes of such copies that exist now.
    staged_bytes,
    /// Copies queued to keep them in step, both ways.
    staged_copies,
    /// Their bytes.
    staged_copied_bytes,
    /// Attachments that were taken away from importers that cannot be told to let go.
    revoked_attachments,
    /// Descriptors of dma-bufs that buffers were given as.
    exports,
    /// How often VRAM was taken away.
    revokes,
    /// Importers, and timelines of work, that did not let go of it in time.
    revoke_overdue,
    /// Buffers that lost bytes when it was.
    lost_buffers,
    /// Those bytes.
    lost_bytes,
    /// How often a CPU thread had to wait for a fence.
    fence_waits,
    /// How often it waited while placing or evicting buffers. Zero, by design.
    cpu_waits_in_validate,
    /// How long CPU threads waited for fences.
    cpu_wait_ns,
    /// How often a transaction was restarted because an older one held what it needed.
    contended_restarts,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn count(counter: &AtomicU64) {
        Counters::add(counter, 1);
    }

    /// A buffer of `bytes` exists from now on.
    pub(crate) fn created(&self, bytes: u64) {
        Counters::count(&self.allocs);
        let live = self.live_bo_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.live_bo_peak_bytes.fetch_max(live, Ordering::Relaxed);
    }

    /// A buffer of `bytes` is gone.
    pub(crate) fn destroyed(&self, bytes: u64) {
        Counters::count(&self.frees);
        self.live_bo_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Counts one more for `reason`.
pub(crate) fn count_reason(reasons: &mut BTreeMap<String, u64>, reason: &str) {
    match reasons.get_mut(reason) {
        Some(count) => *count += 1,
        None => drop(reasons.insert(reason.to_string(), 1)),
    }
}

/// Why fallbacks and moves for visibility happened. Its own lock, taken with reservations held and nothing further in.
#[derive(Debug)]
pub(crate) struct Reasons(Lock<levels::Aperture, BTreeMap<String, u64>>);

impl Reasons {
    pub(crate) fn new() -> Reasons {
        Reasons(Lock::new("reasons", BTreeMap::new()))
    }

    pub(crate) fn count(&self, reason: &str, held: &mut Held<'_, levels::Tickets>) {
        count_reason(&mut self.0.lock(held), reason);
    }

    pub(crate) fn snapshot(&self, held: &mut Held<'_, levels::Tickets>) -> BTreeMap<String, u64> {
        self.0.lock(held).clone()
    }
}
