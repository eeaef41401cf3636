//! What an NVMe controller says: identify data, and the results of commands.

use flagstone_block::DeviceError;
use flagstone_nvme::{
    Geometry, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, Limits, PassthroughOutcome,
    Status, completion,
};

/// Identify data of a controller and of a namespace, the same bytes for both, with zeroes behind them.
///
/// What is accepted as a geometry can be computed with, and the transfers that it leads to fit the command.
pub fn nvme_identify(input: &[u8]) {
    let short = input.len() < IDENTIFY_BYTES;
    assert_eq!(IdentifyController::parse(input).is_err(), short);
    assert_eq!(IdentifyNamespace::parse(input).is_err(), short);
    let mut bytes = input.to_vec();
    bytes.resize(input.len().max(IDENTIFY_BYTES), 0);
    let controller = IdentifyController::parse(&bytes).expect("long enough");
    for text in [&controller.serial, &controller.model, &controller.firmware] {
        assert!(text.len() <= 40 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        assert!(!text.ends_with(' '));
    }
    assert!((1..=1 << 16).contains(&controller.atomic_write_blocks));
    let namespace = IdentifyNamespace::parse(&bytes).expect("long enough");
    match Geometry::of(&namespace) {
        Ok(geometry) => {
            let format = namespace.lba_format.expect("it has one");
            assert!((9..=12).contains(&geometry.shift) && format.metadata_bytes == 0);
            assert!(geometry.blocks > 0 && geometry.bytes() <= i64::MAX as u64);
            assert_eq!(geometry.bytes() >> geometry.shift, geometry.blocks);
            // Of the driver's limits the bytes will do, too.
            let driver_bytes = bytes[200..208].try_into().map(u64::from_le_bytes).ok();
            let segments = bytes[208..216].try_into().map(u64::from_le_bytes).ok();
            for (driver_bytes, segments) in
                [(None, None), (driver_bytes, None), (None, segments), (driver_bytes, segments)]
            {
                let limits = Limits { mdts: controller.mdts, driver_bytes, segments };
                let transfer = limits.transfer_bytes(geometry.shift);
                assert!(transfer >= 4096 && transfer % 4096 == 0);
                assert!(transfer >> geometry.shift <= 1 << 16);
                if let (1..=20, None, None) = (controller.mdts, driver_bytes, segments) {
                    assert!(u64::from(transfer) <= 4096 << controller.mdts);
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Results of commands, four bytes each: only zero is success.
pub fn nvme_completion(input: &[u8]) {
    for bytes in input.chunks_exact(4) {
        let result = i32::from_le_bytes(bytes.try_into().expect("four"));
        match completion(result) {
            PassthroughOutcome::Done => assert_eq!(result, 0),
            PassthroughOutcome::Failed(error) | PassthroughOutcome::Again(error) => {
                assert!(result != 0 && (error.errno() > 0 || result == i32::MIN), "{error}");
                let told = error.to_string();
                if let DeviceError::Command { status, .. } = error
                    && status != 0
                {
                    assert_eq!(i32::from(status), result & 0x7fff, "{told}");
                }
            }
        }
        let status = Status::new(result as u16);
        let parts = u16::from(status.code()) | u16::from(status.retry_delay()) << 11;
        assert_eq!(parts & !(result as u16) & 0x18ff, 0);
        let done = status.outcome() == PassthroughOutcome::Done;
        assert_eq!(done, result as u16 & 0x7fff == 0);
        assert!(!status.to_string().is_empty());
    }
}

/// Inputs to begin with.
pub(crate) fn identify_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (format, metadata, shift, protection) in
        [(0, 0, 9, 0), (0, 0, 12, 0), (1, 8, 9, 0), (0x20, 0, 12, 0), (0, 8, 12, 1), (3, 0, 0, 0)]
    {
        let mut bytes = vec![0; 560];
        bytes[..8].copy_from_slice(&(1u64 << 21).to_le_bytes());
        bytes[25] = if format > 15 { 40 } else { 3 };
        (bytes[26], bytes[29], bytes[77]) = (format, protection, 7);
        let index = usize::from(format & 15) + usize::from(format >> 5 & 3) * 16;
        bytes[128 + index * 4..132 + index * 4].copy_from_slice(&[metadata, 0, shift, 0]);
        bytes[520..530].copy_from_slice(&[0x5d, 1, 0, 0, 0, 7, 0, 0, 0, 0]);
        seeds.push(bytes.clone());
        bytes.resize(IDENTIFY_BYTES, 0);
        seeds.push(bytes);
    }
    seeds
}

/// Inputs to begin with: every status that has a name, and error numbers.
pub(crate) fn completion_seeds() -> Vec<Vec<u8>> {
    let named = (0..0x800u16).filter(|raw| Status::new(*raw).name().is_some()).map(i32::from);
    let errors = [-4, -5, -11, -19, -22, -110, i32::MIN, i32::MAX, 0x8000, 0x1_0000];
    let all: Vec<u8> = named.chain(errors).flat_map(i32::to_le_bytes).collect();
    all.chunks(64).map(<[u8]>::to_vec).chain([all.clone()]).collect()
}
