//! See `flagstone_fuzz::text_input`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("text_input"),
    |input: &[u8]| flagstone_fuzz::text_input(input)
);
