//! See `flagstone_fuzz::metadata`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("metadata"),
    |input: &[u8]| flagstone_fuzz::metadata(input)
);
