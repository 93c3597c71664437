//! A progress bar on standard error, only on a terminal and only when the replay takes a while.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How long a replay may take before the bar appears.
const PATIENCE: Duration = Duration::from_millis(400);

/// The bar, if there is to be one.
pub struct Progress {
    bar: Option<ProgressBar>,
    begin: Instant,
    shown: bool,
}

impl Progress {
    /// A bar over `steps` steps if standard error is a terminal, else nothing.
    pub fn on_terminal(steps: u64) -> Progress {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden()));
        Progress { bar, begin: Instant::now(), shown: false }
    }

    /// No bar.
    pub fn none() -> Progress {
        Progress { bar: None, begin: Instant::now(), shown: false }
    }

    /// So many steps are done, and this is what the memory looks like.
    pub fn update(&mut self, steps_done: u64, message: impl FnOnce() -> String) {
        let Some(bar) = &self.bar else { return };
        if !self.shown && self.begin.elapsed() >= PATIENCE {
            self.shown = true;
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌░"));
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if self.shown {
            bar.set_message(message());
            bar.set_position(steps_done);
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
