//! How long one command's transfer may be.
//!
//! The controller limits it (MDTS, of the Base Specification 2.0, "Identify Controller"), and the driver does: in bytes, and in pages that
//! need not lie side by side (`max_hw_sectors_kb` and `max_segments` of the kernel's
//! `Documentation/ABI/stable/sysfs-block`). A command beyond the driver's limits is refused with `EINVAL`, not split.

use flagstone_block::BLOCK_SIZE;

/// The most that one command can transfer, whatever nobody limits: its number of blocks has 16 bits.
const BLOCKS_MAX: u64 = 1 << 16;
/// The least page of memory that the controller can be set to. It is not in the identify data; all controllers that
/// Linux drives take pages of 4096 bytes.
const PAGE_BYTES: u64 = 4096;

/// What limits the transfer of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The controller's: a power of two in pages; 0 for none.
    pub mdts: u8,
    /// The driver's, in bytes.
    pub driver_bytes: Option<u64>,
    /// The driver's, in pieces of memory.
    pub segments: Option<u64>,
}

impl Limits {
    /// The longest transfer in bytes with logical blocks of `2^shift` bytes: a multiple of 4096, at least that.
    #[must_use]
    pub fn transfer_bytes(&self, shift: u32) -> u32 {
        let controller = match self.mdts {
            0 => u64::MAX,
            mdts => {
                1u64.checked_shl(mdts.into()).map_or(u64::MAX, |p| p.saturating_mul(PAGE_BYTES))
            }
        };
        let segments = self.segments.map_or(u64::MAX, |count| count.saturating_mul(PAGE_BYTES));
        let least = (BLOCKS_MAX << shift)
            .min(controller)
            .min(self.driver_bytes.unwrap_or(u64::MAX))
            .min(segments)
            .min(1 << 30);
        let whole = least - least % BLOCK_SIZE as u64;
        whole.max(BLOCK_SIZE as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(mdts: u8, driver_bytes: Option<u64>, segments: Option<u64>, shift: u32) -> u32 {
        Limits { mdts, driver_bytes, segments }.transfer_bytes(shift)
    }

    #[test]
    fn the_least_limit_binds() {
        assert_eq!(bytes(7, None, None, 9), 512 << 10);
        assert_eq!(bytes(7, Some(128 << 10), None, 9), 128 << 10);
        assert_eq!(bytes(7, Some(1 << 20), Some(126), 12), 126 * 4096);
        assert_eq!(bytes(1, None, None, 12), 8192);
        // Without a limit: 65536 blocks.
        assert_eq!(bytes(0, None, None, 9), 32 << 20);
        assert_eq!(bytes(0, None, None, 12), 256 << 20);
        assert_eq!(bytes(255, Some(u64::MAX), Some(u64::MAX), 12), 256 << 20);
    }

    #[test]
    fn it_is_whole_blocks_and_at_least_one() {
        assert_eq!(bytes(0, Some(10_000), None, 9), 8192);
        assert_eq!(bytes(0, Some(512), None, 9), 4096);
        assert_eq!(bytes(0, None, Some(0), 12), 4096);
    }
}
