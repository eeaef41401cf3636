//! Whether commands get through, tried with a read before anything relies on it.
//!
//! That the driver takes passthrough depends on the kernel, on its rules for who may, and on the queues that the
//! device was given. A command may also report success without having run. So the first block is read twice, into
//! memory with different content before; only if both say the same, it was read at all.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use flagstone_block::BLOCK_SIZE;
use flagstone_ring::PassthroughOutcome;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::command::Command;
use crate::passthrough::{URING_CMD_IO, completion, padded};

/// A read that takes longer than this counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts, if others than the first may succeed.
const ATTEMPTS: u32 = 3;

/// How completions are learnt of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completions {
    Interrupts,
    Polled,
}

/// Why commands don't get through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The kernel has no ring for them.
    #[error("the kernel has no io_uring for commands of 128 bytes (Linux 5.19): {0}")]
    Ring(std::io::Error),
    /// There is no memory for it.
    #[error("no memory for the trial")]
    Memory,
    /// The driver or the device refused.
    #[error("a trial read failed: {0}")]
    Refused(flagstone_block::DeviceError),
    /// It did not end.
    #[error("a trial read did not end within {} s", PATIENCE.as_secs())]
    Hangs,
    /// It said that it succeeded, and had not read.
    #[error("a trial read said that it succeeded, but had read nothing")]
    Untrue,
}

/// Memory for one block, aligned to it.
struct Page(NonNull<u8>);

impl Page {
    const LAYOUT: Layout = match Layout::from_size_align(BLOCK_SIZE, BLOCK_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("a block is a power of two"),
    };

    fn new() -> Option<Self> {
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { alloc_zeroed(Self::LAYOUT) }).map(Self)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is this value's, as long as the layout, initialised, and borrowed as this value is. Nobody
        // calls this while a command is under way.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), BLOCK_SIZE) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and not given back before.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) };
    }
}

/// Reads the first block of the namespace twice.
pub(crate) fn probe(
    device: BorrowedFd<'_>,
    nsid: u32,
    shift: u32,
    completions: Completions,
) -> Result<(), ProbeError> {
    let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
    if completions == Completions::Polled {
        builder.setup_iopoll();
    }
    let mut ring = builder.build(4).map_err(ProbeError::Ring)?;
    let mut page = Page::new().ok_or(ProbeError::Memory)?;
    let mut seen = Vec::with_capacity(2);
    for before in [0x55, 0xaa] {
        page.bytes().fill(before);
        page = read(&mut ring, device, nsid, shift, completions, page)?;
        seen.push(page.bytes().to_vec());
    }
    if seen[0] == seen[1] { Ok(()) } else { Err(ProbeError::Untrue) }
}

fn read(
    ring: &mut IoUring<squeue::Entry128, cqueue::Entry32>,
    device: BorrowedFd<'_>,
    nsid: u32,
    shift: u32,
    completions: Completions,
    page: Page,
) -> Result<Page, ProbeError> {
    let blocks = BLOCK_SIZE as u32 >> shift;
    let command = Command::read(nsid, 0, blocks, page.0.as_ptr() as u64, BLOCK_SIZE as u32);
    let mut last = ProbeError::Memory;
    for _ in 0..ATTEMPTS {
        let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), URING_CMD_IO)
            .cmd(padded(&command))
            .build();
        // SAFETY: the command names the page, which is kept until the completion has been seen, or for ever.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.map_err(|_| ProbeError::Memory)?;
        let Some(result) = complete(ring, completions).map_err(ProbeError::Ring)? else {
            // The kernel may write there whenever it likes.
            std::mem::forget(page);
            return Err(ProbeError::Hangs);
        };
        match completion(result) {
            PassthroughOutcome::Done => return Ok(page),
            PassthroughOutcome::Failed(error) => return Err(ProbeError::Refused(error)),
            PassthroughOutcome::Again(error) => last = ProbeError::Refused(error),
        }
    }
    Err(last)
}

/// The result of the only command; `None` if it does not come.
fn complete(
    ring: &mut IoUring<squeue::Entry128, cqueue::Entry32>,
    completions: Completions,
) -> std::io::Result<Option<i32>> {
    let start = Instant::now();
    loop {
        let step = types::Timespec::from(Duration::from_millis(100));
        let arguments = types::SubmitArgs::new().timespec(&step);
        let result = match completions {
            // Each call looks once.
            Completions::Polled => ring.submitter().submit_and_wait(0),
            Completions::Interrupts => ring.submitter().submit_with_args(1, &arguments),
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => drop(result?),
        }
        if let Some(completion) = ring.completion().next() {
            return Ok(Some(completion.result()));
        }
        if start.elapsed() > PATIENCE {
            return Ok(None);
        }
    }
}
