//! Children: streamed to the terminal while somebody listens, or captured, with a time limit.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a child with a time limit is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Runs `command`; its output goes where ours goes.
///
/// # Errors
/// Why it could not be started.
pub fn run(command: &mut Command) -> Result<ExitStatus, String> {
    command.stdin(Stdio::null()).status().map_err(|error| not_started(command, &error))
}

/// Runs `command`; its standard output is passed on as it comes, and each line of it is shown to `each_line` too.
///
/// # Errors
/// Why it could not be started or read.
pub fn run_streamed(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<ExitStatus, String> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| not_started(command, &error))?;
    let mut output = child.stdout.take().expect("the output is piped");
    let (mut buffer, mut line) = ([0; 8192], Vec::new());
    loop {
        let len = output.read(&mut buffer).map_err(|error| format!("the output of {command:?}: {error}"))?;
        if len == 0 {
            break;
        }
        pass_on(&buffer[..len]);
        for byte in &buffer[..len] {
            match byte {
                b'\n' => {
                    each_line(&String::from_utf8_lossy(&line));
                    line.clear();
                }
                byte => line.push(*byte),
            }
        }
    }
    each_line(&String::from_utf8_lossy(&line));
    child.wait().map_err(|error| format!("waiting for {command:?}: {error}"))
}

fn pass_on(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // Nobody may be reading; the child's result counts all the same.
    let _nobody_reads = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

/// How a captured child ended.
pub struct Captured {
    /// `None`: it was ended, because its time was up.
    pub status: Option<ExitStatus>,
    /// Standard output, then standard error.
    pub output: String,
    /// When each line of standard output was whole, from the beginning on.
    pub line_ends: Vec<Duration>,
    /// How long it ran.
    pub took: Duration,
}

/// Runs `command` for at most `limit` and keeps what it prints. It must not leave children of its own behind.
///
/// # Errors
/// Why it could not be started or waited for.
pub fn run_captured(command: &mut Command, limit: Duration) -> Result<Captured, String> {
    run_until(command, false, |took, _| took >= limit)
}

/// The same, and what it prints is passed on as it comes. It is also ended when it has printed nothing within `first_word`.
///
/// # Errors
/// Why it could not be started or waited for.
pub fn run_watched(command: &mut Command, limit: Duration, first_word: Duration) -> Result<Captured, String> {
    run_until(command, true, |took, has_spoken| took >= limit || !has_spoken && took >= first_word)
}

fn run_until(
    command: &mut Command,
    is_shown: bool,
    time_is_up: impl Fn(Duration, bool) -> bool,
) -> Result<Captured, String> {
    let begin = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| not_started(command, &error))?;
    let has_spoken = Arc::new(AtomicBool::new(false));
    let collect = |stream| collect(stream, is_shown, begin, &has_spoken);
    let stdout = collect(OwnedFd::from(child.stdout.take().expect("the output is piped")));
    let stderr = collect(OwnedFd::from(child.stderr.take().expect("the output is piped")));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if !time_is_up(begin.elapsed(), has_spoken.load(Ordering::Relaxed)) => {
                thread::sleep(LOOK_EVERY);
            }
            Ok(None) => {
                // It may have ended by itself just now.
                let _ended_already = child.kill();
                child.wait().map_err(|error| format!("ending {command:?}: {error}"))?;
                break None;
            }
            Err(error) => return Err(format!("waiting for {command:?}: {error}")),
        }
    };
    let took = begin.elapsed();
    let read = |reader: Reader| reader.join().expect("a reader only reads");
    let ((stdout, line_ends), (stderr, _)) = (read(stdout), read(stderr));
    let output = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    Ok(Captured { status, output, line_ends, took })
}

/// Reads what comes, and notes when each line of it was whole.
type Reader = thread::JoinHandle<(Vec<u8>, Vec<Duration>)>;

fn collect(stream: OwnedFd, is_shown: bool, begin: Instant, has_spoken: &Arc<AtomicBool>) -> Reader {
    let has_spoken = has_spoken.clone();
    let mut stream = File::from(stream);
    thread::spawn(move || {
        let (mut bytes, mut line_ends, mut buffer) = (Vec::new(), Vec::new(), [0; 8192]);
        loop {
            match stream.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What could be read until an error is worth having.
                Ok(0) | Err(_) => break (bytes, line_ends),
                Ok(len) => {
                    has_spoken.store(true, Ordering::Relaxed);
                    if is_shown {
                        pass_on(&buffer[..len]);
                    }
                    let lines = buffer[..len].iter().filter(|byte| **byte == b'\n').count();
                    line_ends.extend(std::iter::repeat_n(begin.elapsed(), lines));
                    bytes.extend_from_slice(&buffer[..len]);
                }
            }
        }
    })
}

fn not_started(command: &Command, error: &std::io::Error) -> String {
    format!("{} could not be started: {error}", command.get_program().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_are_shown_whole_however_they_come() {
        let mut lines = Vec::new();
        let status = run_streamed(&mut shell("printf one; printf 'more\\ntwo\\nthree'"), |line| {
            lines.push(line.to_owned())
        });
        assert!(status.unwrap().success());
        assert_eq!(lines, ["onemore", "two", "three"]);
    }

    #[test]
    fn a_child_is_captured_with_how_it_ended() {
        let run =
            run_captured(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_secs(600)).unwrap();
        assert_eq!((run.status.unwrap().code(), run.output.as_str()), (Some(3), "out\nerr\n"));
    }

    #[test]
    fn each_line_has_the_time_at_which_it_was_whole() {
        let script = "printf one; sleep 0.05; printf '\\ntwo\\n'; echo more >&2";
        let run = run_captured(&mut shell(script), Duration::from_secs(600)).unwrap();
        assert_eq!(run.line_ends.len(), 2);
        assert!(run.line_ends[0] >= Duration::from_millis(50) && run.line_ends.is_sorted());
    }

    #[test]
    fn a_child_that_does_not_end_in_time_is_ended() {
        let run = run_captured(&mut shell("exec sleep 600"), Duration::from_millis(20)).unwrap();
        assert!(run.status.is_none());
    }

    #[test]
    fn a_child_that_says_nothing_is_ended_before_its_time_is_up_and_one_that_speaks_is_not() {
        let (limit, first_word) = (Duration::from_secs(600), Duration::from_millis(20));
        assert!(run_watched(&mut shell("exec sleep 600"), limit, first_word).unwrap().status.is_none());
        let patient = Duration::from_secs(600);
        let spoke = run_watched(&mut shell("echo here; exec sleep 0.1"), limit, patient).unwrap();
        assert!(spoke.status.is_some_and(|status| status.success()) && spoke.output == "here\n");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(error.contains("no-such-program-here"), "{error}");
    }
}
