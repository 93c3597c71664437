//! Slots of a table, and how often each has been used.

/// Which slots are free.
#[derive(Debug)]
pub(super) struct Slots {
    /// Slots and their next generations.
    free: Vec<(u32, u32)>,
    /// The first that was never used.
    next: u32,
    /// How many there are.
    limit: u32,
    /// How often each can be used.
    generations: u32,
}

impl Slots {
    pub fn new(limit: u32, generations: u32) -> Slots {
        Slots { free: Vec::new(), next: 0, limit, generations }
    }

    /// A slot and a generation that it never had; `None` when there is none left.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        self.free.pop().or_else(|| {
            let slot = Some(self.next).filter(|next| *next < self.limit)?;
            self.next += 1;
            Some((slot, 0))
        })
    }

    /// Gives a slot back. One that has had all its generations is used no more.
    pub fn give_back(&mut self, slot: u32, generation: u32) {
        if generation + 1 < self.generations {
            self.free.push((slot, generation + 1));
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_used_again_until_it_has_no_generation_left() {
        let mut slots = Slots::new(2, 2);
        assert_eq!(slots.take(), Some((0, 0)));
        slots.give_back(0, 0);
        assert_eq!(slots.take(), Some((0, 1)));
        slots.give_back(0, 1);
        assert_eq!((slots.take(), slots.take()), (Some((1, 0)), None));
    }
}
