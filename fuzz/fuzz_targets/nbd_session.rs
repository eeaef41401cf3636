//! See `flagstone_fuzz::nbd_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("nbd_session"),
    |input: &[u8]| flagstone_fuzz::nbd_session(input)
);
