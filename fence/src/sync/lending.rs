//! Lending: a value that its keepers lend out, and take back while nobody has it.
//!
//! The one question between whoever begins to use a cached thing and whoever wants its place for something else, answered
//! by one word. It is the reference count too, so that a loan costs one step to make and one to end, and no lock:
//!
//! ```text
//!   word:  | TAKEN_BACK | AWAITED | USED | keepers (29 bits) | loans (32 bits) |
//!
//!   lend                          ─► loans + 1, USED        the borrower has it; if it was TAKEN_BACK, he returns it at once
//!   ask back  no loans, no USED   ─► TAKEN_BACK             nobody gets it any more; the asker may do with it what it likes
//!             no loans, USED      ─► no USED                a second chance
//!             loans               ─► AWAITED                whoever returns the last loan tells the keeper
//! ```
//!
//! Keepers ([`Lender`]) keep the memory and do not stand in the way of taking back; borrowers ([`Loan`]) do both. A value may
//! also be taken back while it is lent: it is lent no more from then on, and who returns the last loan tells the keeper.
//!
//! The `unsafe` here rests on one fact: the memory is freed by whoever brings keepers and loans to nothing, and a reference
//! to the value is reached through one of them.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;

use super::atomic::{AtomicU64, Ordering};
use super::mutant;

const LOAN: u64 = 1;
const LOANS: u64 = (1 << 32) - 1;
const KEEPER: u64 = 1 << 32;
const KEEPERS: u64 = ((1 << 29) - 1) << 32;
const USED: u64 = 1 << 61;
const AWAITED: u64 = 1 << 62;
const TAKEN_BACK: u64 = 1 << 63;

/// Something that can be lent.
pub trait Lendable: Send + Sync + Sized + 'static {
    /// The last loan has been returned of a value that somebody has asked back, or taken back. Called in the thread that
    /// returned it, wherever that was; by now it may be lent again.
    fn returned(lender: Lender<Self>);
}

/// What became of asking a value back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is taken back, for good. Everything that borrowers did with it has happened before this.
    TakenBack,
    /// Nobody has it, but somebody had it since it was last asked back.
    SecondChance,
    /// It is lent; [`Lendable::returned`] tells.
    Lent,
}

struct Lent<T> {
    word: AtomicU64,
    value: T,
}

/// A keeper of a value: keeps it in memory, lends it and takes it back. Clones keep the same one.
pub struct Lender<T: Lendable>(NonNull<Lent<T>>);

/// A value on loan, until dropped.
pub struct Loan<T: Lendable>(NonNull<Lent<T>>);

// SAFETY: a keeper hands out shared references only, drops the value in whatever thread is last, and its word is atomic.
unsafe impl<T: Lendable> Send for Lender<T> {}
// SAFETY: as above.
unsafe impl<T: Lendable> Sync for Lender<T> {}
// SAFETY: as for keepers.
unsafe impl<T: Lendable> Send for Loan<T> {}
// SAFETY: as for keepers.
unsafe impl<T: Lendable> Sync for Loan<T> {}

impl<T: Lendable> Lender<T> {
    /// Puts `value` up for lending, with the first loan of it.
    pub fn lent(value: T) -> (Lender<T>, Loan<T>) {
        let word = AtomicU64::new(KEEPER + LOAN);
        let memory = NonNull::from(Box::leak(Box::new(Lent { word, value })));
        (Lender(memory), Loan(memory))
    }

    /// Borrows the value; `None` when it has been taken back.
    #[inline]
    pub fn lend(&self) -> Option<Loan<T>> {
        let old = self.word().fetch_add(LOAN, Ordering::Acquire);
        assert!(old & LOANS != LOANS, "a value is lent to less than 2^32 borrowers");
        let loan = Loan(self.0);
        if old & TAKEN_BACK != 0 && !mutant!("taken_back_is_lent_again") {
            return None;
        }
        if old & USED == 0 {
            self.word().fetch_or(USED, Ordering::Relaxed);
        }
        Some(loan)
    }

