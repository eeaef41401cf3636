//! Numbers of `include/uapi/linux/ublk_cmd.h`: operation codes, offsets of fields, limits.
//!
//! Offsets are bytes in the structures as C lays them out on every architecture that Linux runs on: all fields are
//! aligned by hand in the header. Numbers are in the machine's own order.

/// `_IOC_READ`, `_IOC_WRITE` of `asm-generic/ioctl.h`: who reads and writes is seen from user space.
const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;

const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

/// `_IOR('u', number, struct ublksrv_ctrl_cmd)`.
const fn control_read(number: u32) -> u32 {
    ioc(IOC_READ, number, CTRL_CMD_BYTES)
}

/// `_IOWR('u', number, struct ublksrv_ctrl_cmd)`.
const fn control(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, CTRL_CMD_BYTES)
}

/// `_IOWR('u', number, struct ublksrv_io_cmd)`.
const fn io(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, IO_CMD_BYTES)
}

pub(crate) const CMD_ADD_DEV: u32 = control(0x04);
pub(crate) const CMD_DEL_DEV: u32 = control(0x05);
pub(crate) const CMD_START_DEV: u32 = control(0x06);
pub(crate) const CMD_STOP_DEV: u32 = control(0x07);
pub(crate) const CMD_SET_PARAMS: u32 = control(0x08);
pub(crate) const CMD_GET_PARAMS: u32 = control_read(0x09);
pub(crate) const CMD_START_USER_RECOVERY: u32 = control(0x10);
pub(crate) const CMD_END_USER_RECOVERY: u32 = control(0x11);
pub(crate) const CMD_GET_DEV_INFO2: u32 = control_read(0x12);
pub(crate) const CMD_GET_FEATURES: u32 = control_read(0x13);
pub(crate) const CMD_UPDATE_SIZE: u32 = control(0x15);
pub(crate) const CMD_QUIESCE_DEV: u32 = control(0x16);

pub(crate) const IO_FETCH_REQ: u32 = io(0x20);
pub(crate) const IO_COMMIT_AND_FETCH_REQ: u32 = io(0x21);

/// `UBLK_IO_RES_OK`: a request is there.
pub(crate) const IO_RES_OK: i32 = 0;

/// `struct ublksrv_ctrl_cmd`.
pub(crate) const CTRL_CMD_BYTES: usize = 32;
pub(crate) mod ctrl_cmd {
    pub(crate) const DEV_ID: usize = 0;
    pub(crate) const QUEUE_ID: usize = 4;
    pub(crate) const LEN: usize = 6;
    pub(crate) const ADDR: usize = 8;
    pub(crate) const DATA: usize = 16;
    pub(crate) const DEV_PATH_LEN: usize = 24;
}

/// `struct ublksrv_ctrl_dev_info`.
pub(crate) const DEV_INFO_BYTES: usize = 64;
pub(crate) mod dev_info {
    pub(crate) const NR_HW_QUEUES: usize = 0;
    pub(crate) const QUEUE_DEPTH: usize = 2;
    pub(crate) const STATE: usize = 4;
    pub(crate) const MAX_IO_BUF_BYTES: usize = 8;
    pub(crate) const DEV_ID: usize = 12;
    pub(crate) const UBLKSRV_PID: usize = 16;
    pub(crate) const FLAGS: usize = 24;
    pub(crate) const UBLKSRV_FLAGS: usize = 32;
    pub(crate) const OWNER_UID: usize = 40;
    pub(crate) const OWNER_GID: usize = 44;
}

