//! I/O commands, as the kernel's driver takes them: `struct nvme_uring_cmd` of `linux/nvme_ioctl.h`, 72 bytes.
//!
//! | bytes | field | bytes | field |
//! | --- | --- | --- | --- |
//! | 0 | opcode | 32..36 | metadata length |
//! | 1 | flags | 36..40 | data length |
//! | 2..4 | reserved | 40..64 | command dwords 10 to 15 |
//! | 4..8 | namespace | 64..68 | time-out, ms; 0: the driver's |
//! | 8..16 | command dwords 2, 3 | 68..72 | reserved |
//! | 16..24 | metadata address | | |
//! | 24..32 | data address | | |
//!
//! The driver itself fills in what names the command and where its data lies (command identifier, PSDT, PRP or SGL
//! entries). Numbers are little-endian, as on all machines that Linux runs this driver's passthrough for here.

use flagstone_block::BLOCK_SIZE;

/// Length of a command as the driver takes it.
pub const COMMAND_BYTES: usize = 72;
/// Length of one range of a dataset management command (NVM Command Set 1.0, "Dataset Management - Range Definition").
pub const DSM_RANGE_BYTES: usize = 16;

/// Operation codes (Base 2.0, "Opcodes for Admin Commands"; NVM Command Set 1.0, "Opcodes for NVM Commands").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Make completed writes durable.
    Flush = 0x00,
    /// Write.
    Write = 0x01,
    /// Read.
    Read = 0x02,
    /// Write zeroes without a transfer.
    WriteZeroes = 0x08,
    /// Say what ranges are good for; here: that they are not needed any more.
    DatasetManagement = 0x09,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroing {
    /// The device should deallocate the blocks (DEAC).
    pub deallocate: bool,
    /// They must be durable before the command completes (FUA).
    pub fua: bool,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    opcode: Opcode,
    nsid: u32,
    address: u64,
    data_bytes: u32,
    /// Command dwords 10 to 15.
    cdw: [u32; 6],
    timeout_ms: u32,
}

/// Force Unit Access, of dword 12.
const FUA: u32 = 1 << 30;
/// Deallocate, of dword 12 of write zeroes.
const DEAC: u32 = 1 << 25;
/// Attribute - Deallocate, of dword 11 of dataset management.
const AD: u32 = 1 << 2;

impl Command {
    /// Reads `blocks` (1 to 65536) logical blocks from `slba`.
    ///
    /// # Panics
    /// If `blocks` is out of range.
    #[must_use]
    pub const fn read(nsid: u32, slba: u64, blocks: u32, address: u64, data_bytes: u32) -> Self {
        Self::transfer(Opcode::Read, nsid, slba, blocks, 0).with_data(address, data_bytes)
    }

    /// Writes `blocks` (1 to 65536) logical blocks at `slba`; with `fua` they are durable when the command completes.
    ///
    /// # Panics
    /// If `blocks` is out of range.
    #[must_use]
    pub const fn write(
        nsid: u32,
        slba: u64,
        blocks: u32,
        address: u64,
        data_bytes: u32,
        fua: bool,
    ) -> Self {
        let flags = if fua { FUA } else { 0 };
        Self::transfer(Opcode::Write, nsid, slba, blocks, flags).with_data(address, data_bytes)
    }

    /// Writes `blocks` (1 to 65536) logical blocks of zeroes at `slba`.
    ///
    /// # Panics
    /// If `blocks` is out of range.
    #[must_use]
    pub const fn write_zeroes(nsid: u32, slba: u64, blocks: u32, how: Zeroing) -> Self {
        let flags = if how.fua { FUA } else { 0 } | if how.deallocate { DEAC } else { 0 };
        Self::transfer(Opcode::WriteZeroes, nsid, slba, blocks, flags)
    }

    /// Makes all completed writes of the namespace durable.
    #[must_use]
    pub const fn flush(nsid: u32) -> Self {
        Self::new(Opcode::Flush, nsid)
    }

    /// Deallocates the `ranges` (1 to 256) that lie at `address`, [`DSM_RANGE_BYTES`] each.
    ///
    /// # Panics
    /// If `ranges` is out of range.
    #[must_use]
    pub const fn deallocate(nsid: u32, ranges: u32, address: u64) -> Self {
        assert!(ranges >= 1 && ranges <= 256, "a dataset management command has 1 to 256 ranges");
        let mut command = Self::new(Opcode::DatasetManagement, nsid);
        command.cdw[0] = ranges - 1;
        command.cdw[1] = AD;
        command.with_data(address, ranges * DSM_RANGE_BYTES as u32)
    }

    const fn new(opcode: Opcode, nsid: u32) -> Self {
        Self { opcode, nsid, address: 0, data_bytes: 0, cdw: [0; 6], timeout_ms: 0 }
    }

    const fn transfer(opcode: Opcode, nsid: u32, slba: u64, blocks: u32, flags: u32) -> Self {
        assert!(blocks >= 1 && blocks <= 1 << 16, "a command transfers 1 to 65536 logical blocks");
        let mut command = Self::new(opcode, nsid);
        command.cdw[0] = slba as u32;
        command.cdw[1] = (slba >> 32) as u32;
        // The number of blocks is zero-based.
        command.cdw[2] = (blocks - 1) | flags;
        command
    }

    const fn with_data(mut self, address: u64, data_bytes: u32) -> Self {
        self.address = address;
        self.data_bytes = data_bytes;
        self
    }

    /// The time after which the driver gives the command up; 0 for its own.
    #[must_use]
    pub const fn with_timeout_ms(mut self, timeout_ms: u32) -> Self {
        self.timeout_ms = timeout_ms;
        self
    }

