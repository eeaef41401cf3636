//! Identify data: what a controller and a namespace say of themselves, 4096 bytes each.
//!
//! Offsets are those of the Base Specification 2.0, "Identify Controller Data Structure", and the NVM Command Set
//! Specification 1.0, "Identify Namespace Data Structure (CNS 00h)". Any bytes can be read: what makes no sense is said
//! by [`crate::Geometry`].

/// Length of either structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// Where the formats begin in the namespace's data.
const FORMATS_AT: usize = 128;
/// Formats that there can be.
const FORMATS: usize = 64;

/// The data ends too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("identify data of {bytes} bytes; it has {IDENTIFY_BYTES}")]
pub struct ShortIdentify {
    /// Bytes there are.
    pub bytes: usize,
}

/// Optional commands of a controller (ONCS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Dataset management: bit 2.
    pub dataset_management: bool,
    /// Write zeroes: bit 3.
    pub write_zeroes: bool,
}

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// PCI vendor (VID).
    pub vendor: u16,
    /// Serial number (SN), without padding; what is not printable ASCII is a question mark.
    pub serial: String,
    /// Model number (MN), likewise.
    pub model: String,
    /// Firmware revision (FR), likewise.
    pub firmware: String,
    /// Maximum Data Transfer Size (MDTS): a power of two in units of the least memory page; 0 for no limit.
    pub mdts: u8,
    /// Version of the specification that it follows: major, minor, tertiary (VER).
    pub version: (u16, u8, u8),
    /// Number of namespaces (NN).
    pub namespaces: u32,
    /// Optional commands (ONCS).
    pub capabilities: Capabilities,
    /// Whether there is a volatile write cache (VWC, bit 0).
    pub volatile_write_cache: bool,
    /// Logical blocks that are written whole or not at all when power fails (AWUPF; it says one less).
    pub atomic_write_blocks: u32,
}

impl IdentifyController {
    /// Reads the structure.
    ///
    /// # Errors
    /// Fewer than [`IDENTIFY_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ShortIdentify> {
        let bytes = whole(bytes)?;
        let oncs = u16_at(bytes, 520);
        let version = u32_at(bytes, 80);
        Ok(Self {
            vendor: u16_at(bytes, 0),
            serial: text(&bytes[4..24]),
            model: text(&bytes[24..64]),
            firmware: text(&bytes[64..72]),
            mdts: bytes[77],
            version: ((version >> 16) as u16, (version >> 8) as u8, version as u8),
            namespaces: u32_at(bytes, 516),
            capabilities: Capabilities {
                dataset_management: oncs & 1 << 2 != 0,
                write_zeroes: oncs & 1 << 3 != 0,
            },
            volatile_write_cache: bytes[525] & 1 != 0,
            atomic_write_blocks: u32::from(u16_at(bytes, 528)) + 1,
        })
    }
}

/// One LBA format that a namespace supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LbaFormat {
    /// Bytes of metadata per logical block (MS).
    pub metadata_bytes: u16,
    /// The logical block's size as a power of two (LBADS); below 9 the format is not available.
    pub data_shift: u8,
    /// 0 is best, 3 is worst (RP).
    pub relative_performance: u8,
}

/// What a namespace says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// Size in logical blocks (NSZE); 0 if it is not there.
    pub blocks: u64,
    /// Logical blocks that may be allocated at one time (NCAP).
    pub capacity_blocks: u64,
    /// Whether it is thin-provisioned (NSFEAT, bit 0).
    pub thin: bool,
    /// Number of formats (NLBAF; it says one less).
    pub formats: u16,
    /// Index of the format in use (FLBAS, bits 3:0, and 6:5 above them).
    pub format: u8,
    /// Whether metadata goes with the data (FLBAS, bit 4).
    pub metadata_with_data: bool,
    /// Type of the end-to-end protection in use, 0 for none (DPS, bits 2:0).
    pub protection: u8,
    /// The format in use; `None` if the index names none.
    pub lba_format: Option<LbaFormat>,
    /// NGUID; zeroes if there is none.
    pub nguid: [u8; 16],
    /// EUI64; zeroes if there is none.
    pub eui64: [u8; 8],
}

impl IdentifyNamespace {
    /// Reads the structure.
    ///
    /// # Errors
    /// Fewer than [`IDENTIFY_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ShortIdentify> {
        let bytes = whole(bytes)?;
        let formats = u16::from(bytes[25]) + 1;
        let flbas = bytes[26];
        // The upper bits count where there are more than 16 formats.
        let upper = if formats > 16 { flbas >> 5 & 0b11 } else { 0 };
        let format = flbas & 0b1111 | upper << 4;
        let exists = u16::from(format) < formats && usize::from(format) < FORMATS;
        let lba_format = exists.then(|| lba_format(bytes, usize::from(format)));
        Ok(Self {
            blocks: u64_at(bytes, 0),
            capacity_blocks: u64_at(bytes, 8),
            thin: bytes[24] & 1 != 0,
            formats,
            format,
            metadata_with_data: flbas & 1 << 4 != 0,
            protection: bytes[29] & 0b111,
            lba_format,
            nguid: bytes[104..120].try_into().expect("16 bytes"),
            eui64: bytes[120..128].try_into().expect("8 bytes"),
        })
    }
}

