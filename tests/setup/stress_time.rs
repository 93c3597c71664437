//! How long a stress test goes on.

use std::time::Duration;

/// As `DEVPAGEMAP_STRESS_SECONDS` says; else 3 seconds.
pub fn stress_time() -> Duration {
    let told = std::env::var("DEVPAGEMAP_STRESS_SECONDS").ok();
    let seconds = told.map(|text| text.parse().expect("DEVPAGEMAP_STRESS_SECONDS is a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(3))
}
