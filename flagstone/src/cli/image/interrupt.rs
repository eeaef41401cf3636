//! SIGINT and SIGTERM while an image is under way: something is done, then the process ends.
//!
//! What is under way is not waited for, since it may be stuck in a pipe; only its beginning is. What the signal
//! leaves behind is what `kill -9` would leave, which the next run can deal with.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A signal has come, and the process is about to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Held while something is begun that a signal has to undo: it must be there, or not be begun.
static BEGINNING: Mutex<()> = Mutex::new(());

/// Runs `work`, which a signal waits for.
pub(super) fn undivided<T>(work: impl FnOnce() -> T) -> T {
    let _held = BEGINNING.lock();
    work()
}

/// From now on a signal runs `leave`, prints what it says, and ends the process with 128 plus its number.
/// A second signal ends it at once.
///
/// # Errors
/// The system gives no thread, or no handler.
pub(super) fn on_signal(leave: impl FnOnce() -> String + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else { return };
        INTERRUPTED.store(true, Ordering::SeqCst);
        let second = std::thread::Builder::new().spawn(move || {
            if let Some(signal) = signals.forever().next() {
                std::process::exit(128 + signal);
            }
        });
        drop(second);
        let _begun = BEGINNING.lock();
        let text = leave();
        eprintln!("{text}");
        std::process::exit(128 + signal);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// Where something failed because of a signal, waits for the end of the process: that has its own message.
pub(super) fn yield_to_signal() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
