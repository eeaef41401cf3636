//! What the kernel tells of a device: `struct ublksrv_ctrl_dev_info`.

use crate::features::Features;
use crate::uapi::{
    DEV_INFO_BYTES, dev_info as at, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64,
};

/// What a device is doing (`UBLK_S_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started, or stopped: there is no block device.
    Dead,
    /// Requests are served.
    Live,
    /// Nobody serves it; requests wait for somebody who does.
    Quiesced,
    /// Nobody serves it; requests fail.
    FailIo,
    /// One that this does not know.
    Other(u16),
}

impl DeviceState {
    const fn of(number: u16) -> Self {
        match number {
            0 => Self::Dead,
            1 => Self::Live,
            2 => Self::Quiesced,
            3 => Self::FailIo,
            other => Self::Other(other),
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::Dead => 0,
            Self::Live => 1,
            Self::Quiesced => 2,
            Self::FailIo => 3,
            Self::Other(other) => other,
        }
    }
}

/// A device, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Of `/dev/ublkbN`; `u32::MAX` asks for any.
    pub number: u32,
    /// Queues, each served by one thread.
    pub queues: u16,
    /// Requests of a queue under way at once.
    pub depth: u16,
    /// Longest transfer, in bytes.
    pub max_io_bytes: u32,
    /// What it is doing.
    pub state: DeviceState,
    /// The process that serves it, or served it last; at most 0 if nobody did.
    pub pid: i32,
    /// What it was made with.
    pub features: Features,
    /// For the process that serves it; the kernel only keeps it (`ublksrv_flags`).
    pub note: u64,
    /// Who made it.
    pub owner_uid: u32,
    /// And of which group.
    pub owner_gid: u32,
}

impl DeviceInfo {
    /// As the kernel takes it.
    #[must_use]
    pub fn encode(&self) -> [u8; DEV_INFO_BYTES] {
        let mut bytes = [0; DEV_INFO_BYTES];
        put_u16(&mut bytes, at::NR_HW_QUEUES, self.queues);
        put_u16(&mut bytes, at::QUEUE_DEPTH, self.depth);
        put_u16(&mut bytes, at::STATE, self.state.number());
        put_u32(&mut bytes, at::MAX_IO_BUF_BYTES, self.max_io_bytes);
        put_u32(&mut bytes, at::DEV_ID, self.number);
        put_u32(&mut bytes, at::UBLKSRV_PID, self.pid as u32);
        put_u64(&mut bytes, at::FLAGS, self.features.0);
        put_u64(&mut bytes, at::UBLKSRV_FLAGS, self.note);
        put_u32(&mut bytes, at::OWNER_UID, self.owner_uid);
        put_u32(&mut bytes, at::OWNER_GID, self.owner_gid);
        bytes
    }

    /// From what the kernel gave.
    #[must_use]
    pub fn decode(bytes: &[u8; DEV_INFO_BYTES]) -> Self {
        Self {
            number: get_u32(bytes, at::DEV_ID),
            queues: get_u16(bytes, at::NR_HW_QUEUES),
            depth: get_u16(bytes, at::QUEUE_DEPTH),
            max_io_bytes: get_u32(bytes, at::MAX_IO_BUF_BYTES),
            state: DeviceState::of(get_u16(bytes, at::STATE)),
            pid: get_u32(bytes, at::UBLKSRV_PID) as i32,
            features: Features(get_u64(bytes, at::FLAGS)),
            note: get_u64(bytes, at::UBLKSRV_FLAGS),
            owner_uid: get_u32(bytes, at::OWNER_UID),
            owner_gid: get_u32(bytes, at::OWNER_GID),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_lies_where_the_header_has_it() {
        let mut bytes = [0; DEV_INFO_BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let info = DeviceInfo::decode(&bytes);
        assert_eq!(info.queues, 0x0100);
        assert_eq!(info.depth, 0x0302);
        assert_eq!(info.state, DeviceState::Other(0x0504));
        assert_eq!(info.max_io_bytes, 0x0b0a_0908);
        assert_eq!(info.number, 0x0f0e_0d0c);
        assert_eq!(info.pid, 0x1312_1110);
        assert_eq!(info.features.0, 0x1f1e_1d1c_1b1a_1918);
        assert_eq!(info.note, 0x2726_2524_2322_2120);
        assert_eq!((info.owner_uid, info.owner_gid), (0x2b2a_2928, 0x2f2e_2d2c));
        // What this does not know is sent as zeroes.
        for unknown in [6, 7, 20, 21, 22, 23].into_iter().chain(48..DEV_INFO_BYTES) {
            bytes[unknown] = 0;
        }
        assert_eq!(info.encode(), bytes);
    }

    #[test]
    fn states_have_their_numbers() {
        use DeviceState::{Dead, FailIo, Live, Other, Quiesced};
        for (number, state) in [(0, Dead), (1, Live), (2, Quiesced), (3, FailIo), (4, Other(4))] {
            assert_eq!(DeviceState::of(number), state);
            assert_eq!(state.number(), number);
        }
    }
}
