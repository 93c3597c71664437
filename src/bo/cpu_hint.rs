//! The hint that the CPU works on a buffer: where it should be found next time, and whether it is worth a move.
//!
//! ```text
//!   GPU uses it ── CPU accesses it ──► alive ── submissions without an access in between: 8, 7, .. ──► 0: forgotten
//!                        ▲                                     │
//!                        └──────────── another access ─────────┘
//! ```
//!
//! An access counts only after the GPU has used the buffer since the last one: who fills a buffer before its first use, as uploads do,
//! does not work on it. While the hint lives, a buffer that needs a new place gets one that the CPU reaches, if that costs
//! nobody anything.
//!
//! Accesses to bytes that the BAR does not show are served by copies of just these bytes. They are counted, and once they have
//! cost more than a move of the whole buffer would have, the next one moves it: whoever knew the accesses beforehand would have copied
//! about half as much at best.

/// How many submissions the hint survives without an access.
const LIFETIME: u8 = 8;

/// What a copy costs beside its bytes: the round trip through the queue, as bytes that could have been copied meanwhile.
const ROUND_TRIP_BYTES: u64 = 64 << 10;

/// How the CPU has used a buffer lately. Part of the buffer's state, under its reservation.
#[derive(Debug, Default)]
pub(crate) struct CpuHint {
    /// Submissions until the hint dies; 0 is dead.
    left: u8,
    /// Whether the GPU has used it since the CPU did.
    gpu_used: bool,
    /// What copies for single accesses have cost since the buffer was last moved for the CPU.
    bounced_bytes: u64,
    /// Whether, while the hint lived, the CPU found it in system memory for lack of visible VRAM and the GPU took it back.
    came_back: bool,
}

impl CpuHint {
    /// Whether the CPU works on the buffer.
    pub(crate) fn is_alive(&self) -> bool {
        self.left > 0
    }

    /// The CPU accesses the buffer.
    pub(crate) fn accessed(&mut self) {
        if std::mem::take(&mut self.gpu_used) {
            self.left = LIFETIME;
        }
    }

    /// An access of `len_bytes` is served by a copy.
    pub(crate) fn bounced(&mut self, len_bytes: u64) {
        self.bounced_bytes += len_bytes.max(ROUND_TRIP_BYTES);
    }

    /// Whether copies have already cost more than a move of all `len_bytes` would.
    pub(crate) fn is_worth_a_move(&self, len_bytes: u64) -> bool {
        self.bounced_bytes > len_bytes
    }

    /// The buffer is moved for the CPU.
    pub(crate) fn moved(&mut self) {
        self.bounced_bytes = 0;
    }

    /// The GPU takes back what the CPU had found in system memory for lack of visible VRAM.
    pub(crate) fn came_back(&mut self) {
        self.came_back = self.is_alive();
    }

    /// Whether going to system memory once more would only be the next round of the same journey.
    pub(crate) fn goes_back_and_forth(&self) -> bool {
        self.came_back
    }

    /// A submission uses the buffer. `stays` says whether it may stay where the CPU reaches it while the GPU uses it; if not, what
    /// was bounced so far says nothing about what comes.
    pub(crate) fn submitted(&mut self, stays: bool) {
        self.gpu_used = true;
        self.left = self.left.saturating_sub(1);
        self.came_back &= self.is_alive();
        if !stays || !self.is_alive() {
            self.bounced_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_by_both() -> CpuHint {
        let mut hint = CpuHint::default();
        hint.submitted(true);
        hint.accessed();
        hint
    }

    #[test]
    fn an_upload_before_the_first_use_is_no_hint() {
        let mut hint = CpuHint::default();
        hint.accessed();
        assert!(!hint.is_alive());
        hint.submitted(true);
        hint.accessed();
        assert!(hint.is_alive());
    }

    #[test]
    fn submissions_without_an_access_in_between_end_it_and_an_access_renews_it() {
        let mut hint = used_by_both();
        (1..LIFETIME).for_each(|_| hint.submitted(true));
        assert!(hint.is_alive());
        hint.accessed();
        (1..LIFETIME).for_each(|_| hint.submitted(true));
        assert!(hint.is_alive());
        hint.submitted(true);
        assert!(!hint.is_alive());
    }

    #[test]
    fn a_move_is_worth_it_once_copies_have_cost_more_and_only_until_it_is_made() {
        let mut hint = used_by_both();
        hint.bounced(1 << 20);
        assert!(!hint.is_worth_a_move(1 << 20));
        hint.bounced(1);
        assert!(hint.is_worth_a_move(1 << 20));
        hint.moved();
        assert!(!hint.is_worth_a_move(1 << 20));
    }

    #[test]
    fn rare_accesses_never_add_up_to_a_move() {
        let mut hint = CpuHint::default();
        for _ in 0..1000 {
            hint.submitted(true);
            hint.accessed();
            hint.bounced(4096);
            (0..LIFETIME).for_each(|_| hint.submitted(true));
        }
        assert!(!hint.is_worth_a_move(1 << 20));
    }

    #[test]
    fn what_the_gpu_takes_back_each_time_is_judged_by_one_round_alone() {
        let mut hint = used_by_both();
        for _ in 0..1000 {
            hint.bounced(512 << 10);
            hint.submitted(false);
            hint.accessed();
        }
        assert!(!hint.is_worth_a_move(1 << 20));
    }

    #[test]
    fn back_and_forth_is_forgotten_with_the_hint() {
        let mut hint = used_by_both();
        hint.came_back();
        assert!(hint.goes_back_and_forth());
        (0..LIFETIME).for_each(|_| hint.submitted(true));
        assert!(!hint.goes_back_and_forth());
        hint.came_back();
        assert!(!hint.goes_back_and_forth(), "a dead hint remembers nothing");
    }
}
