//! What the kernel tells of its NBD devices in files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{RESEND, path_of};
use crate::node::limits::READ_BYTES_WHOLE;
use crate::probe::{DeviceNumber, Kernel};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Where block devices are.
const BLOCK: &str = "/sys/block";
/// What a device's name begins with.
const NAME: &str = "nbd";
/// What the kernel keeps with a device of ours ([`backend`]) begins with.
const OURS: &str = "flagstone:";

/// A device of Flagstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) number: u32,
    /// Of its volume or snapshot.
    pub(super) uuid: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
}

impl Known {
    /// It was taken away while somebody had it open: of no volume has it anything any more.
    pub(super) fn is_detached(&self) -> bool {
        self.size_bytes == 0
    }
}

/// What the kernel keeps with a device, so that it is known whose it is, and no other volume gets it.
pub(super) fn backend(uuid: [u8; 16]) -> String {
    format!("{OURS}{:032x}", u128::from_be_bytes(uuid))
}

fn uuid_of(backend: &str) -> Option<[u8; 16]> {
    let digits = backend.trim_end().strip_prefix(OURS).filter(|digits| digits.len() == 32)?;
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}

/// The devices of Flagstone, by number.
pub(super) fn devices() -> io::Result<Vec<Known>> {
    devices_in(Path::new(BLOCK))
}

fn devices_in(block: &Path) -> io::Result<Vec<Known>> {
    let mut devices = Vec::new();
    let entries = match fs::read_dir(block) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(devices),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse().ok());
        devices.extend(number.and_then(|number| known_in(block, number)));
    }
    devices.sort_unstable_by_key(|known| known.number);
    Ok(devices)
}

/// A device, if it is one of Flagstone.
pub(super) fn known(number: u32) -> Option<Known> {
    known_in(Path::new(BLOCK), number)
}

/// A device, if it is one of this volume or snapshot: its number may have become another's.
pub(super) fn known_of(number: u32, uuid: [u8; 16]) -> Option<Known> {
    known_of_in(Path::new(BLOCK), number, uuid)
}

fn known_of_in(block: &Path, number: u32, uuid: [u8; 16]) -> Option<Known> {
    known_in(block, number).filter(|known| known.uuid == uuid)
}

fn known_in(block: &Path, number: u32) -> Option<Known> {
    let of = |attribute: &str| {
        fs::read_to_string(block.join(format!("{NAME}{number}/{attribute}"))).ok()
    };
    let uuid = uuid_of(&of("backend")?)?;
    let sectors: u64 = of("size")?.trim().parse().ok()?;
    let read_only = of("ro")?.trim() == "1";
    Some(Known { number, uuid, size_bytes: sectors << 9, read_only })
}

/// Whether a device with this number is there and connected to something.
pub(super) fn is_taken(number: u32) -> bool {
    Path::new(BLOCK).join(format!("{NAME}{number}/pid")).exists()
}

/// How the kernel is to treat requests: `io_timeout` is how long it waits until it looks whether there is another socket. No request is
/// so long that the node would begin to answer a READ before it has all of it: what it could not read then would end the connection.
const QUEUE: [(&str, u64); 2] =
    [("io_timeout", RESEND.as_millis() as u64), ("max_sectors_kb", READ_BYTES_WHOLE >> 10)];
/// As `BLK_MQ` has it for devices of others; 0 is what the driver wants.
const QUEUE_OTHERS: [(&str, u64); 2] = [("io_timeout", 30_000), ("max_sectors_kb", 0)];

/// Prepares a device's queue.
pub(super) fn set_queue(number: u32) {
    for (attribute, value) in QUEUE {
        let path = queue_attribute(number, attribute);
        let now = fs::read_to_string(&path).ok();
        if now.is_some_and(|now| now.trim() == value.to_string()) {
            continue;
        }
        if let Err(error) = fs::write(&path, value.to_string()) {
            tracing::warn!(path = %path.display(), %error, "can't be set to {value}");
        }
    }
}

/// The device stays, for whoever connects it next.
pub(super) fn reset_queue(number: u32) {
    for (attribute, value) in QUEUE_OTHERS {
        let _ = fs::write(queue_attribute(number, attribute), value.to_string());
    }
}

fn queue_attribute(number: u32, attribute: &str) -> PathBuf {
    PathBuf::from(BLOCK).join(format!("{NAME}{number}/queue/{attribute}"))
}

/// Whether somebody has a device that is served open in a way that excludes others, as a mount does (open(2), `O_EXCL`).
pub(super) fn is_claimed(number: u32) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path_of(number), flags, Mode::empty());
    matches!(opened, Err(Errno::BUSY))
}

/// What a device is used for, in words, if it is. Opening it would wait if nobody serves it.
pub(super) fn use_of(number: u32) -> io::Result<Option<String>> {
    let path = Path::new(BLOCK).join(format!("{NAME}{number}/dev"));
    let text = fs::read_to_string(path)?;
    let Some(device) = DeviceNumber::parse(&text) else { return Ok(None) };
    let uses = Kernel::default().uses_of_device(&path_of(number), device)?;
    Ok(uses.first().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_flagstone_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, String)]| {
            fs::create_dir(dir.path().join(name)).unwrap();
            for (file, content) in files {
                fs::write(dir.path().join(name).join(file), content).unwrap();
            }
        };
        let uuid = *b"0123456789abcdef";
        let of = |backend: &str| {
            let size = if backend.ends_with('5') { "0\n" } else { "8\n" };
            [("backend", backend.to_owned()), ("size", size.to_owned()), ("ro", "1\n".to_owned())]
        };
        let mut last = [0; 16];
        last[15] = 0xf5;
        make("nbd12", &of(&backend(uuid)));
        make("nbd3", &of(&backend(last)));
        make("nbd4", &of("image.qcow2\n"));
        make("nbd5", &of("flagstone:0123456789abcdef\n"));
        make("nbd6", &[("size", "8\n".to_owned())]);
        make("nbdx", &of(&backend(uuid)));
        make("vda", &of(&backend(uuid)));
        let known = |number, uuid, size_bytes| Known { number, uuid, size_bytes, read_only: true };
        let found = devices_in(dir.path()).unwrap();
        assert_eq!(found, [known(3, last, 0), known(12, uuid, 4096)]);
        assert!(found[0].is_detached() && !found[1].is_detached());
        assert_eq!(devices_in(&dir.path().join("none")).unwrap(), []);
        // A number that is another volume's, somebody else's, or nobody's.
        assert_eq!(known_of_in(dir.path(), 12, uuid), Some(known(12, uuid, 4096)));
        for (number, uuid) in [(12, last), (4, uuid), (7, uuid)] {
            assert_eq!(known_of_in(dir.path(), number, uuid), None, "{number}");
        }
    }
}
