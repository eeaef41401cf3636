//! What a failure is called on the wire, in one place.

use flagstone_engine::{IoFault, SubmitError};
use flagstone_nbd::Errno;

/// Why a request failed, whoever says so.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    /// The engine did not take it.
    Submit(SubmitError),
    /// The engine took it and could not do it.
    Io(IoFault),
}

/// NBD proto, "Error values".
pub(super) fn errno(failure: Failure) -> Errno {
    match failure {
        Failure::Submit(SubmitError::NoSpace) | Failure::Io(IoFault::NoSpace) => Errno::NoSpace,
        Failure::Submit(SubmitError::OutOfRange) => Errno::Inval,
        Failure::Submit(SubmitError::ReadOnly | SubmitError::IsSnapshot) => Errno::Perm,
        // The volume was deleted, or the pool is being closed: there is no use in trying again.
        Failure::Submit(SubmitError::NoVolume | SubmitError::Stopping)
        | Failure::Io(IoFault::Gone) => Errno::Shutdown,
        // A damaged block, a poisoned pool, and whatever the engine may come to say.
        Failure::Submit(_) | Failure::Io(_) => Errno::Io,
    }
}
