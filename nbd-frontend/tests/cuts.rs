//! Any bytes, in any cut: no panic, bounded appetite, the same result.

use flagstone_nbd::Style;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{encode, fuzz_handshake, fuzz_transmission};
use proptest::collection::vec;
use proptest::prelude::*;

/// Options that are nearly right, so that the parsers behind the magic are reached.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        vec(any::<u8>(), 0..40),
        Just(Vec::new()),
        ("[a-z]{0,4}|vol|read-only", vec(any::<u16>(), 0..5))
            .prop_map(|(name, wanted)| encode::info_data(&name, &wanted)),
        ("vol|read-only|x", vec("base:(allocation)?|x:y|", 0..4)).prop_map(|(name, queries)| {
            let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
            encode::meta_data(&name, &queries)
        }),
        (10_usize..70_000).prop_map(|len| vec![5; len]),
    ];
    (0_u32..14, data, prop::option::weighted(0.1, (0_usize..40, any::<u8>()))).prop_map(
        |(option, data, damage)| {
            let mut bytes = Vec::new();
            encode::option(&mut bytes, option, &data);
            if let Some((at, value)) = damage
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = value;
            }
            bytes
        },
    )
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![0_u64..9000, Just(1 << 25), any::<u64>()];
    let offset = prop_oneof![0_u64..100_000, (1_u64 << 30) - 5000..(1 << 30) + 5000, any::<u64>()];
    let style = prop_oneof![Just(Style::Structured), Just(Style::Extended)];
    let flags = prop_oneof![3 => 0_u16..64, 1 => any::<u16>()];
    (style, flags, 0_u16..10, any::<u64>(), offset, len, 0_usize..9000).prop_map(
        |(style, flags, kind, cookie, offset, len, payload)| {
            let mut bytes = Vec::new();
            if kind == CMD_WRITE {
                encode::write(&mut bytes, style, flags, cookie, offset, &vec![3; payload]);
            } else {
                encode::request(&mut bytes, style, flags, kind, cookie, offset, len);
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn handshake_of_noise(data in vec(any::<u8>(), 0..200)) {
        fuzz_handshake(&data);
    }

    #[test]
    fn handshake_of_options(seed: u8, flags in 0_u32..5, options in vec(option(), 0..8)) {
        let mut data = vec![seed];
        data.extend_from_slice(&flags.to_be_bytes());
        data.extend(options.concat());
        fuzz_handshake(&data);
    }

    #[test]
    fn transmission_of_noise(data in vec(any::<u8>(), 0..200)) {
        fuzz_transmission(&data);
    }

    #[test]
    fn transmission_of_requests(seed: u8, kind: u8, requests in vec(request(), 0..20)) {
        let mut data = vec![seed, kind];
        data.extend(requests.concat());
        fuzz_transmission(&data);
    }
}