/// `struct ublk_params` up to and including its `ublk_param_devt`; the kernel takes any length.
pub(crate) const PARAMS_BYTES: usize = 76;
pub(crate) mod params {
    pub(crate) const LEN: usize = 0;
    pub(crate) const TYPES: usize = 4;
    pub(crate) const ATTRS: usize = 8;
    pub(crate) const LOGICAL_BS_SHIFT: usize = 12;
    pub(crate) const PHYSICAL_BS_SHIFT: usize = 13;
    pub(crate) const IO_OPT_SHIFT: usize = 14;
    pub(crate) const IO_MIN_SHIFT: usize = 15;
    pub(crate) const MAX_SECTORS: usize = 16;
    pub(crate) const DEV_SECTORS: usize = 24;
    pub(crate) const DISCARD_GRANULARITY: usize = 44;
    pub(crate) const MAX_DISCARD_SECTORS: usize = 48;
    pub(crate) const MAX_WRITE_ZEROES_SECTORS: usize = 52;
    pub(crate) const MAX_DISCARD_SEGMENTS: usize = 56;

    /// `UBLK_PARAM_TYPE_*`.
    pub(crate) const TYPE_BASIC: u32 = 1 << 0;
    pub(crate) const TYPE_DISCARD: u32 = 1 << 1;

    /// `UBLK_ATTR_*`.
    pub(crate) const ATTR_READ_ONLY: u32 = 1 << 0;
    pub(crate) const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
    pub(crate) const ATTR_FUA: u32 = 1 << 3;
}

/// `struct ublksrv_io_desc`.
pub(crate) const IO_DESC_BYTES: usize = 24;
pub(crate) mod io_desc {
    pub(crate) const OP_FLAGS: usize = 0;
    pub(crate) const NR_SECTORS: usize = 4;
    pub(crate) const START_SECTOR: usize = 8;

    pub(crate) const OP_READ: u8 = 0;
    pub(crate) const OP_WRITE: u8 = 1;
    pub(crate) const OP_FLUSH: u8 = 2;
    pub(crate) const OP_DISCARD: u8 = 3;
    pub(crate) const OP_WRITE_ZEROES: u8 = 5;

    pub(crate) const F_FUA: u32 = 1 << 13;
    pub(crate) const F_NOUNMAP: u32 = 1 << 15;
}

/// `struct ublksrv_io_cmd`.
pub(crate) const IO_CMD_BYTES: usize = 16;
pub(crate) mod io_cmd {
    pub(crate) const Q_ID: usize = 0;
    pub(crate) const TAG: usize = 2;
    pub(crate) const RESULT: usize = 4;
    pub(crate) const ADDR: usize = 8;
}

/// `UBLKSRV_IO_BUF_OFFSET`: where requests' data begins in the character device.
pub(crate) const IO_BUF_OFFSET: u64 = 0x8000_0000;
/// `UBLK_TAG_OFF`: the number of the request, in such an offset.
pub(crate) const TAG_SHIFT: u32 = 25;

/// `UBLK_MAX_QUEUE_DEPTH`.
pub(crate) const MAX_QUEUE_DEPTH: u16 = 4096;

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get_u32(bytes, at)) | u64::from(get_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_codes_are_those_that_the_header_s_macros_make() {
        // `_IOR` and `_IOWR` of asm-generic/ioctl.h: direction, size, type and number.
        assert_eq!(CMD_ADD_DEV, 0xc020_7504);
        assert_eq!(CMD_DEL_DEV, 0xc020_7505);
        assert_eq!(CMD_START_DEV, 0xc020_7506);
        assert_eq!(CMD_STOP_DEV, 0xc020_7507);
        assert_eq!(CMD_SET_PARAMS, 0xc020_7508);
        assert_eq!(CMD_GET_PARAMS, 0x8020_7509);
        assert_eq!(CMD_START_USER_RECOVERY, 0xc020_7510);
        assert_eq!(CMD_END_USER_RECOVERY, 0xc020_7511);
        assert_eq!(CMD_GET_DEV_INFO2, 0x8020_7512);
        assert_eq!(CMD_GET_FEATURES, 0x8020_7513);
        assert_eq!(CMD_UPDATE_SIZE, 0xc020_7515);
        assert_eq!(CMD_QUIESCE_DEV, 0xc020_7516);
        assert_eq!(IO_FETCH_REQ, 0xc010_7520);
        assert_eq!(IO_COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }
}
