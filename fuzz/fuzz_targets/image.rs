//! See `flagstone_fuzz::image`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("image"),
    |input: &[u8]| flagstone_fuzz::image(input)
);
