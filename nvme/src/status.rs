//! Status of a completed command (Base Specification 2.0, "Status Field Definition"; NVM Command Set 1.0, "Status Values").
//!
//! The kernel's driver hands on the field without its phase bit: status code in bits 7:0, its type in 10:8, command
//! retry delay in 12:11, "more" in 13, "do not retry" in 14. It also makes up statuses of its own, of the path-related
//! type: 370h when the controller can't be reached, 371h when it threw a command away.

use std::fmt;

use flagstone_block::{DeviceError, DeviceFault};
use flagstone_ring::PassthroughOutcome;

/// What a status code is about (SCT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusType {
    /// Any command: 0h.
    Generic,
    /// This command: 1h.
    CommandSpecific,
    /// The medium and the data on it: 2h.
    MediaAndDataIntegrity,
    /// The way to the controller: 3h.
    PathRelated,
    /// Reserved: 4h to 6h.
    Reserved(u8),
    /// The vendor's: 7h.
    VendorSpecific,
}

/// The status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

/// The statuses that have a name here: type, code, name, meaning. Others are of no more use than their number.
const TABLE: &[(u8, u8, &str, DeviceFault)] = {
    use DeviceFault::{Aborted, Internal, Medium, NoSpace, Protected, Refused, Removed};
    &[
        (0, 0x01, "invalid command opcode", Refused),
        (0, 0x02, "invalid field in command", Refused),
        (0, 0x03, "command identifier conflict", Internal),
        (0, 0x04, "data transfer error", Internal),
        (0, 0x05, "command aborted due to power loss notification", Removed),
        (0, 0x06, "internal error", Internal),
        (0, 0x07, "command abort requested", Aborted),
        (0, 0x08, "command aborted due to submission queue deletion", Aborted),
        (0, 0x0b, "invalid namespace or format", Removed),
        (0, 0x0c, "command sequence error", Refused),
        (0, 0x13, "PRP offset invalid", Refused),
        (0, 0x15, "operation denied", Protected),
        (0, 0x1c, "sanitize failed", Internal),
        (0, 0x1d, "sanitize in progress", Refused),
        (0, 0x20, "namespace is write-protected", Protected),
        (0, 0x21, "command interrupted", Aborted),
        (0, 0x22, "transient transport error", Aborted),
        (0, 0x80, "LBA out of range", Refused),
        (0, 0x81, "capacity exceeded", NoSpace),
        (0, 0x82, "namespace not ready", Aborted),
        (0, 0x83, "reservation conflict", Protected),
        (0, 0x84, "format in progress", Refused),
        (1, 0x80, "conflicting attributes", Refused),
        (1, 0x81, "invalid protection information", Refused),
        (1, 0x82, "attempted write to read only range", Protected),
        (1, 0x83, "command size limit exceeded", Refused),
        (2, 0x80, "write fault", Medium),
        (2, 0x81, "unrecovered read error", Medium),
        (2, 0x82, "end-to-end guard check error", Medium),
        (2, 0x83, "end-to-end application tag check error", Medium),
        (2, 0x84, "end-to-end reference tag check error", Medium),
        (2, 0x85, "compare failure", Medium),
        (2, 0x86, "access denied", Protected),
        (2, 0x87, "deallocated or unwritten logical block", Medium),
        (3, 0x00, "internal path error", Removed),
        (3, 0x01, "asymmetric access persistent loss", Removed),
        (3, 0x02, "asymmetric access inaccessible", Removed),
        (3, 0x03, "asymmetric access transition", Aborted),
        (3, 0x60, "controller pathing error", Removed),
        (3, 0x70, "host pathing error", Removed),
        (3, 0x71, "command aborted by host", Aborted),
    ]
};

impl Status {
    /// A status as the driver returns it. The bit above "do not retry" is not part of it.
    #[must_use]
    pub const fn new(raw: u16) -> Self {
        Self(raw & 0x7fff)
    }