    /// Takes the value back if nobody has it and, with `spare_used`, nobody had it since it was last asked back.
    pub fn ask_back(&self, spare_used: bool) -> Answer {
        let word = self.word();
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let (new, answer) = match old {
                _ if old & LOANS != 0 => (old | AWAITED, Answer::Lent),
                _ if old & USED != 0 && spare_used => (old & !USED, Answer::SecondChance),
                _ => (old | TAKEN_BACK, Answer::TakenBack),
            };
            if mutant!("asker_does_not_look_again") {
                word.fetch_or(new & (TAKEN_BACK | AWAITED), Ordering::AcqRel);
                return answer;
            }
            match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return answer,
                Err(found) => old = found,
            }
        }
    }

    /// Takes the value back, though it may be lent; whether nobody has it.
    pub fn take_back(&self) -> bool {
        self.word().fetch_or(TAKEN_BACK, Ordering::AcqRel) & LOANS == 0
    }

    /// Waits for its return no more, if it is returned and not taken back; whether that is so.
    pub fn is_back(&self) -> bool {
        let word = self.word();
        let mut old = word.load(Ordering::Relaxed);
        while old & (LOANS | TAKEN_BACK) == 0 {
            match word.compare_exchange(old, old & !AWAITED, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
        false
    }

    /// Whether somebody has it. Without a loan of one's own, old news at once, unless it is taken back: then no is for good.
    pub fn is_lent(&self) -> bool {
        self.word().load(Ordering::Acquire) & LOANS != 0
    }

    /// Whether it has been taken back.
    pub fn is_taken_back(&self) -> bool {
        self.word().load(Ordering::Acquire) & TAKEN_BACK != 0
    }

    /// Whether both keep the same value.
    pub fn is_same(&self, other: &Lender<T>) -> bool {
        self.0 == other.0
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: self is a keeper, so the memory is there.
        unsafe { &self.0.as_ref().word }
    }
}

impl<T: Lendable> Clone for Lender<T> {
    fn clone(&self) -> Self {
        let old = self.word().fetch_add(KEEPER, Ordering::Relaxed);
        assert!(old & KEEPERS != KEEPERS, "a value has less than 2^29 keepers");
        Lender(self.0)
    }
}

impl<T: Lendable> Drop for Lender<T> {
    fn drop(&mut self) {
        let old = self.word().fetch_sub(KEEPER, Ordering::AcqRel);
        if old & (KEEPERS | LOANS) == KEEPER {
            // SAFETY: this was the last of keepers and loans.
            unsafe { free(self.0) };
        }
    }
}

impl<T: Lendable> Loan<T> {
    /// Whether the value has not been taken back from under this loan.
    pub fn is_current(&self) -> bool {
        self.word().load(Ordering::Acquire) & TAKEN_BACK == 0
    }

    /// A keeper of the same value.
    pub fn lender(&self) -> Lender<T> {
        self.word().fetch_add(KEEPER, Ordering::Relaxed);
        Lender(self.0)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: self is a loan, so the memory is there.
        unsafe { &self.0.as_ref().word }
    }
}

impl<T: Lendable> Drop for Loan<T> {
    #[inline]
    fn drop(&mut self) {
        let word = self.word();
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let tells = old & LOANS == LOAN && old & (AWAITED | TAKEN_BACK) != 0;
            let new = if tells { old - LOAN + KEEPER } else { old - LOAN };
            let order =
                if mutant!("return_publishes_nothing") { Ordering::Acquire } else { Ordering::AcqRel };
            match word.compare_exchange_weak(old, new, order, Ordering::Relaxed) {
                Err(found) => old = found,
                Ok(_) if tells && !mutant!("last_return_tells_nobody") => {
                    return T::returned(Lender(self.0));
                }
                Ok(_) => break,
            }
        }
        if old & (KEEPERS | LOANS) == LOAN {
            // SAFETY: this was the last of keepers and loans.
            unsafe { free(self.0) };
        }
    }
}

/// # Safety
/// Nobody else may reach the value: no keeper and no loan is left.
#[cold]
unsafe fn free<T>(memory: NonNull<Lent<T>>) {
    // SAFETY: `Lender::lent` leaked this box, and the caller is the last who knows of it.
    drop(unsafe { Box::from_raw(memory.as_ptr()) });
}

impl<T: Lendable> Deref for Lender<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: self is a keeper, so the memory is there; nobody has more than a shared reference to the value.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T: Lendable> Deref for Loan<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: as for keepers.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T: Lendable + fmt::Debug> fmt::Debug for Lender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lender").field(&**self).finish()
    }
}

impl<T: Lendable + fmt::Debug> fmt::Debug for Loan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Loan").field(&**self).finish()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::{Arc, Mutex};

    /// Says when it is told, and when it is dropped.
    struct Book {
        told: Told,
    }

    impl Lendable for Book {
        fn returned(lender: Lender<Self>) {
            let back = lender.is_back();
            lender.told.lock().push(if back { "back" } else { "gone" });
        }
    }

    impl Drop for Book {
        fn drop(&mut self) {
            self.told.lock().push("freed");
        }
    }

    type Told = Arc<Mutex<Vec<&'static str>>>;

    fn book() -> (Lender<Book>, Loan<Book>, Told) {
        let told = Arc::default();
        let (lender, loan) = Lender::lent(Book { told: Arc::clone(&told) });
        (lender, loan, told)
    }

    #[test]
    fn what_is_lent_is_not_taken_back_and_its_return_is_told_once_it_was_asked_for() {
        let (lender, loan, told) = book();
        drop(loan);
        assert!(told.lock().is_empty(), "nobody had asked for it");
        let loan = lender.lend().expect("it is there");
        assert_eq!(lender.ask_back(false), Answer::Lent);
        let second = lender.lend().expect("asked for, not taken back");
        drop(loan);
        assert!(told.lock().is_empty(), "one loan is left");
        drop(second);
        assert_eq!(*told.lock(), ["back"]);
        drop(lender.lend());
        assert_eq!(*told.lock(), ["back"], "it is awaited no more");
    }

    #[test]
    fn what_was_used_since_it_was_last_asked_for_gets_a_second_chance_and_no_third() {
        let (lender, loan, _) = book();
        drop((loan, lender.lend()));
        assert_eq!(lender.ask_back(true), Answer::SecondChance);
        assert_eq!(lender.ask_back(true), Answer::TakenBack);
        assert!(lender.lend().is_none());
        let (impatient, loan, _) = book();
        drop((loan, impatient.lend()));
        assert_eq!(impatient.ask_back(false), Answer::TakenBack);
    }

    #[test]
    fn the_first_loan_is_no_use_that_spares_it() {
        let (lender, loan, _) = book();
        drop(loan);
        assert_eq!(lender.ask_back(true), Answer::TakenBack);
    }

    #[test]
    fn what_is_taken_back_under_a_loan_is_told_when_that_ends() {
        let (lender, loan, told) = book();
        assert!(!lender.take_back(), "somebody has it");
        assert!(!loan.is_current() && lender.lend().is_none());
        drop(lender);
        drop(loan);
        assert_eq!(*told.lock(), ["gone", "freed"]);
    }

    #[test]
    fn the_last_of_keepers_and_loans_frees_it() {
        let (lender, loan, told) = book();
        let other = loan.lender();
        assert!(other.is_same(&lender));
        drop((lender, other));
        assert!(told.lock().is_empty());
        drop(loan);
        assert_eq!(*told.lock(), ["freed"]);
    }
}
