//! Numbered places for the claims that a set holds: given out in order, and again when they are vacated.
//!
//! ```text
//!   first  | 0 | 1 | ... | 15 |       inside the set: most submissions allocate nothing
//!   more   | 16 | 17 | ...            allocated, growing fourfold: who needs more than a few needs many
//! ```
//!
//! A value is named by its place's index and a generation, so that a name is not mistaken for that of a later value in the same
//! place. Places that were never vacated share one generation, which costs a value nothing; those that were are counted one
//! by one.

use arrayvec::ArrayVec;

use super::barrier::full_fence;
use super::claim::Claim;

/// How many places there are without allocating.
const FIRST: usize = 16;

enum Place<T> {
    Taken(T),
    /// Names the next vacant one, counted from one; 0: there is none.
    Vacant(u32),
}

impl<T> Place<T> {
    fn taken(&self) -> Option<&T> {
        match self {
            Place::Taken(value) => Some(value),
            Place::Vacant(_) => None,
        }
    }

    fn taken_mut(&mut self) -> Option<&mut T> {
        match self {
            Place::Taken(value) => Some(value),
            Place::Vacant(_) => None,
        }
    }
}

/// A claim, and what belongs to it.
pub(crate) struct Held<'o, R, T, X> {
    /// The claim.
    pub(crate) claim: Claim<'o, R, T>,
    /// What belongs to it; dropped when the claim has ended.
    pub(crate) _extra: X,
}

/// How often each place was vacated, by index; those beyond never were. Behind a pointer, as an empty one is one word to write.
#[derive(Default)]
struct Reuses(Vec<u32>);

/// Values that keep their number until they are taken away.
pub(crate) struct Places<T> {
    vacant: u32, // the first vacant place, counted from one; 0: there is none
    vacant_count: u32,
    generation: u32, // of places that were never vacated; another one each time that all are
    reuses: Option<Box<Reuses>>, // most sets have none
    more: Vec<Place<T>>, // the places after the first
    first: ArrayVec<Place<T>, FIRST>,
}

impl<T> Places<T> {
    #[inline]
    pub(crate) fn new() -> Places<T> {
        Places {
            vacant: 0,
            vacant_count: 0,
            generation: 0,
            reuses: None,
            more: Vec::new(),
            first: ArrayVec::new_const(),
        }
    }

    #[inline]
    fn count(&self) -> u32 {
        (self.first.len() + self.more.len()) as u32
    }

