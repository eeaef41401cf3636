//! A set of the pool's devices: asked at every turn whether there is any in it.

use flagstone_block::DEVICES;

/// One bit for each device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceSet(u32);

const _: () = assert!(DEVICES <= u32::BITS as usize);

impl DeviceSet {
    /// No device of such a number, or one that is not in the set: `false`.
    pub(super) fn has(self, device: usize) -> bool {
        device < DEVICES && self.0 & (1 << device) != 0
    }

    pub(super) fn set(&mut self, device: usize, is_in: bool) {
        assert!(device < DEVICES);
        self.0 = self.0 & !(1 << device) | u32::from(is_in) << device;
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        (0..DEVICES).filter(move |&device| self.has(device))
    }

    /// What is counted for devices of the set.
    pub(super) fn sum_of(self, counts: &[u32; DEVICES]) -> u32 {
        if self.is_empty() { 0 } else { self.iter().map(|device| counts[device]).sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut set = DeviceSet::default();
        assert!(set.is_empty() && !set.has(0));
        set.set(0, true);
        set.set(DEVICES - 1, true);
        set.set(DEVICES - 1, true);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, DEVICES - 1]);
        assert!(!set.has(DEVICES) && !set.has(usize::from(u8::MAX)));
        let mut counts = [1; DEVICES];
        counts[0] = 10;
        assert_eq!(set.sum_of(&counts), 11);
        set.set(0, false);
        set.set(1, false);
        assert_eq!(set.sum_of(&counts), 1);
    }
}
