//! Whether commands get through, tried with a read before anything relies on it.
//!
//! That the driver takes passthrough depends on the kernel, on its rules for who may, and on the queues that the
//! device was given. A command may also report success without having run. So the first block is read twice, into
//! memory with different content before; only if both say the same, it was read at all.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::mem::ManuallyDrop;
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
    /// It is not attached by PCI Express.
    #[error(
        "it is attached by {transport:?}, where the block layer waits for lost paths; commands would fail"
    )]
    Transport {
        /// As the kernel calls it; empty of several paths.
        transport: String,
    },
    /// The driver has no queues whose completions are polled for.
    #[error("the driver has no queues for that (nvme.poll_queues)")]
    NoPollQueues,
    /// It did not end.
    #[error("a trial read did not end within {} s", PATIENCE.as_secs())]
    Hangs,
    /// It said that it succeeded, and had not read.
    #[error("a trial read said that it succeeded, but had read nothing")]
    Untrue,
}

/// Length of the memory that is registered. Kernels from Linux 6.1 on, until that was put right, refused a transfer that was shorter than
/// its registered buffer by more pages than a command can have, which the reactor's all are.
const MEMORY_BYTES: usize = 4 << 20;
/// Where the block is read to in it.
const BLOCK_AT: usize = MEMORY_BYTES / 4;

/// Memory to be registered, aligned to a block.
struct Page(NonNull<u8>);

impl Page {
    const LAYOUT: Layout = match Layout::from_size_align(MEMORY_BYTES, BLOCK_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("a block is a power of two"),
    };

    fn new() -> Option<Self> {
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { alloc_zeroed(Self::LAYOUT) }).map(Self)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the memory is this value's, a block of it lies at `BLOCK_AT`, is initialised, and borrowed as this value is.
        // Nobody calls this while a command is under way.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().add(BLOCK_AT), BLOCK_SIZE) }
    }

    fn address(&self) -> u64 {
        self.0.as_ptr() as u64 + BLOCK_AT as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and not given back before.
        unsafe { dealloc(self.0.as_ptr(), Self::LAYOUT) };
    }
}

/// Reads the first block of the namespace twice, and flushes; as the reactor will, with registered memory where that can be had.
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
    let page = Page::new().ok_or(ProbeError::Memory)?;
    let memory = libc::iovec { iov_base: page.0.as_ptr().cast(), iov_len: MEMORY_BYTES };
    // SAFETY: the memory outlives the ring, or is never given back: whoever returns without it has forgotten it.
    let fixed = unsafe { ring.submitter().register_buffers(&[memory]) }.is_ok();
    let result = tries(&mut ring, device, nsid, shift, completions, fixed, page);
    // Before the memory is given back.
    drop(ring);
    result.map(drop)
}

fn tries(
    ring: &mut IoUring<squeue::Entry128, cqueue::Entry32>,
    device: BorrowedFd<'_>,
    nsid: u32,
    shift: u32,
    completions: Completions,
    fixed: bool,
    mut page: Page,
) -> Result<Page, ProbeError> {
    let mut seen = Vec::with_capacity(2);
    for before in [0x55, 0xaa] {
        page.bytes().fill(before);
        let blocks = BLOCK_SIZE as u32 >> shift;
        let command = Command::read(nsid, 0, blocks, page.address(), BLOCK_SIZE as u32);
        page = run(ring, device, &command, completions, fixed.then_some(0), page)?;
        seen.push(page.bytes().to_vec());
    }
    if completions == Completions::Interrupts {
        page = run(ring, device, &Command::flush(nsid), completions, None, page)?;
    }
    if seen[0] == seen[1] { Ok(page) } else { Err(ProbeError::Untrue) }
}

/// Runs one command, which may use the page.
fn run(
    ring: &mut IoUring<squeue::Entry128, cqueue::Entry32>,
    device: BorrowedFd<'_>,
    command: &Command,
    completions: Completions,
    buffer: Option<u16>,
    page: Page,
) -> Result<Page, ProbeError> {
    // Kept from the kernel's hands only by a completion: on any other way out it stays for ever.
    let page = ManuallyDrop::new(page);
    let mut last = ProbeError::Memory;
    for _ in 0..ATTEMPTS {
        let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), URING_CMD_IO)
            .cmd(padded(command))
            .buf_index(buffer)
            .build();
        // SAFETY: the command names the page, which is kept until the completion has been seen, or for ever.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.map_err(|_| ProbeError::Memory)?;
        let result = complete(ring, completions).map_err(ProbeError::Ring)?;
        match completion(result.ok_or(ProbeError::Hangs)?) {
            PassthroughOutcome::Done => return Ok(ManuallyDrop::into_inner(page)),
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
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
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
