//! The devices of a pool, driven as one [`BlockIo`].

use crate::{BlockIo, DEVICES, DeviceError, ReadAt, split_offset};

/// Devices by their number in the pool; `None` where there is none, or none now.
#[derive(Debug)]
pub struct Devices<T>(pub Vec<Option<T>>);

impl<T> Default for Devices<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Devices<T> {
    /// Device `device`, if it is there.
    pub fn get_mut(&mut self, device: usize) -> Option<&mut T> {
        self.0.get_mut(device)?.as_mut()
    }

    /// Puts a device in its place, which must be one of the [`DEVICES`].
    pub fn put(&mut self, device: usize, io: T) {
        assert!(device < DEVICES, "a pool has at most {DEVICES} devices");
        if self.0.len() <= device {
            self.0.resize_with(device + 1, || None);
        }
        self.0[device] = Some(io);
    }

    fn at(&mut self, offset: u64) -> Result<(&mut T, u64), DeviceError> {
        let (device, rest) = split_offset(offset);
        match self.get_mut(device) {
            Some(io) => Ok((io, rest)),
            None => Err(DeviceError::OutOfRange { offset }),
        }
    }
}

impl<T: BlockIo> BlockIo for Devices<T> {
    fn size(&self) -> u64 {
        self.0.iter().flatten().map(BlockIo::size).sum()
    }

    fn device_bytes(&self, device: usize) -> Option<u64> {
        self.0.get(device)?.as_ref().map(BlockIo::size)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let (io, offset) = self.at(offset)?;
        io.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let (io, offset) = self.at(offset)?;
        io.write_at(offset, from)
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        self.0.iter_mut().flatten().try_for_each(BlockIo::flush)
    }

    fn flush_devices(&mut self, wanted: &dyn Fn(usize) -> bool) -> Result<(), DeviceError> {
        let wanted = |(device, _): &(usize, &mut Option<T>)| wanted(*device);
        let devices = self.0.iter_mut().enumerate().filter(wanted);
        devices.filter_map(|(_, io)| io.as_mut()).try_for_each(BlockIo::flush)
    }

    fn read_many(&mut self, reads: &mut [ReadAt<'_>], results: &mut Vec<Result<(), DeviceError>>) {
        results.clear();
        results
            .extend(reads.iter().map(|read| Err(DeviceError::OutOfRange { offset: read.offset })));
        let mut part = Vec::new();
        for (device, io) in self.0.iter_mut().enumerate() {
            let Some(io) = io else { continue };
            let here = |read: &ReadAt<'_>| split_offset(read.offset).0 == device;
            let mut own: Vec<ReadAt<'_>> = reads
                .iter_mut()
                .filter(|read| here(read))
                .map(|read| ReadAt { offset: split_offset(read.offset).1, into: &mut *read.into })
                .collect();
            if own.is_empty() {
                continue;
            }
            io.read_many(&mut own, &mut part);
            drop(own);
            let places = reads.iter().zip(results.iter_mut()).filter(|(read, _)| here(read));
            for ((_, result), read) in places.zip(part.drain(..)) {
                *result = read;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join_offset;

    struct Memory(Vec<u8>);

    impl BlockIo for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
            into.copy_from_slice(&self.0[offset as usize..offset as usize + into.len()]);
            Ok(())
        }
        fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
            self.0[offset as usize..offset as usize + from.len()].copy_from_slice(from);
            Ok(())
        }
        fn flush(&mut self) -> Result<(), DeviceError> {
            Ok(())
        }
    }

    #[test]
    fn what_is_read_together_comes_from_its_own_device_and_what_is_missing_fails_alone() {
        let mut devices = Devices::default();
        devices.put(0, Memory(vec![1; 8192]));
        devices.put(2, Memory(vec![3; 4096]));
        devices.write_at(join_offset(2, 0), &[7; 4096]).unwrap();
        let mut bytes = [0; 4 * 4096];
        let offsets = [join_offset(2, 0), join_offset(1, 0), 4096, 0];
        let parts = bytes.chunks_exact_mut(4096).zip(offsets);
        let mut reads: Vec<ReadAt<'_>> =
            parts.map(|(into, offset)| ReadAt { offset, into }).collect();
        let mut results = Vec::new();
        devices.read_many(&mut reads, &mut results);
        let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, false, true, true]);
        let first: Vec<u8> = bytes.chunks_exact(4096).map(|block| block[0]).collect();
        assert_eq!(first, [7, 0, 1, 1]);
        assert_eq!((devices.size(), devices.device_bytes(1)), (12288, None));
        assert_eq!(split_offset(join_offset(2, 4096)), (2, 4096));
    }
}
