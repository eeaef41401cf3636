//! What the kernel tells of its NBD devices in files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::path_of;
use crate::probe::{DeviceNumber, Kernel};

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
    /// Of its volume or snapshot: see [`crate::node::UblkVolume::note`].
    pub(super) note: u64,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
}

/// What the kernel keeps with a device, so that it is known whose it is, and no other volume gets it.
pub(super) fn backend(note: u64) -> String {
    format!("{OURS}{note:016x}")
}

fn note_of(backend: &str) -> Option<u64> {
    u64::from_str_radix(backend.trim_end().strip_prefix(OURS)?, 16).ok()
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

fn known_in(block: &Path, number: u32) -> Option<Known> {
    let of = |attribute: &str| {
        fs::read_to_string(block.join(format!("{NAME}{number}/{attribute}"))).ok()
    };
    let note = note_of(&of("backend")?)?;
    let sectors: u64 = of("size")?.trim().parse().ok()?;
    let read_only = of("ro")?.trim() == "1";
    Some(Known { number, note, size_bytes: sectors << 9, read_only })
}

/// Whether a device with this number is there and connected to something.
pub(super) fn is_taken(number: u32) -> bool {
    Path::new(BLOCK).join(format!("{NAME}{number}/pid")).exists()
}

/// How long the kernel waits for an answer until it looks whether the request is to be sent through another socket.
pub(super) fn set_patience(number: u32, milliseconds: u32) -> io::Result<()> {
    let path = PathBuf::from(BLOCK).join(format!("{NAME}{number}/queue/io_timeout"));
    fs::write(path, milliseconds.to_string())
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
        let make = |name: &str, files: &[(&str, &str)]| {
            fs::create_dir(dir.path().join(name)).unwrap();
            for (file, content) in files {
                fs::write(dir.path().join(name).join(file), content).unwrap();
            }
        };
        let note = 0x0123_4567_89ab_cdef;
        let of = |backend: &'static str| [("backend", backend), ("size", "8\n"), ("ro", "1\n")];
        make("nbd12", &of("flagstone:0123456789abcdef\n"));
        make("nbd3", &of("flagstone:00000000000000ff\n"));
        make("nbd4", &of("image.qcow2\n"));
        make("nbd5", &of("flagstone:xyz\n"));
        make("nbd6", &[("size", "8\n")]);
        make("nbdx", &of("flagstone:00000000000000ff\n"));
        make("vda", &of("flagstone:00000000000000ff\n"));
        let known = |number, note| Known { number, note, size_bytes: 4096, read_only: true };
        assert_eq!(devices_in(dir.path()).unwrap(), [known(3, 255), known(12, note)]);
        assert_eq!(note_of(&backend(note)), Some(note));
        assert_eq!(devices_in(&dir.path().join("none")).unwrap(), []);
    }
}
