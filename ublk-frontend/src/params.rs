//! What a device tells the kernel of itself: `struct ublk_params`.

use crate::request::SECTOR_BYTES;
use crate::uapi::{PARAMS_BYTES, get_u32, get_u64, params as at, put_u16, put_u32, put_u64};
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE};

/// Longest discard or write-zeroes, in bytes: longer ones arrive in parts.
const MAX_ZERO_BYTES: u64 = 1 << 30;

/// Size and limits of a device with blocks of 4 KiB, a volatile cache, flush, FUA, discard and write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Size in bytes, a multiple of 4096, not 0.
    pub size_bytes: u64,
    /// Longest transfer in bytes, a multiple of 4096.
    pub max_io_bytes: u32,
    /// Writes are refused by the kernel.
    pub read_only: bool,
}

/// Why what the kernel gave as parameters is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// Nobody has set any.
    #[error("it has no size yet")]
    Unset,
    /// Not a whole number of blocks, or more than a number of bytes can say.
    #[error("its size is {sectors} sectors of 512 bytes")]
    Size {
        /// As the kernel has it.
        sectors: u64,
    },
    /// Blocks of another size.
    #[error("its logical blocks are of 2^{shift} bytes")]
    Blocks {
        /// `logical_bs_shift`.
        shift: u8,
    },
}

impl Params {
    /// As the kernel takes them.
    #[must_use]
    pub fn encode(&self) -> [u8; PARAMS_BYTES] {
        let mut bytes = [0; PARAMS_BYTES];
        let sectors = |bytes: u64| bytes / SECTOR_BYTES;
        let read_only = if self.read_only { at::ATTR_READ_ONLY } else { 0 };
        put_u32(&mut bytes, at::LEN, PARAMS_BYTES as u32);
        put_u32(&mut bytes, at::TYPES, at::TYPE_BASIC | at::TYPE_DISCARD);
        put_u32(&mut bytes, at::ATTRS, at::ATTR_VOLATILE_CACHE | at::ATTR_FUA | read_only);
        for shift in
            [at::LOGICAL_BS_SHIFT, at::PHYSICAL_BS_SHIFT, at::IO_OPT_SHIFT, at::IO_MIN_SHIFT]
        {
            bytes[shift] = BLOCK_BITS as u8;
        }
        put_u32(&mut bytes, at::MAX_SECTORS, sectors(u64::from(self.max_io_bytes)) as u32);
        put_u64(&mut bytes, at::DEV_SECTORS, sectors(self.size_bytes));
        put_u32(&mut bytes, at::DISCARD_GRANULARITY, BLOCK_SIZE as u32);
        put_u32(&mut bytes, at::MAX_DISCARD_SECTORS, sectors(MAX_ZERO_BYTES) as u32);
        put_u32(&mut bytes, at::MAX_WRITE_ZEROES_SECTORS, sectors(MAX_ZERO_BYTES) as u32);
        put_u16(&mut bytes, at::MAX_DISCARD_SEGMENTS, 1);
        bytes
    }

    /// What to give the kernel so that it fills in all that is known here.
    pub(crate) fn question() -> [u8; PARAMS_BYTES] {
        let mut bytes = [0; PARAMS_BYTES];
        put_u32(&mut bytes, at::LEN, PARAMS_BYTES as u32);
        bytes
    }

    /// From what the kernel gave.
    ///
    /// # Errors
    /// If it is not what [`Params::encode`] could have told it, size aside.
    pub fn decode(bytes: &[u8; PARAMS_BYTES]) -> Result<Self, ParamsError> {
        if get_u32(bytes, at::TYPES) & at::TYPE_BASIC == 0 {
            return Err(ParamsError::Unset);
        }
        let shift = bytes[at::LOGICAL_BS_SHIFT];
        if u32::from(shift) != BLOCK_BITS {
            return Err(ParamsError::Blocks { shift });
        }
        let sectors = get_u64(bytes, at::DEV_SECTORS);
        let size_bytes = sectors
            .checked_mul(SECTOR_BYTES)
            .filter(|size| *size > 0 && size % BLOCK_SIZE as u64 == 0)
            .ok_or(ParamsError::Size { sectors })?;
        let max_io_bytes = get_u32(bytes, at::MAX_SECTORS).saturating_mul(SECTOR_BYTES as u32);
        let read_only = get_u32(bytes, at::ATTRS) & at::ATTR_READ_ONLY != 0;
        Ok(Self { size_bytes, max_io_bytes, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::get_u16;

    const PARAMS: Params = Params { size_bytes: 10 << 30, max_io_bytes: 1 << 20, read_only: false };

    #[test]
    fn every_field_lies_where_the_header_has_it() {
        let bytes = PARAMS.encode();
        let numbers: Vec<u32> =
            (0..PARAMS_BYTES).step_by(4).map(|at| get_u32(&bytes, at)).collect();
        let shifts = 0x0c0c_0c0c;
        // len, types, attrs, shifts, max_sectors, chunk_sectors, dev_sectors, virt_boundary_mask:
        assert_eq!(numbers[..10], [76, 3, 0b1100, shifts, 2048, 0, 10 << 21, 0, 0, 0]);
        // discard_alignment, granularity, two maxima; segments; devt is the kernel's:
        assert_eq!(numbers[10..14], [0, 4096, 1 << 21, 1 << 21]);
        assert_eq!((get_u16(&bytes, 56), get_u16(&bytes, 58)), (1, 0));
        assert_eq!(numbers[15..], [0; 4]);
        let read_only = Params { read_only: true, ..PARAMS };
        assert_eq!(get_u32(&read_only.encode(), 8), 0b1101);
    }

    #[test]
    fn what_was_told_is_understood_and_nothing_else() {
        for params in [PARAMS, Params { read_only: true, size_bytes: 4096, ..PARAMS }] {
            assert_eq!(Params::decode(&params.encode()), Ok(params));
        }
        assert_eq!(Params::decode(&Params::question()), Err(ParamsError::Unset));
        let mut bytes = PARAMS.encode();
        for sectors in [0, 7, 9, u64::MAX, u64::MAX / 8 * 8] {
            put_u64(&mut bytes, at::DEV_SECTORS, sectors);
            assert_eq!(Params::decode(&bytes), Err(ParamsError::Size { sectors }));
        }
        bytes = PARAMS.encode();
        bytes[at::LOGICAL_BS_SHIFT] = 9;
        assert_eq!(Params::decode(&bytes), Err(ParamsError::Blocks { shift: 9 }));
    }
}
