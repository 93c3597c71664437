//! Slots of a table, and how often each has been used.

/// Which slots are free.
#[derive(Debug)]
pub(super) struct Slots {
    /// Slots and their next generations.
    free: Vec<(u32, u32)>,
    /// The first that was never used.
    unused: u32,
    /// How many there are.
    limit: u32,
    /// How often each can be used.
    generations: u32,
}

impl Slots {
    pub fn new(limit: u32, generations: u32) -> Slots {
        Slots { free: Vec::new(), unused: 0, limit, generations }
    }

    /// A slot and a generation that it never had, to be taken; `None` when there is none left.
    pub fn next(&self) -> Option<(u32, u32)> {
        let unused = || Some((self.unused, 0)).filter(|(slot, _)| *slot < self.limit);
        self.free.last().copied().or_else(unused)
    }

    /// Takes the next one.
    pub fn take(&mut self) {
        if self.free.pop().is_none() {
            self.unused += 1;
        }
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
        let take = |slots: &mut Slots| {
            let next = slots.next();
            next.is_some().then(|| slots.take());
            next
        };
        assert_eq!(take(&mut slots), Some((0, 0)));
        slots.give_back(0, 0);
        assert_eq!(take(&mut slots), Some((0, 1)));
        slots.give_back(0, 1);
        assert_eq!((take(&mut slots), take(&mut slots)), (Some((1, 0)), None));
    }
}
