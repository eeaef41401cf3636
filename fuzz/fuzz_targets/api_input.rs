//! See `flagstone_fuzz::api_input`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("api_input"),
    |input: &[u8]| flagstone_fuzz::api_input(input)
);
