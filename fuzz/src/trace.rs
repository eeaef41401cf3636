//! Telling in words what a run does: for whoever looks at a crash.

use std::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);

/// From now on every step is told on standard error.
pub fn on() {
    ON.store(true, Ordering::Relaxed);
}

pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Tells a step, if somebody listens.
macro_rules! say {
    ($($argument:tt)*) => {
        if $crate::trace::is_on() {
            eprintln!($($argument)*);
        }
    };
}
pub(crate) use say;
