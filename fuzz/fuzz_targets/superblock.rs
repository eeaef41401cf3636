//! See `flagstone_fuzz::superblock`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("superblock"),
    |input: &[u8]| flagstone_fuzz::superblock(input)
);
