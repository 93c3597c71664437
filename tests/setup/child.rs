//! Tests that end their process: they run themselves again, and look at how that ends.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

const CHILD: &str = "DEVPAGEMAP_TEST_CHILD";

/// Runs `body` in a process of its own, which is this test run again; returns what became of it, and nothing in the child itself.
/// `test` is the test's full name.
#[track_caller]
pub fn in_a_child(test: &str, body: impl FnOnce()) -> Option<Output> {
    in_a_child_with(Stdio::null(), test, body)
}

/// The same, and the process has `stdin` as its standard input.
#[track_caller]
pub fn in_a_child_with(stdin: Stdio, test: &str, body: impl FnOnce()) -> Option<Output> {
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let program = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new(program);
    child.args(["--exact", test, "--nocapture"]).env(CHILD, test);
    let child = child.stdin(stdin).output();
    Some(child.expect("the program can be run again"))
}

/// That the child was killed by `signal`.
#[track_caller]
pub fn expect_killed(child: &Output, signal: i32) {
    let output = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.signal(), Some(signal), "{:?}: {output}", child.status);
}

/// That the child ran its test to a good end.
#[track_caller]
pub fn expect_success(child: &Output) {
    let (output, errors) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    // Not all of it: the child's summary would be taken for this test run's.
    let succeeded = child.status.success() && output.contains("1 passed");
    assert!(succeeded, "{:?}: {errors}", child.status);
}
