//! See `flagstone_fuzz::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("journal"),
    |input: &[u8]| flagstone_fuzz::journal(input)
);
