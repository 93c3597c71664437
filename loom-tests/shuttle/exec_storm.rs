//! Sixteen tickets that lock random, overlapping sets in random order.
#![cfg(shuttle)]

use std::sync::Arc;

use devpagemap_fence::{Exec, Held, LockError, Reservable, Reservation};
use devpagemap_loom_tests::storm::storm;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

const THREADS: usize = 16;
const ACCOUNTS: usize = 10;
/// What each account has at first.
const START: i64 = 100;

struct Account {
    balance: Reservation<i64>,
}

impl Reservable for Account {
    type State = i64;

    fn reservation(&self) -> &Reservation<i64> {
        &self.balance
    }
}

fn accounts() -> Arc<Vec<Arc<Account>>> {
    Arc::new((0..ACCOUNTS).map(|_| Arc::new(Account { balance: Reservation::new(START) })).collect())
}

/// Takes one from each of a few accounts, which may be named twice, and gives all of it to another.
fn collect(accounts: &[Arc<Account>]) {
    let wanted: Vec<usize> =
        (0..thread_rng().gen_range(1..6)).map(|_| thread_rng().gen_range(0..ACCOUNTS)).collect();
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let taken = exec.run(|exec| {
        let slots =
            wanted.iter().map(|index| exec.lock(&accounts[*index])).collect::<Result<Vec<_>, LockError>>()?;
        for slot in &slots {
            *exec.set_mut().state_mut(*slot) -= 1;
        }
        *exec.set_mut().state_mut(slots[0]) += slots.len() as i64;
        Ok::<_, LockError>(())
    });
    assert_eq!(taken, Ok(()));
}

/// 16 threads. Nobody starves, nothing is lost, and every account is free at the end.
#[test]
fn nothing_is_lost_between_sixteen_tickets() {
    storm("nothing_is_lost_between_sixteen_tickets", 700, || {
        let accounts = accounts();
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let accounts = accounts.clone();
                thread::spawn(move || (0..3).for_each(|_| collect(&accounts)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(!accounts.iter().any(|account| account.balance.is_locked()), "all is unlocked");
        let mut held = Held::enter();
        let total: i64 = accounts.iter().map(|account| *account.balance.lock(&mut held)).sum();
        assert_eq!(total, START * ACCOUNTS as i64);
    });
}

/// 12 threads, of which some lock one account at a time, some only try, and some lock many.
#[test]
fn tickets_single_locks_and_tries_get_along() {
    storm("tickets_single_locks_and_tries_get_along", 700, || {
        let accounts = accounts();
        let threads: Vec<_> = (0..12)
            .map(|index| {
                let accounts = accounts.clone();
                thread::spawn(move || match index % 3 {
                    0 => (0..3).for_each(|_| collect(&accounts)),
                    1 => {
                        for _ in 0..3 {
                            let account = &accounts[thread_rng().gen_range(0..ACCOUNTS)];
                            *account.balance.lock(&mut Held::enter()) += 0;
                        }
                    }
                    _ => {
                        for account in accounts.iter() {
                            if let Some(mut balance) = account.balance.try_lock() {
                                *balance -= 1;
                                thread::yield_now();
                                *balance += 1;
                            }
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let mut held = Held::enter();
        let total: i64 = accounts.iter().map(|account| *account.balance.lock(&mut held)).sum();
        assert_eq!(total, START * ACCOUNTS as i64);
    });
}
