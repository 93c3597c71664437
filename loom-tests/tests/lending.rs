//! Who borrows a value against who takes it back.
#![cfg(loom)]

use devpagemap_fence::sync::lending::{Answer, Lendable, Lender};
use devpagemap_loom_tests::{Watched, explore};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A value that borrowers and whoever took it back write to, never at the same time.
struct Page {
    bytes: Watched,
    told: std::sync::Arc<AtomicUsize>,
}

impl Lendable for Page {
    fn returned(lender: Lender<Page>) {
        lender.told.fetch_add(1, Ordering::AcqRel);
    }
}

fn page() -> (Lender<Page>, std::sync::Arc<AtomicUsize>) {
    let told = std::sync::Arc::new(AtomicUsize::new(0));
    let (lender, loan) = Lender::lent(Page { bytes: Watched::default(), told: told.clone() });
    drop(loan);
    (lender, told)
}

/// Two threads, exhaustive.
#[test]
fn a_value_is_lent_or_taken_back_and_who_takes_it_sees_what_borrowers_did() {
    explore(None, || {
        let (lender, told) = page();
        let borrower = {
            let lender = lender.clone();
            thread::spawn(move || {
                if let Some(loan) = lender.lend() {
                    loan.bytes.write();
                }
            })
        };
        let answer = lender.ask_back(false);
        if answer == Answer::TakenBack {
            lender.bytes.write();
        }
        borrower.join().expect("no panic");
        let told = told.load(Ordering::Acquire);
        match answer {
            Answer::TakenBack => assert!(lender.lend().is_none()),
            Answer::Lent => {
                assert!(told == 1 && lender.bytes.is_written(), "it was asked for, and is returned")
            }
            Answer::SecondChance => unreachable!("nobody is spared"),
        }
    });
}

/// Three threads, at most three preemptions: two borrowers of a value that is asked for.
#[test]
fn the_last_of_two_borrowers_tells_once() {
    explore(Some(3), || {
        let (lender, told) = page();
        let loans = [lender.lend(), lender.lend()].map(|loan| loan.expect("it is there"));
        assert_eq!(lender.ask_back(false), Answer::Lent);
        let borrowers = loans.map(|loan| thread::spawn(move || drop(loan)));
        borrowers.into_iter().for_each(|borrower| borrower.join().expect("no panic"));
        assert_eq!(told.load(Ordering::Acquire), 1);
        assert!(lender.is_back());
        assert_eq!(lender.ask_back(true), Answer::SecondChance);
    });
}
