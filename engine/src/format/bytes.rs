//! Little-endian fields at fixed offsets of a metadata block.
//!
//! Every accessor is called with offsets below the length of the slice that its caller checked
//! once; the fields themselves are untrusted and are range-checked where they are used.

pub(crate) fn get_u16(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(crate) fn get_u32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// `bytes` low-order bytes as an unsigned number: 40- and 48-bit addresses, 24-bit counts.
fn get_uint(b: &[u8], at: usize, bytes: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes].copy_from_slice(&b[at..at + bytes]);
    u64::from_le_bytes(wide)
}

pub(crate) fn get_u24(b: &[u8], at: usize) -> u32 {
    get_uint(b, at, 3) as u32
}

pub(crate) fn get_u40(b: &[u8], at: usize) -> u64 {
    get_uint(b, at, 5)
}

pub(crate) fn get_u48(b: &[u8], at: usize) -> u64 {
    get_uint(b, at, 6)
}

pub(crate) fn get_u64(b: &[u8], at: usize) -> u64 {
    get_uint(b, at, 8)
}

pub(crate) fn put_u16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

pub(crate) fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

pub(crate) fn put_u24(b: &mut [u8], at: usize, v: u32) {
    debug_assert!(v < 1 << 24);
    b[at..at + 3].copy_from_slice(&v.to_le_bytes()[..3]);
}

pub(crate) fn put_u40(b: &mut [u8], at: usize, v: u64) {
    debug_assert!(v < 1 << 40);
    b[at..at + 5].copy_from_slice(&v.to_le_bytes()[..5]);
}

pub(crate) fn put_u48(b: &mut [u8], at: usize, v: u64) {
    debug_assert!(v < 1 << 48);
    b[at..at + 6].copy_from_slice(&v.to_le_bytes()[..6]);
}

pub(crate) fn put_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}
