//! Wait-die against wound-wait: `cargo bench -p devpagemap-benches --bench lock_policy`.

use std::time::Duration;

use devpagemap_benches::lock_policy::{OBJECTS, Outcome, Rule, Setting, Waiting, measure};
use devpagemap_benches::report::{ns, ratio, table};
use devpagemap_benches::session::Session;
use devpagemap_benches::spread::{Spread, quantile};

const THREADS: [usize; 4] = [2, 4, 8, 16];
/// Objects that a transaction locks, and for how many microseconds it works when it has them.
const TRANSACTIONS: [(usize, u64); 5] = [(4, 0), (16, 0), (4, 5), (16, 5), (OBJECTS, 5)];

/// How long the threads of one setting run before it is another rule's turn, and how often it is each one's.
fn extent(session: &Session) -> (Duration, usize) {
    match (session.is_full(), session.is_long()) {
        (false, _) => (Duration::from_millis(2), 1),
        (true, false) => (Duration::from_millis(100), 7),
        (true, true) => (Duration::from_millis(400), 15),
    }
}

fn main() {
    let session = Session::from_arguments();
    let heading = [
        "spins for; locks",
        "threads",
        "rule",
        "transactions/s",
        "to wait-die",
        "cores used",
        "per core to wait-die",
        "restarts each",
        "median",
        "p99.9",
        "worst",
        "slowest/fastest thread",
    ];
    let mut rows = vec![heading.map(String::from)];
    for (waiting, (count, work_us)) in every_transaction() {
        for threads in THREADS {
            let name = name(waiting, count, work_us);
            if session.wants(&format!("lock policy: {name}, {threads} threads")) {
                let work = Duration::from_micros(work_us);
                rows.extend(compare(
                    &session,
                    &name,
                    Setting { rule: Rule::WaitDie, waiting, threads, count, work },
                ));
            }
        }
    }
    if rows.len() > 1 {
        println!("\nwait-die against wound-wait\n\n{}", table(&rows));
    }
}

fn every_transaction() -> impl Iterator<Item = (Waiting, (usize, u64))> {
    let with = |waiting| TRANSACTIONS.into_iter().map(move |transaction| (waiting, transaction));
    Waiting::ALL.into_iter().flat_map(with)
}

fn name(waiting: Waiting, count: usize, work_us: u64) -> String {
    let work = if work_us == 0 { String::new() } else { format!(" for {work_us} us") };
    format!("{}; {count} of {OBJECTS}{work}", waiting.name())
}

type Rate = fn(&Outcome) -> f64;

fn compare(session: &Session, name: &str, setting: Setting) -> Vec<[String; 12]> {
    let (time, turns) = extent(session);
    let mut results: [Vec<Outcome>; 3] = Default::default();
    for turn in 0..turns {
        for place in 0..Rule::ALL.len() {
            let rule = (place + turn) % Rule::ALL.len();
            results[rule].push(measure(&Setting { rule: Rule::ALL[rule], ..setting }, time));
        }
    }
    let per_second: Rate = |outcome| outcome.per_second;
    let per_core: Rate = |outcome| outcome.per_second / outcome.cores;
    let to_wait_die = |rate: Rate, of: &[Outcome]| {
        let pairs = of.iter().zip(&results[0]);
        ratio(Spread::of(pairs.map(|(one, wait_die)| rate(one) / rate(wait_die))).median)
    };
    let row = |(rule, results): (Rule, &Vec<Outcome>)| {
        let median = |of: fn(&Outcome) -> f64| Spread::of(results.iter().map(of)).median;
        let mut all: Vec<f64> = results.iter().flat_map(|result| &result.latencies_ns).copied().collect();
        all.sort_unstable_by(f64::total_cmp);
        [
            name.to_owned(),
            setting.threads.to_string(),
            rule.name().into(),
            format!("{:.0}", median(|outcome| outcome.per_second)),
            to_wait_die(per_second, results),
            format!("{:.2}", median(|outcome| outcome.cores)),
            to_wait_die(per_core, results),
            format!("{:.3}", median(|outcome| outcome.restarts)),
            ns(quantile(&all, 0.5)),
            ns(quantile(&all, 0.999)),
            ns(quantile(&all, 1.0)),
            format!("{:.2}", median(|outcome| outcome.fairness)),
        ]
    };
    Rule::ALL.into_iter().zip(&results).map(row).collect()
}
