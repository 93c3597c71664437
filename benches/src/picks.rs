//! Random numbers that are the same in every run, and random choices of objects.

/// A small, fast generator (xorshift64*): no statistics are made of it.
pub struct Random(u64);

impl Random {
    /// A generator; every seed gives another sequence.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128;
        (wide >> 64) as usize
    }

    /// Brings `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// How many choices a thread goes through before it begins again.
const CHOICES: usize = 1024;

/// Choices of some of the objects, in random order; one after the other, for ever.
pub struct Picks {
    choices: Vec<Vec<usize>>,
    next: usize,
}

impl Picks {
    /// Each choice is of `count` among `objects`.
    pub fn new(seed: u64, count: usize, objects: usize) -> Picks {
        let mut random = Random::new(seed);
        let mut all: Vec<usize> = (0..objects).collect();
        let choice = |_| {
            random.shuffle(&mut all);
            all[..count].to_vec()
        };
        Picks { choices: (0..CHOICES).map(choice).collect(), next: 0 }
    }

    /// The same choices, each in ascending order.
    pub fn sorted(mut self) -> Picks {
        self.choices.iter_mut().for_each(|choice| choice.sort_unstable());
        self
    }

    /// The next choice.
    pub fn choose(&mut self) -> &[usize] {
        self.next = (self.next + 1) % CHOICES;
        &self.choices[self.next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_names_no_object_twice() {
        let mut picks = Picks::new(7, 16, 64);
        for _ in 0..100 {
            let mut choice = picks.choose().to_vec();
            choice.sort_unstable();
            choice.dedup();
            assert!(choice.len() == 16 && choice.iter().all(|&object| object < 64));
        }
    }
}
