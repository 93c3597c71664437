//! Catching lockdep's reports, and naming the places that they must name.

use devpagemap_fence::{Reservable, Reservation};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What lockdep says about `body`, which must not get through.
#[track_caller]
pub fn report_of<O>(body: impl FnOnce() -> O) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(body()))) else {
        panic!("nothing was reported");
    };
    *panic.downcast::<String>().expect("a report is a text")
}

#[track_caller]
pub fn assert_says(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "{part:?} is missing in: {report}");
    }
}

/// This line of the source, or one further down, as reports name it.
#[macro_export]
macro_rules! line_below {
    ($down:expr) => {
        &format!("{}:{}:", file!(), line!() + $down)
    };
}

pub struct Object(pub Reservation<()>);

impl Reservable for Object {
    type State = ();

    fn reservation(&self) -> &Reservation<()> {
        &self.0
    }
}

pub fn object() -> Arc<Object> {
    Arc::new(Object(Reservation::new(())))
}
