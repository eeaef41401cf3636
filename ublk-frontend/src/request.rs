//! A request of the kernel (`struct ublksrv_io_desc`), and the commands that fetch and end one
//! (`struct ublksrv_io_cmd`).

use crate::uapi::{
    IO_CMD_BYTES, IO_COMMIT_AND_FETCH_REQ, IO_DESC_BYTES, IO_FETCH_REQ, IO_RES_OK, get_u32,
    get_u64, io_cmd, io_desc as at, put_u16, put_u32, put_u64,
};

/// The kernel's unit of size on every block device.
pub const SECTOR_BYTES: u64 = 512;

/// What is asked (`UBLK_IO_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the request's pages.
    Read,
    /// Store them.
    Write {
        /// To be durable when it is answered (`UBLK_IO_F_FUA`).
        fua: bool,
    },
    /// Make durable what was answered before.
    Flush,
    /// The content is not needed any more.
    Discard,
    /// Has to read as zeroes.
    WriteZeroes {
        /// The space has to stay allocated (`UBLK_IO_F_NOUNMAP`).
        keep_allocated: bool,
        /// To be durable when it is answered.
        fua: bool,
    },
}

/// One request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub operation: Operation,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes; 0 of a flush.
    pub len: u64,
}

/// Why a request can't be served: the kernel is newer, or something is very wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// An operation that no parameter of ours allows.
    #[error("the kernel asks for operation {operation}, which was not offered")]
    Unknown {
        /// Its number.
        operation: u8,
    },
    /// It ends behind what a number of bytes can say.
    #[error("the kernel asks for {sectors} sectors from {start}")]
    Range {
        /// First sector.
        start: u64,
        /// How many.
        sectors: u32,
    },
}

impl Request {
    /// From a descriptor.
    ///
    /// # Errors
    /// See [`RequestError`]. Whether the range lies in the device is not looked at.
    pub fn decode(bytes: &[u8; IO_DESC_BYTES]) -> Result<Self, RequestError> {
        let op_flags = get_u32(bytes, at::OP_FLAGS);
        let fua = op_flags & at::F_FUA != 0;
        let operation = match op_flags as u8 {
            at::OP_READ => Operation::Read,
            at::OP_WRITE => Operation::Write { fua },
            at::OP_FLUSH => return Ok(Self { operation: Operation::Flush, offset: 0, len: 0 }),
            at::OP_DISCARD => Operation::Discard,
            at::OP_WRITE_ZEROES => {
                Operation::WriteZeroes { keep_allocated: op_flags & at::F_NOUNMAP != 0, fua }
            }
            operation => return Err(RequestError::Unknown { operation }),
        };
        let (start, sectors) = (get_u64(bytes, at::START_SECTOR), get_u32(bytes, at::NR_SECTORS));
        let len = u64::from(sectors) * SECTOR_BYTES;
        let offset = start
            .checked_mul(SECTOR_BYTES)
            .filter(|offset| offset.checked_add(len).is_some())
            .ok_or(RequestError::Range { start, sectors })?;
        Ok(Self { operation, offset, len })
    }

    /// What to commit for it when it went well: the bytes transferred.
    #[must_use]
    pub const fn done(&self) -> i32 {
        match self.operation {
            // At most `max_io_bytes`.
            Operation::Read | Operation::Write { .. } => self.len as i32,
            _ => 0,
        }
    }
}

/// A command for the character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Wait for a request with this number.
    Fetch {
        /// Which, below the queue's depth.
        tag: u16,
    },
    /// End the request with this number, and wait for its next.
    CommitAndFetch {
        /// Which.
        tag: u16,
        /// Bytes done, or an error number below 0.
        result: i32,
    },
}

