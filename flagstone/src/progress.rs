//! A progress bar on standard error, shown only when that is a terminal.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Counts bytes of something that takes a while. Dropping it removes the bar.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for `total` bytes of `what` (a verb in its -ing form). Hidden when `quiet`, or when
    /// standard error is not a terminal.
    #[must_use]
    pub fn bytes(what: &'static str, total: u64, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(total);
        let template =
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Self(bar)
    }

    /// Sets how much is done, in bytes.
    pub fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Sets how much there is to do, in bytes.
    pub fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