    /// How many values there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        (self.count() - self.vacant_count) as usize
    }

    /// Whether there is no place, taken or vacant.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The number that the next value gets, if that takes no allocation and no search.
    #[inline(always)]
    pub(crate) fn next_at_once(&self) -> Option<u32> {
        if self.vacant != 0 {
            return None;
        }
        if self.first.len() < FIRST {
            return Some(self.first.len() as u32);
        }
        (self.more.len() < self.more.capacity()).then_some((FIRST + self.more.len()) as u32)
    }

    /// Adds a value where [`next_at_once`](Places::next_at_once) said.
    #[inline(always)]
    pub(crate) fn push_at_once(&mut self, value: T) {
        if let Err(full) = self.first.try_push(Place::Taken(value)) {
            self.more.push(full.element());
        }
    }

    /// The number that the next value gets.
    pub(crate) fn next(&self) -> u32 {
        if self.vacant == 0 { self.count() } else { self.vacant - 1 }
    }

    /// Adds a value, in a vacant place if there is one.
    pub(crate) fn insert(&mut self, value: T) {
        if self.vacant != 0 {
            let place = self.place_mut(self.vacant - 1).expect("vacant places are numbered");
            if let Place::Vacant(next) = std::mem::replace(place, Place::Taken(value)) {
                self.vacant = next;
                self.vacant_count -= 1;
            }
            return;
        }
        if self.first.is_full() && self.more.len() == self.more.capacity() {
            self.more.reserve(15 * self.count() as usize);
        }
        self.push_at_once(value);
    }

    /// The generation of the value in a place.
    #[inline]
    pub(crate) fn generation(&self, index: u32) -> u32 {
        let reuses = self.reuses.as_ref().and_then(|reuses| reuses.0.get(index as usize));
        self.generation.wrapping_add(reuses.copied().unwrap_or(0))
    }

    /// Takes a value away; its number is given out again.
    pub(crate) fn vacate(&mut self, index: u32) -> Option<T> {
        let next = self.vacant;
        let place = self.place_mut(index)?;
        let value = match std::mem::replace(place, Place::Vacant(next)) {
            Place::Taken(value) => value,
            vacant @ Place::Vacant(_) => {
                *place = vacant;
                return None;
            }
        };
        self.vacant = index + 1;
        self.vacant_count += 1;
        let Reuses(reuses) = &mut **self.reuses.get_or_insert_default();
        let counted = reuses.len().max(index as usize + 1);
        reuses.resize(counted, 0);
        reuses[index as usize] += 1;
        Some(value)
    }

    /// Takes the value away if there is one place and it is taken. [`clear`](Places::clear) must follow.
    #[inline]
    pub(crate) fn take_only(&mut self) -> Option<T> {
        if self.first.len() != 1 {
            return None;
        }
        match self.first.pop()? {
            Place::Taken(value) => Some(value),
            vacant @ Place::Vacant(_) => {
                self.first.push(vacant);
                None
            }
        }
    }

    /// Calls `each` with every value, and takes them away; counting begins anew.
    pub(crate) fn take_all(&mut self, mut each: impl FnMut(T)) {
        for place in self.first.drain(..).chain(self.more.drain(..)) {
            if let Place::Taken(value) = place {
                each(value);
            }
        }
        self.clear();
    }

    /// Forgets all values; counting begins anew.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.first.clear();
        self.more.clear();
        if self.reuses.is_some() {
            self.forget_reuses();
        }
        self.generation = self.generation.wrapping_add(1);
        self.vacant = 0;
        self.vacant_count = 0;
    }

    /// Goes on with a generation that no value of any place has had.
    #[cold]
    fn forget_reuses(&mut self) {
        let reuses = self.reuses.take().and_then(|reuses| reuses.0.into_iter().max()).unwrap_or(0);
        self.generation = self.generation.wrapping_add(reuses);
    }

    fn place_mut(&mut self, index: u32) -> Option<&mut Place<T>> {
        match (index as usize).checked_sub(FIRST) {
            None => self.first.get_mut(index as usize),
            Some(index) => self.more.get_mut(index),
        }
    }

    /// The value with this number and generation.
    #[inline]
    pub(crate) fn get(&self, index: u32, generation: u32) -> Option<&T> {
        if generation != self.generation(index) {
            return None;
        }
        match (index as usize).checked_sub(FIRST) {
            None => self.first.get(index as usize)?.taken(),
            Some(index) => self.more.get(index)?.taken(),
        }
    }

    /// The value with this number and generation.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        if generation != self.generation(index) {
            return None;
        }
        self.place_mut(index)?.taken_mut()
    }

    /// All values with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &T)> {
        let places = self.first.iter().chain(&self.more).zip(0u32..);
        places.filter_map(|(place, index)| Some((index, place.taken()?)))
    }

    /// Calls `each` with every value.
    #[inline(always)]
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(&mut T)) {
        for place in &mut self.first {
            if let Place::Taken(value) = place {
                each(value);
            }
        }
        for place in &mut self.more {
            if let Place::Taken(value) = place {
                each(value);
            }
        }
    }
}

impl<'o, R, T, X> Places<Held<'o, R, T, X>> {
    /// Gives every claim back, with one barrier for all, and takes them away. Calls `wake` with each object if somebody waited
    /// for any of them before, or if `anybody_queues` after the barrier.
    ///
    /// A loop that decides nothing. That a claim is not used after its release needs no mark in the claim: nobody sees the
    /// places after the loop before they are empty, also when `wake` panics.
    #[inline]
    pub(crate) fn release_all(
        &mut self,
        owns: bool,
        anybody_queues: impl FnOnce() -> bool,
        mut wake: impl FnMut(&R),
    ) {
        let mut emptied = Emptied { places: self, owns };
        let mut waiting = 0;
        // SAFETY: the claims in places are live, as whoever releases one alone takes it out of its place first (the lock set
        // does); they are taken away by `Emptied` before anybody else sees the places, and until then nothing but their cell
        // and their object is looked at.
        emptied.places.for_each(|held| waiting |= unsafe { held.claim.release_unmarked() });
        full_fence();
        if waiting != 0 || anybody_queues() {
            emptied.wake_all(&mut wake);
        }
    }
}

/// Places whose claims have been released, and which are emptied however this ends.
struct Emptied<'p, 'o, R, T, X> {
    places: &'p mut Places<Held<'o, R, T, X>>,
    owns: bool,
}

impl<R, T, X> Emptied<'_, '_, R, T, X> {
    #[cold]
    fn wake_all(&mut self, wake: &mut impl FnMut(&R)) {
        self.places.for_each(|held| wake(held.claim.object()));
    }
}

impl<R, T, X> Drop for Emptied<'_, '_, R, T, X> {
    #[inline]
    fn drop(&mut self) {
        if self.owns {
            self.places.take_all(|held| held.claim.finish());
        } else {
            self.places.clear();
        }
    }
}
