//! See `flagstone_fuzz::engine_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("engine_ops"),
    |input: &[u8]| flagstone_fuzz::engine_ops(input)
);
