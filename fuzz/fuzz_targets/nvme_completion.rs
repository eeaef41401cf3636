//! See `flagstone_fuzz::nvme_completion`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flagstone_fuzz::seeds::write_if_asked("nvme_completion"),
    |input: &[u8]| flagstone_fuzz::nvme_completion(input)
);