    /// As the driver takes it.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        bytes[0] = self.opcode as u8;
        bytes[4..8].copy_from_slice(&self.nsid.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.address.to_ne_bytes());
        bytes[36..40].copy_from_slice(&self.data_bytes.to_ne_bytes());
        for (bytes, dword) in bytes[40..64].chunks_exact_mut(4).zip(self.cdw) {
            bytes.copy_from_slice(&dword.to_ne_bytes());
        }
        bytes[64..68].copy_from_slice(&self.timeout_ms.to_ne_bytes());
        bytes
    }
}

/// One range of a dataset management command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsmRange {
    /// First logical block.
    pub slba: u64,
    /// Number of logical blocks.
    pub blocks: u32,
}

impl DsmRange {
    /// Its bytes: context attributes (none), length, start.
    #[must_use]
    pub fn encode(&self) -> [u8; DSM_RANGE_BYTES] {
        let mut bytes = [0; DSM_RANGE_BYTES];
        bytes[4..8].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.slba.to_le_bytes());
        bytes
    }
}

const _: () = assert!(256 * DSM_RANGE_BYTES == BLOCK_SIZE, "a full list is one block");

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of a command but these is zero.
    fn assert_bytes(command: &Command, expected: &[(usize, &[u8])]) {
        let mut bytes = [0; COMMAND_BYTES];
        for (at, field) in expected {
            bytes[*at..at + field.len()].copy_from_slice(field);
        }
        assert_eq!(command.encode(), bytes, "{command:?}");
    }

    const ADDRESS: u64 = 0x8877_6655_4433_2211;
    const ADDRESS_BYTES: &[u8] = &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];

    #[test]
    fn read_has_each_field_in_its_place() {
        assert_bytes(
            &Command::read(0x0403_0201, 0x0102_0304_0506_0708, 0x1_0000, ADDRESS, 0x0020_0000),
            &[
                (0, &[0x02]),
                (4, &[1, 2, 3, 4]),
                (24, ADDRESS_BYTES),
                (36, &[0, 0, 0x20, 0]),
                // Starting LBA, low and high; 65536 blocks, zero-based.
                (40, &[8, 7, 6, 5]),
                (44, &[4, 3, 2, 1]),
                (48, &[0xff, 0xff, 0, 0]),
            ],
        );
        assert_bytes(
            &Command::read(1, 0, 1, ADDRESS, 512),
            &[(0, &[0x02]), (4, &[1]), (24, ADDRESS_BYTES), (36, &[0, 2])],
        );
    }

    #[test]
    fn write_has_each_field_in_its_place_and_fua_is_bit_30() {
        let common: &[(usize, &[u8])] = &[
            (0, &[0x01]),
            (4, &[7]),
            (24, ADDRESS_BYTES),
            (36, &[0, 0x10]),
            (40, &[0x20]),
            (48, &[7]),
        ];
        assert_bytes(&Command::write(7, 0x20, 8, ADDRESS, 4096, false), common);
        let mut durable = common.to_vec();
        durable.push((51, &[0x40]));
        assert_bytes(&Command::write(7, 0x20, 8, ADDRESS, 4096, true), &durable);
    }

    #[test]
    fn flush_is_a_code_and_a_namespace() {
        assert_bytes(&Command::flush(0xffff_fffe), &[(4, &[0xfe, 0xff, 0xff, 0xff])]);
    }

    #[test]
    fn write_zeroes_deallocates_by_bit_25_and_has_no_data() {
        let plain: &[(usize, &[u8])] = &[(0, &[0x08]), (4, &[1]), (40, &[5]), (48, &[0xff, 3])];
        let command = |how| Command::write_zeroes(1, 5, 1024, how);
        assert_bytes(&command(Zeroing::default()), plain);
        for (how, byte) in [
            (Zeroing { deallocate: true, fua: false }, 0x02),
            (Zeroing { deallocate: false, fua: true }, 0x40),
            (Zeroing { deallocate: true, fua: true }, 0x42),
        ] {
            let mut expected = plain.to_vec();
            let flags = [byte];
            expected.push((51, &flags));
            assert_bytes(&command(how), &expected);
        }
    }

    #[test]
    fn deallocation_has_the_number_of_ranges_the_attribute_and_the_list() {
        assert_bytes(
            &Command::deallocate(3, 1, ADDRESS),
            &[(0, &[0x09]), (4, &[3]), (24, ADDRESS_BYTES), (36, &[16]), (44, &[4])],
        );
        assert_bytes(
            &Command::deallocate(3, 256, ADDRESS),
            &[(0, &[0x09]), (4, &[3]), (24, ADDRESS_BYTES), (37, &[16]), (40, &[255]), (44, &[4])],
        );
        let range = DsmRange { slba: 0x0807_0605_0403_0201, blocks: 0x0c0b_0a09 };
        assert_eq!(range.encode(), [0, 0, 0, 0, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn the_time_out_is_where_the_driver_looks_for_it() {
        assert_bytes(
            &Command::flush(1).with_timeout_ms(0x0102_0304),
            &[(4, &[1]), (64, &[4, 3, 2, 1])],
        );
    }

    #[test]
    #[should_panic(expected = "1 to 65536")]
    fn nothing_to_transfer_is_no_command() {
        let _ = Command::read(1, 0, 0, 0, 0);
    }

    #[test]
    #[should_panic(expected = "1 to 256")]
    fn no_ranges_are_no_command() {
        let _ = Command::deallocate(1, 0, 0);
    }
}