impl IoCommand {
    /// The operation code and the sixteen bytes of the submission. `address` is that of the
    /// request's buffer, 0 where data is copied by `pread` and `pwrite`.
    pub(crate) fn encode(self, address: u64) -> (u32, [u8; IO_CMD_BYTES]) {
        let (code, tag, result) = match self {
            Self::Fetch { tag } => (IO_FETCH_REQ, tag, 0),
            Self::CommitAndFetch { tag, result } => (IO_COMMIT_AND_FETCH_REQ, tag, result),
        };
        let mut bytes = [0; IO_CMD_BYTES];
        put_u16(&mut bytes, io_cmd::Q_ID, 0);
        put_u16(&mut bytes, io_cmd::TAG, tag);
        put_u32(&mut bytes, io_cmd::RESULT, result as u32);
        put_u64(&mut bytes, io_cmd::ADDR, address);
        (code, bytes)
    }

    /// Which request it is about.
    #[must_use]
    pub const fn tag(self) -> u16 {
        match self {
            Self::Fetch { tag } | Self::CommitAndFetch { tag, .. } => tag,
        }
    }
}

/// Whether the completion of an [`IoCommand`] brings a request. If not, the device goes away, or is given to
/// another process, and nothing more can be done with this number.
#[must_use]
pub const fn result_of(completion: i32) -> bool {
    completion == IO_RES_OK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(op_flags: u32, sectors: u32, start: u64) -> [u8; IO_DESC_BYTES] {
        let mut bytes = [0xee; IO_DESC_BYTES];
        put_u32(&mut bytes, 0, op_flags);
        put_u32(&mut bytes, 4, sectors);
        put_u64(&mut bytes, 8, start);
        bytes
    }

    #[test]
    fn operations_and_flags_have_the_numbers_of_the_header() {
        use Operation::{Discard, Flush, Read, Write, WriteZeroes};
        let (fua, nounmap) = (1 << 13, 1 << 15);
        for (op_flags, operation) in [
            (0, Read),
            (1, Write { fua: false }),
            (1 | fua, Write { fua: true }),
            // Flags that change nothing: failfast, meta, swap.
            (1 | 1 << 8 | 1 << 11 | 1 << 16, Write { fua: false }),
            (3, Discard),
            (5, WriteZeroes { keep_allocated: false, fua: false }),
            (5 | nounmap, WriteZeroes { keep_allocated: true, fua: false }),
            (5 | fua, WriteZeroes { keep_allocated: false, fua: true }),
        ] {
            let request = Request::decode(&descriptor(op_flags, 8, 16)).unwrap();
            assert_eq!(request, Request { operation, offset: 8192, len: 4096 });
            let moves = matches!(operation, Read | Write { .. });
            assert_eq!(request.done(), if moves { 4096 } else { 0 });
        }
        let flush = Request::decode(&descriptor(2, u32::MAX, u64::MAX)).unwrap();
        assert_eq!(flush, Request { operation: Flush, offset: 0, len: 0 });
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        for operation in [4, 6, 10, 13, 18, 255] {
            let refused = Request::decode(&descriptor(u32::from(operation), 8, 0));
            assert_eq!(refused, Err(RequestError::Unknown { operation }));
        }
        for (start, sectors) in [(u64::MAX, 1), (u64::MAX / 512, 1), (1 << 55, 8)] {
            let refused = Request::decode(&descriptor(0, sectors, start));
            assert_eq!(refused, Err(RequestError::Range { start, sectors }));
        }
    }

    #[test]
    fn commands_are_the_header_s() {
        let (code, bytes) = IoCommand::Fetch { tag: 0x0102 }.encode(0);
        assert_eq!((code, bytes), (0xc010_7520, [0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        let commit = IoCommand::CommitAndFetch { tag: 3, result: -5 };
        let (code, bytes) = commit.encode(0x1122_3344_5566_7788);
        let end = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(code, 0xc010_7521);
        assert_eq!(bytes[..8], [0, 0, 3, 0, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[8..], end);
        assert!(result_of(0) && !result_of(1) && !result_of(-19));
    }
}