fn lba_format(bytes: &[u8; IDENTIFY_BYTES], index: usize) -> LbaFormat {
    let word = u32_at(bytes, FORMATS_AT + index * 4);
    LbaFormat {
        metadata_bytes: word as u16,
        data_shift: (word >> 16) as u8,
        relative_performance: (word >> 24) as u8 & 0b11,
    }
}

fn whole(bytes: &[u8]) -> Result<&[u8; IDENTIFY_BYTES], ShortIdentify> {
    bytes.first_chunk().ok_or(ShortIdentify { bytes: bytes.len() })
}

fn u16_at(bytes: &[u8; IDENTIFY_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; IDENTIFY_BYTES], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8; IDENTIFY_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// ASCII, padded with spaces (Base 2.0, "ASCII Strings").
fn text(bytes: &[u8]) -> String {
    let printable = |&byte: &u8| if (0x20..0x7f).contains(&byte) { byte as char } else { '?' };
    let end = bytes.iter().rposition(|&byte| byte != b' ' && byte != 0).map_or(0, |last| last + 1);
    bytes[..end].iter().map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets one field of an otherwise empty structure.
    fn with(at: usize, field: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        bytes[at..at + field.len()].copy_from_slice(field);
        bytes
    }

    fn controller(at: usize, field: &[u8]) -> IdentifyController {
        IdentifyController::parse(&with(at, field)).expect("long enough")
    }

    fn namespace(at: usize, field: &[u8]) -> IdentifyNamespace {
        IdentifyNamespace::parse(&with(at, field)).expect("long enough")
    }

    #[test]
    fn each_field_of_a_controller_is_read_from_its_place() {
        let none = controller(0, &[]);
        assert_eq!((none.vendor, none.mdts, none.namespaces), (0, 0, 0));
        assert_eq!((none.serial.as_str(), none.atomic_write_blocks), ("", 1));
        assert_eq!(controller(0, &[0x86, 0x80]).vendor, 0x8086);
        assert_eq!(controller(4, b"SN 1                ").serial, "SN 1");
        assert_eq!(controller(24, b"A model\xff").model, "A model?");
        assert_eq!(controller(64, b"8.2.1   ").firmware, "8.2.1");
        assert_eq!(controller(77, &[7]).mdts, 7);
        assert_eq!(controller(80, &[3, 4, 2, 1]).version, (0x0102, 4, 3));
        assert_eq!(controller(516, &[1, 2, 3, 4]).namespaces, 0x0403_0201);
        let all = Capabilities { dataset_management: true, write_zeroes: true };
        assert_eq!(controller(520, &[0x0c]).capabilities, all);
        let one = controller(520, &[0x04]).capabilities;
        assert_eq!(one, Capabilities { dataset_management: true, write_zeroes: false });
        assert_eq!(controller(520, &[0xf3, 0xff]).capabilities, Capabilities::default());
        assert!(controller(525, &[1]).volatile_write_cache);
        assert!(!controller(525, &[0xfe]).volatile_write_cache);
        assert_eq!(controller(528, &[0xff, 0xff]).atomic_write_blocks, 0x1_0000);
    }

    #[test]
    fn each_field_of_a_namespace_is_read_from_its_place() {
        assert_eq!(namespace(0, &[1, 2, 3, 4, 5, 6, 7, 8]).blocks, 0x0807_0605_0403_0201);
        assert_eq!(namespace(8, &[1, 0, 0, 0, 0, 0, 0, 8]).capacity_blocks, 0x0800_0000_0000_0001);
        assert!(namespace(24, &[1]).thin);
        assert!(!namespace(24, &[0xfe]).thin);
        assert_eq!(namespace(25, &[3]).formats, 4);
        assert!(namespace(26, &[0x10]).metadata_with_data);
        assert_eq!(namespace(29, &[0xfb]).protection, 3);
        let nguid: Vec<u8> = (1..=16).collect();
        assert_eq!(namespace(104, &nguid).nguid[..], nguid);
        assert_eq!(namespace(120, &nguid[..8]).eui64[..], nguid[..8]);
        let first = LbaFormat { metadata_bytes: 0x0201, data_shift: 12, relative_performance: 2 };
        assert_eq!(namespace(128, &[1, 2, 12, 0xfe]).lba_format, Some(first));
    }

    #[test]
    fn the_format_in_use_has_upper_bits_where_there_are_more_than_16() {
        let parse = |formats: u8, flbas: u8| {
            let mut bytes = with(25, &[formats - 1, flbas]);
            for index in 0..FORMATS {
                bytes[FORMATS_AT + index * 4 + 2] = index as u8;
            }
            let namespace = IdentifyNamespace::parse(&bytes).expect("long enough");
            (namespace.format, namespace.lba_format.map(|format| format.data_shift))
        };
        assert_eq!(parse(16, 0x0f), (15, Some(15)));
        // Below that the bits are reserved.
        assert_eq!(parse(16, 0x6f), (15, Some(15)));
        assert_eq!(parse(64, 0x6f), (63, Some(63)));
        assert_eq!(parse(18, 0x21), (17, Some(17)));
        // An index beyond the formats that there are.
        assert_eq!(parse(17, 0x21), (17, None));
        assert_eq!(parse(1, 0x01), (1, None));
    }

    #[test]
    fn what_ends_early_is_refused() {
        for bytes in [0, 1, 4095] {
            let data = vec![0xff; bytes];
            assert_eq!(IdentifyController::parse(&data), Err(ShortIdentify { bytes }));
            assert_eq!(IdentifyNamespace::parse(&data), Err(ShortIdentify { bytes }));
        }
    }
}
