//! Whether a namespace can be used, and how its blocks map to Flagstone's.

use flagstone_block::{BLOCK_BITS, BLOCK_SIZE};

use crate::identify::IdentifyNamespace;

/// The smallest logical block that NVMe knows, as a power of two.
const SHIFT_MIN: u8 = 9;

/// The blocks of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The logical block's size as a power of two, 9 to 12.
    pub shift: u32,
    /// Logical blocks.
    pub blocks: u64,
}

/// Why a namespace can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// There is nothing in it.
    #[error("the namespace has no blocks: it is not active, or not attached to this controller")]
    Empty,
    /// Its index names none of its formats.
    #[error("the namespace says that it uses format {format} of {formats}")]
    NoFormat {
        /// The index.
        format: u8,
        /// Formats that it has.
        formats: u16,
    },
    /// Each block carries metadata.
    #[error(
        "the namespace is formatted with {bytes} bytes of metadata per block; format it without \
         (nvme format --ms=0, which erases it)"
    )]
    Metadata {
        /// Bytes per block.
        bytes: u16,
    },
    /// Each block carries protection information.
    #[error(
        "the namespace is formatted with protection information of type {kind}; format it without \
         (nvme format --pi=0, which erases it)"
    )]
    Protection {
        /// The type, 1 to 3.
        kind: u8,
    },
    /// Blocks that are too small, or larger than Flagstone's.
    #[error("the namespace has blocks of 2^{shift} bytes; Flagstone needs 512 to 4096 bytes")]
    BlockSize {
        /// The power of two.
        shift: u8,
    },
    /// More bytes than can be counted.
    #[error("the namespace says that it has {blocks} blocks of {block_bytes} bytes")]
    TooLarge {
        /// Its blocks.
        blocks: u64,
        /// Their size.
        block_bytes: u32,
    },
}

impl Geometry {
    /// The geometry of a namespace.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn of(namespace: &IdentifyNamespace) -> Result<Self, GeometryError> {
        if namespace.blocks == 0 {
            return Err(GeometryError::Empty);
        }
        let (format, formats) = (namespace.format, namespace.formats);
        let used = namespace.lba_format.ok_or(GeometryError::NoFormat { format, formats })?;
        if namespace.protection != 0 {
            return Err(GeometryError::Protection { kind: namespace.protection });
        }
        if used.metadata_bytes != 0 {
            return Err(GeometryError::Metadata { bytes: used.metadata_bytes });
        }
        let shift = used.data_shift;
        if !(SHIFT_MIN..=BLOCK_BITS as u8).contains(&shift) {
            return Err(GeometryError::BlockSize { shift });
        }
        let geometry = Self { shift: u32::from(shift), blocks: namespace.blocks };
        if namespace.blocks > i64::MAX as u64 >> shift {
            let block_bytes = geometry.block_bytes();
            return Err(GeometryError::TooLarge { blocks: namespace.blocks, block_bytes });
        }
        Ok(geometry)
    }

    /// Size of a logical block in bytes.
    #[must_use]
    pub const fn block_bytes(&self) -> u32 {
        1 << self.shift
    }

    /// Size of the namespace in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks << self.shift
    }

    /// The first logical block and the number of them, of a range in bytes; both are multiples of 4096.
    #[must_use]
    pub fn range(&self, offset: u64, bytes: u64) -> (u64, u64) {
        debug_assert!((offset | bytes).is_multiple_of(BLOCK_SIZE as u64));
        (offset >> self.shift, bytes >> self.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::LbaFormat;

    fn namespace(metadata_bytes: u16, data_shift: u8) -> IdentifyNamespace {
        IdentifyNamespace {
            blocks: 1000,
            capacity_blocks: 1000,
            thin: false,
            formats: 1,
            format: 0,
            metadata_with_data: false,
            protection: 0,
            lba_format: Some(LbaFormat { metadata_bytes, data_shift, relative_performance: 0 }),
            nguid: [0; 16],
            eui64: [0; 8],
        }
    }

    #[test]
    fn blocks_of_512_and_4096_bytes_are_used() {
        let small = Geometry::of(&namespace(0, 9)).expect("fits");
        assert_eq!((small.block_bytes(), small.bytes()), (512, 512_000));
        assert_eq!(small.range(8192, 4096), (16, 8));
        let large = Geometry::of(&namespace(0, 12)).expect("fits");
        assert_eq!((large.block_bytes(), large.bytes()), (4096, 4_096_000));
        assert_eq!(large.range(8192, 4096), (2, 1));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_name() {
        use GeometryError as E;
        let refused = |namespace| Geometry::of(&namespace).expect_err("does not fit");
        assert_eq!(refused(namespace(8, 12)), E::Metadata { bytes: 8 });
        let protected = IdentifyNamespace { protection: 1, ..namespace(8, 12) };
        assert_eq!(refused(protected), E::Protection { kind: 1 });
        for shift in [0, 8, 13, 255] {
            assert_eq!(refused(namespace(0, shift)), E::BlockSize { shift });
        }
        assert_eq!(refused(IdentifyNamespace { blocks: 0, ..namespace(0, 9) }), E::Empty);
        let lost = IdentifyNamespace { format: 3, lba_format: None, ..namespace(0, 9) };
        assert_eq!(refused(lost), E::NoFormat { format: 3, formats: 1 });
        let blocks = u64::MAX;
        let huge = IdentifyNamespace { blocks, ..namespace(0, 12) };
        assert_eq!(refused(huge), E::TooLarge { blocks, block_bytes: 4096 });
    }
}