    /// The status code (SC).
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Its type (SCT).
    #[must_use]
    pub const fn kind(self) -> StatusType {
        match (self.0 >> 8 & 0b111) as u8 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::MediaAndDataIntegrity,
            3 => StatusType::PathRelated,
            7 => StatusType::VendorSpecific,
            kind => StatusType::Reserved(kind),
        }
    }

    /// Which of the controller's delays before another attempt applies (CRD); 0 for none.
    #[must_use]
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> 11 & 0b11) as u8
    }

    /// Whether the controller's error log says more (M).
    #[must_use]
    pub const fn has_more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Whether the same command is expected to fail again (DNR).
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// Its name in the specification, where it has one here.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        if self.code() == 0 && self.kind() == StatusType::Generic {
            return Some("success");
        }
        self.row().map(|(.., name, _)| *name)
    }

    /// The command's outcome.
    ///
    /// A status that is not known is a failure, also where it might be harmless: nothing is taken to have been
    /// done that the device does not say it did. Unless the device says "do not retry" another attempt may succeed, as
    /// the kernel's driver has it, too, for what comes through the block layer: a reset, for one, may end
    /// commands with any status.
    #[must_use]
    pub fn outcome(self) -> PassthroughOutcome {
        if self.0 == 0 {
            return PassthroughOutcome::Done;
        }
        let fault = match self.row() {
            Some((.., fault)) => *fault,
            None => self.general(),
        };
        let error = DeviceError::Command { fault, status: self.0 };
        if self.is_final() {
            PassthroughOutcome::Failed(error)
        } else {
            PassthroughOutcome::Again(error)
        }
    }

    fn row(self) -> Option<&'static (u8, u8, &'static str, DeviceFault)> {
        let kind = (self.0 >> 8 & 0b111) as u8;
        TABLE.iter().find(|(t, code, ..)| (*t, *code) == (kind, self.code()))
    }

    /// What a code of its type is about that has no name here.
    const fn general(self) -> DeviceFault {
        match self.kind() {
            StatusType::MediaAndDataIntegrity => DeviceFault::Medium,
            StatusType::PathRelated => DeviceFault::Removed,
            StatusType::CommandSpecific => DeviceFault::Refused,
            _ => DeviceFault::Internal,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or("status without a name");
        write!(f, "{name} (type {:x}h, code {:02x}h)", self.0 >> 8 & 0b111, self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(raw: u16) -> DeviceFault {
        let outcome = Status::new(raw).outcome();
        let error = match outcome {
            PassthroughOutcome::Failed(error) if raw & 1 << 14 != 0 => error,
            PassthroughOutcome::Again(error) if raw & 1 << 14 == 0 => error,
            other => panic!("{raw:#x}: {other:?}"),
        };
        let DeviceError::Command { fault, status } = error else { panic!("{raw:#x}: {error:?}") };
        assert_eq!(status, raw & 0x7fff);
        fault
    }

    #[test]
    fn each_part_of_the_field_is_read_from_its_bits() {
        let one = |raw| {
            let status = Status::new(raw);
            let bits = (status.has_more(), status.is_final());
            (status.code(), status.kind(), status.retry_delay(), bits)
        };
        let none = (false, false);
        assert_eq!(one(0), (0, StatusType::Generic, 0, none));
        assert_eq!(one(0x00ff), (0xff, StatusType::Generic, 0, none));
        assert_eq!(one(0x0100), (0, StatusType::CommandSpecific, 0, none));
        assert_eq!(one(0x0281), (0x81, StatusType::MediaAndDataIntegrity, 0, none));
        assert_eq!(one(0x0370), (0x70, StatusType::PathRelated, 0, none));
        assert_eq!(one(0x0500), (0, StatusType::Reserved(5), 0, none));
        assert_eq!(one(0x0700), (0, StatusType::VendorSpecific, 0, none));
        assert_eq!(one(0x1800), (0, StatusType::Generic, 3, none));
        assert_eq!(one(0x2000), (0, StatusType::Generic, 0, (true, false)));
        assert_eq!(one(0x4000), (0, StatusType::Generic, 0, (false, true)));
        assert_eq!(one(0x8000), (0, StatusType::Generic, 0, none));
    }

    #[test]
    fn every_status_has_the_outcome_that_the_table_says() {
        use DeviceFault as F;
        for (raw, expected) in [
            (0x001, F::Refused),
            (0x002, F::Refused),
            (0x003, F::Internal),
            (0x004, F::Internal),
            (0x005, F::Removed),
            (0x007, F::Aborted),
            (0x008, F::Aborted),
            (0x021, F::Aborted),
            (0x022, F::Aborted),
            (0x303, F::Aborted),
            (0x371, F::Aborted),
            (0x006, F::Internal),
            (0x00b, F::Removed),
            (0x00c, F::Refused),
            (0x013, F::Refused),
            (0x015, F::Protected),
            (0x01c, F::Internal),
            (0x01d, F::Refused),
            (0x020, F::Protected),
            (0x080, F::Refused),
            (0x081, F::NoSpace),
            (0x082, F::Aborted),
            (0x083, F::Protected),
            (0x084, F::Refused),
            (0x180, F::Refused),
            (0x181, F::Refused),
            (0x182, F::Protected),
            (0x183, F::Refused),
            (0x280, F::Medium),
            (0x281, F::Medium),
            (0x282, F::Medium),
            (0x283, F::Medium),
            (0x284, F::Medium),
            (0x285, F::Medium),
            (0x286, F::Protected),
            (0x287, F::Medium),
            (0x300, F::Removed),
            (0x301, F::Removed),
            (0x302, F::Removed),
            (0x360, F::Removed),
            (0x370, F::Removed),
            // Without a name.
            (0x0ff, F::Internal),
            (0x1ff, F::Refused),
            (0x2ff, F::Medium),
            (0x3ff, F::Removed),
            (0x4ff, F::Internal),
            (0x7ff, F::Internal),
        ] {
            assert_eq!(fault(raw), expected, "{raw:#x}");
            // "More" and "do not retry" don't change what it means.
            assert_eq!(fault(raw | 0x6000), expected, "{raw:#x}");
        }
    }

    #[test]
    fn only_a_field_of_zeroes_is_success() {
        assert_eq!(Status::new(0).outcome(), PassthroughOutcome::Done);
        assert_eq!(Status::new(0x8000).outcome(), PassthroughOutcome::Done);
        for raw in 1..=0x7fff {
            assert_ne!(Status::new(raw).outcome(), PassthroughOutcome::Done, "{raw:#x}");
        }
    }

    #[test]
    fn it_is_told_by_name_and_number() {
        assert_eq!(Status::new(0x4281).to_string(), "unrecovered read error (type 2h, code 81h)");
        assert_eq!(Status::new(0x7c0).to_string(), "status without a name (type 7h, code c0h)");
    }

    #[test]
    fn the_table_says_everything_once() {
        for (index, (kind, code, ..)) in TABLE.iter().enumerate() {
            let again = TABLE[index + 1..].iter().any(|(t, c, ..)| (t, c) == (kind, code));
            assert!(!again, "{kind:x}{code:02x}");
        }
    }
}
