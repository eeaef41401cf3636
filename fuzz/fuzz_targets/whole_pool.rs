//! See `flagstone_fuzz::whole_pool`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("whole_pool"),
    |input: &[u8]| flagstone_fuzz::whole_pool(input)
);
