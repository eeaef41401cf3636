//! What a device or file holds, by the magic numbers that others leave on it.
//!
//! The table is wide on purpose: formatting over somebody's data is the worst thing this program
//! can do, and a false alarm costs one `--force`. So a two-byte magic counts, and nothing is
//! validated beyond it. Offsets are from each format's own documentation.
//!
//! Deliberately not here: deciding anything. See [`super::Report`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where a magic number lies on a device of `size` bytes.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Bytes from the start.
    Start(u64),
    /// Bytes before the end.
    End(u64),
    /// Bytes before the end rounded down to `align`.
    EndAligned { back: u64, align: u64 },
}

impl At {
    fn offset(self, size: u64) -> Option<u64> {
        match self {
            Self::Start(offset) => Some(offset),
            Self::End(back) => size.checked_sub(back),
            Self::EndAligned { back, align } => (size / align * align).checked_sub(back),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Signature {
    what: &'static str,
    at: At,
    magic: &'static [u8],
}

const fn start(what: &'static str, offset: u64, magic: &'static [u8]) -> Signature {
    Signature { what, at: At::Start(offset), magic }
}

const fn end(what: &'static str, back: u64, magic: &'static [u8]) -> Signature {
    Signature { what, at: At::End(back), magic }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const EXT: &str = "an ext2, ext3 or ext4 file system";
const FAT: &str = "a FAT file system";
const GPT: &str = "a GPT partition table";
const HFS: &str = "an HFS or HFS+ file system";
const LUKS: &str = "a LUKS encrypted volume";
const LVM: &str = "an LVM physical volume";
const MD: &str = "a Linux software RAID (md) member";
const MINIX: &str = "a Minix file system";
const OCFS2: &str = "an OCFS2 file system";
const REISER: &str = "a ReiserFS file system";
const SWAP: &str = "a swap area";
const SUSPEND: &str = "a suspended (hibernated) system image";
const UDF: &str = "a UDF file system";
const UFS: &str = "a UFS file system";
const DRBD: &str = "a DRBD device";
const VMFS: &str = "a VMFS volume";
const FLAGSTONE: &str = "a Flagstone pool";
/// Of every superblock copy: docs/formats/superblock.md.
const FLAGSTONE_MAGIC: &[u8] = b"LSBS\x01\x00";

/// Every magic number, the most telling first: a report names the first few.
const TABLE: &[Signature] = &[
    start(FLAGSTONE, 0, FLAGSTONE_MAGIC),
    start(FLAGSTONE, 64 * KIB, FLAGSTONE_MAGIC),
    start(FLAGSTONE, MIB, FLAGSTONE_MAGIC),
    start(FLAGSTONE, MIB + 64 * KIB, FLAGSTONE_MAGIC),
    Signature {
        what: FLAGSTONE,
        at: At::EndAligned { back: MIB, align: 4 * KIB },
        magic: FLAGSTONE_MAGIC,
    },
    start(LUKS, 0, b"LUKS\xba\xbe"),
    start(LUKS, 16 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, 32 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, 64 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, 128 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, 256 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, 512 * KIB, b"SKUL\xba\xbe"),
    start(LUKS, MIB, b"SKUL\xba\xbe"),
    start(LUKS, 2 * MIB, b"SKUL\xba\xbe"),
    start(LUKS, 4 * MIB, b"SKUL\xba\xbe"),
    start("a BitLocker volume", 3, b"-FVE-FS-"),
    start(LVM, 0, b"LABELONE"),
    start(LVM, 512, b"LABELONE"),
    start(LVM, 1024, b"LABELONE"),
    start(LVM, 1536, b"LABELONE"),
    start(MD, 0, b"\xfc\x4e\x2b\xa9"),
    start(MD, 4 * KIB, b"\xfc\x4e\x2b\xa9"),
    Signature {
        what: MD,
        at: At::EndAligned { back: 8 * KIB, align: 4 * KIB },
        magic: b"\xfc\x4e\x2b\xa9",
    },
    Signature {
        what: MD,
        at: At::EndAligned { back: 64 * KIB, align: 64 * KIB },
        magic: b"\xfc\x4e\x2b\xa9",
    },
    Signature {
        what: MD,
        at: At::EndAligned { back: 64 * KIB, align: 64 * KIB },
        magic: b"\xa9\x2b\x4e\xfc",
    },
    end("an Intel firmware RAID member", KIB, b"Intel Raid ISM Cfg Sig."),
    end("a DDF firmware RAID member", 512, b"\xde\x11\xde\x11"),
    end(DRBD, 4 * KIB - 60, b"\x83\x74\x02\x6b"),
    end(DRBD, 4 * KIB - 60, b"\x83\x74\x02\x6c"),
    end(DRBD, 4 * KIB - 60, b"\x83\x74\x02\x6d"),
    start(
        "a bcache device",
        4 * KIB + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    start(
        "a bcachefs file system",
        4 * KIB + 24,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    start("a Ceph BlueStore device", 0, b"bluestore block device"),
    start("a Stratis pool member", 516, b"!Stra0tis\x86\xff\x02^\x41rh"),
    start("a VDO device", 0, b"dmvdo001"),
    start("a dm-integrity device", 0, b"integrt\0"),
    start("a dm-verity hash device", 0, b"verity\0\0"),
    start("a device-mapper snapshot store", 0, b"SnAp"),
    start("an Oracle ASM disk", 32, b"ORCLDISK"),
    start(VMFS, MIB, b"\x0d\xd0\x01\xc0"),
    start(VMFS, 2 * MIB, b"\x5e\xf1\xab\x2f"),
    start(EXT, KIB + 56, b"\x53\xef"),
    start("an XFS file system", 0, b"XFSB"),
    start("a Btrfs file system", 64 * KIB + 64, b"_BHRfS_M"),
    start("an F2FS file system", KIB, b"\x10\x20\xf5\xf2"),
    start("an EROFS file system", KIB, b"\xe2\xe1\xf5\xe0"),
    start("a NILFS2 file system", KIB + 6, b"\x34\x34"),
    start("a GFS2 file system", 64 * KIB, b"\x01\x16\x19\x70"),
    start("a JFS file system", 32 * KIB, b"JFS1"),
    start(OCFS2, KIB, b"OCFSV2"),
    start(OCFS2, 2 * KIB, b"OCFSV2"),
    start(OCFS2, 4 * KIB, b"OCFSV2"),
    start(OCFS2, 8 * KIB, b"OCFSV2"),
    start(REISER, 64 * KIB + 52, b"ReIsEr"),
    start(REISER, 8 * KIB + 52, b"ReIsEr"),
    start("a Reiser4 file system", 64 * KIB, b"ReIsEr4"),
    start("an APFS container", 32, b"NXSB"),
    start(HFS, KIB, b"H+"),
    start(HFS, KIB, b"HX"),
    start(HFS, KIB, b"BD"),
    start("an NTFS file system", 3, b"NTFS    "),
    start("a ReFS file system", 3, b"ReFS\0"),
    start("an exFAT file system", 3, b"EXFAT   "),
    start(FAT, 0x52, b"FAT32   "),
    start(FAT, 0x36, b"FAT12   "),
    start(FAT, 0x36, b"FAT16   "),
    start(FAT, 0x36, b"FAT     "),
    start("an ISO 9660 file system", 32 * KIB + 1, b"CD001"),
    start(UDF, 32 * KIB + 1, b"BEA01"),
    start(UDF, 32 * KIB + 1, b"NSR0"),
    start("a SquashFS image", 0, b"hsqs"),
    start("a SquashFS image", 0, b"sqsh"),
    start("a cramfs image", 0, b"\x45\x3d\xcd\x28"),
    start("a romfs image", 0, b"-rom1fs-"),
    start(UFS, 8 * KIB + 1372, b"\x54\x19\x01\x00"),
    start(UFS, 8 * KIB + 1372, b"\x00\x01\x19\x54"),
    start(UFS, 64 * KIB + 1372, b"\x19\x01\x54\x19"),
    start(UFS, 64 * KIB + 1372, b"\x19\x54\x01\x19"),
    start(MINIX, KIB + 16, b"\x7f\x13"),
    start(MINIX, KIB + 16, b"\x8f\x13"),
    start(MINIX, KIB + 16, b"\x68\x24"),
    start(MINIX, KIB + 16, b"\x78\x24"),
    start(MINIX, KIB + 24, b"\x5a\x4d"),
    start(SWAP, 4 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 8 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 16 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 64 * KIB - 10, b"SWAPSPACE2"),
    start(SWAP, 4 * KIB - 10, b"SWAP-SPACE"),
    start(SUSPEND, 4 * KIB - 10, b"S1SUSPEND"),
    start(SUSPEND, 4 * KIB - 10, b"S2SUSPEND"),
    start(SUSPEND, 4 * KIB - 10, b"ULSUSPEND"),
    start(SUSPEND, 4 * KIB - 10, b"LINHIB0001"),
    start("a qcow2 disk image", 0, b"QFI\xfb"),
    start("a VHDX disk image", 0, b"vhdxfile"),
    start("a VMDK disk image", 0, b"KDMV"),
    start("a VDI disk image", 64, b"\x7f\x10\xda\xbe"),
    start(GPT, 512, b"EFI PART"),
    start(GPT, 4 * KIB, b"EFI PART"),
    end(GPT, 512, b"EFI PART"),
    end(GPT, 4 * KIB, b"EFI PART"),
    start("an Apple partition map", 512, b"PM\0\0"),
    start("a Windows dynamic disk (LDM)", 3 * KIB, b"PRIVHEAD"),
    start("a BSD disk label", 64, b"\x57\x45\x56\x82"),
    start("a BSD disk label", 512, b"\x57\x45\x56\x82"),
    start("a Sun disk label", 508, b"\xda\xbe"),
    start("a DOS partition table or boot sector", 510, b"\x55\xaa"),
];

const ZFS: &str = "a ZFS pool member";

/// Uberblock magic, as a little- or big-endian machine writes it.
const ZFS_MAGICS: [[u8; 8]; 2] = [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()];

/// A magic number that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it stands for, with its article: "an XFS file system".
    pub what: &'static str,
    /// Byte offset of the magic number.
    pub offset: u64,
}

/// Every signature on a device or file of `size` bytes, each meaning once.
///
/// # Errors
/// The device can't be read: then nothing can be promised about what it holds.
pub fn scan(file: &File, size: u64) -> io::Result<Vec<Found>> {
    let mut found: Vec<Found> = Vec::new();
    for signature in TABLE {
        if found.iter().any(|earlier| earlier.what == signature.what) {
            continue;
        }
        let Some(offset) = signature.at.offset(size) else { continue };
        if holds(file, size, offset, signature.magic)? {
            found.push(Found { what: signature.what, offset });
        }
    }
    if let Some(offset) = zfs_uberblock(file, size)? {
        found.push(Found { what: ZFS, offset });
    }
    Ok(found)
}

fn holds(file: &File, size: u64, offset: u64, magic: &[u8]) -> io::Result<bool> {
    if offset.checked_add(magic.len() as u64).is_none_or(|end| end > size) {
        return Ok(false);
    }
    let mut bytes = [0; 32];
    let bytes = &mut bytes[..magic.len()];
    file.read_exact_at(bytes, offset)?;
    Ok(bytes == magic)
}

/// ZFS has no magic at a fixed place: each of its four labels ends in a ring of uberblocks, any
/// of which may be the only one written.
fn zfs_uberblock(file: &File, size: u64) -> io::Result<Option<u64>> {
    const LABEL: u64 = 256 * KIB;
    const RING: u64 = 128 * KIB;
    let size = size / LABEL * LABEL;
    if size < 4 * LABEL {
        return Ok(None);
    }
    let mut ring = vec![0; (LABEL - RING) as usize];
    for label in [0, LABEL, size - 2 * LABEL, size - LABEL] {
        file.read_exact_at(&mut ring, label + RING)?;
        let slots = ring.chunks_exact(KIB as usize);
        if let Some(slot) = slots.clone().position(|s| ZFS_MAGICS.iter().any(|m| s.starts_with(m)))
        {
            return Ok(Some(label + RING + slot as u64 * KIB));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn a_blank_device_has_none() {
        for size in [0, 1, 511, 4096, 1 << 20, 64 << 20, (64 << 20) + 513] {
            assert_eq!(scan(&image(size), size).unwrap(), [], "{size}");
        }
    }

    #[test]
    fn every_entry_is_found_where_it_says() {
        let size = 64 << 20;
        for signature in TABLE {
            let file = image(size);
            let offset = signature.at.offset(size).unwrap();
            file.write_all_at(signature.magic, offset).unwrap();
            let found = scan(&file, size).unwrap();
            assert_eq!(found.len(), 1, "{signature:?} {found:?}");
            assert_eq!(found[0], Found { what: signature.what, offset });
            assert!(signature.magic.len() <= 32);
        }
    }

    #[test]
    fn zfs_is_found_in_any_slot_of_any_label() {
        let size = (64 << 20) + 4096;
        for offset in [128 * KIB, 256 * KIB - KIB, 384 * KIB, (64 << 20) - 128 * KIB] {
            for magic in ZFS_MAGICS {
                let file = image(size);
                file.write_all_at(&magic, offset).unwrap();
                assert_eq!(scan(&file, size).unwrap(), [Found { what: ZFS, offset }]);
            }
        }
    }
}
