//! See `flagstone_fuzz::nbd_transmission`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("nbd_transmission"),
    |input: &[u8]| flagstone_fuzz::nbd_transmission(input)
);
