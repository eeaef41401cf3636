//! What this kernel's ublk can do, by its own word.

use std::fmt;

/// Bits of `UBLK_F_*`: what a kernel offers (`UBLK_U_CMD_GET_FEATURES`), or what a device was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Requests of a process that is gone wait for the next one instead of failing.
    pub const USER_RECOVERY: Self = Self(1 << 3);
    /// Those that were under way then are sent again.
    pub const USER_RECOVERY_REISSUE: Self = Self(1 << 4);
    /// Made by somebody without `CAP_SYS_ADMIN`.
    pub const UNPRIVILEGED_DEV: Self = Self(1 << 5);
    /// Operation codes are those of `ioctl`s; the only ones used here.
    pub const CMD_IOCTL_ENCODE: Self = Self(1 << 6);
    /// Data is copied by `pread(2)` and `pwrite(2)`.
    pub const USER_COPY: Self = Self(1 << 7);
    /// The size can be changed while the device is in use.
    pub const UPDATE_SIZE: Self = Self(1 << 10);
    /// The process that serves can step back without being killed.
    pub const QUIESCE: Self = Self(1 << 12);

    /// Names of bits, as in the header, without the prefix.
    const NAMES: [(u32, &'static str); 20] = [
        (0, "SUPPORT_ZERO_COPY"),
        (1, "URING_CMD_COMP_IN_TASK"),
        (2, "NEED_GET_DATA"),
        (3, "USER_RECOVERY"),
        (4, "USER_RECOVERY_REISSUE"),
        (5, "UNPRIVILEGED_DEV"),
        (6, "CMD_IOCTL_ENCODE"),
        (7, "USER_COPY"),
        (8, "ZONED"),
        (9, "USER_RECOVERY_FAIL_IO"),
        (10, "UPDATE_SIZE"),
        (11, "AUTO_BUF_REG"),
        (12, "QUIESCE"),
        (13, "PER_IO_DAEMON"),
        (14, "BUF_REG_OFF_DAEMON"),
        (15, "BATCH_IO"),
        (16, "INTEGRITY"),
        (17, "SAFE_STOP_DEV"),
        (18, "NO_AUTO_PART_SCAN"),
        (19, "SHMEM_ZC"),
    ];

    /// Whether all of `wanted` are there.
    #[must_use]
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Names of the bits that are set, as in `ublk_cmd.h` without `UBLK_F_`; a bit that has none yet as its number.
    pub fn names(self) -> impl Iterator<Item = String> {
        (0..u64::BITS).filter(move |bit| self.0 >> bit & 1 == 1).map(|bit| {
            let known = Self::NAMES.iter().find(|(number, _)| *number == bit);
            known.map_or_else(|| format!("BIT_{bit}"), |(_, name)| (*name).to_owned())
        })
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_of_the_header_and_new_ones_are_shown_as_numbers() {
        // As kernels 6.12 and 6.18 answer.
        let old: Vec<String> = Features(0x1fe).names().collect();
        assert_eq!(old.first().map(String::as_str), Some("URING_CMD_COMP_IN_TASK"));
        assert_eq!(old.last().map(String::as_str), Some("ZONED"));
        assert!(Features(0x1fe).has(Features::USER_COPY.with(Features::USER_RECOVERY_REISSUE)));
        assert!(!Features(0x1fe).has(Features::QUIESCE));
        assert!(Features(0x7fff).has(Features::QUIESCE.with(Features::UPDATE_SIZE)));
        let new: Vec<String> = Features(1 << 19 | 1 << 40).names().collect();
        assert_eq!(new, ["SHMEM_ZC", "BIT_40"]);
        assert_eq!(Features(0x1fe).to_string(), "0x1fe");
    }
}
