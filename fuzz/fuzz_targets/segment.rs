//! See `flagstone_fuzz::segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("segment"),
    |input: &[u8]| flagstone_fuzz::segment(input)
);
