//! Inputs to begin with: what a well-behaved peer sends, what a sound pool holds, and one of each
//! kind of change. Written in code, so that they follow the formats.

use crate::fixup::Kind;
use crate::whole_pool::BASES;
use flagstone_nbd::proto::*;
use flagstone_nbd::{Style, testing::encode};

/// Inputs for the target called `name`.
#[must_use]
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "nbd_handshake" => handshakes(),
        "nbd_transmission" => transmissions(),
        "nbd_session" => (0..12).map(|i| scatter(i, 160)).collect(),
        "superblock" => blocks(Kind::Superblock, 200),
        "journal" => blocks(Kind::Journal, 1200),
        "metadata" => blocks(Kind::Page, 1200),
        "segment" => summaries(),
        "whole_pool" => changes(),
        "engine_ops" => (0..64).map(|i| scatter(i, 200)).collect(),
        "api_input" => requests(),
        "text_input" => texts(),
        #[cfg(feature = "product")]
        "image" => crate::image::seeds(),
        #[cfg(feature = "product")]
        "nvme_identify" => crate::nvme::identify_seeds(),
        #[cfg(feature = "product")]
        "nvme_completion" => crate::nvme::completion_seeds(),
        _ => Vec::new(),
    }
}

/// Numbers without a pattern, the same every time.
fn scatter(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..len).map(|_| next()).collect();
    if let Some(first) = bytes.first_mut() {
        *first = seed;
    }
    bytes
}

fn handshakes() -> Vec<Vec<u8>> {
    let start = || {
        let mut bytes = vec![0];
        bytes.extend(encode::client_flags());
        bytes
    };
    let mut all = Vec::new();
    for option in 0..13 {
        let mut bytes = start();
        encode::option(&mut bytes, OPT_STRUCTURED_REPLY, &[]);
        let data = match option {
            OPT_EXPORT_NAME => b"vol".to_vec(),
            OPT_INFO | OPT_GO => encode::info_data("vol", &[INFO_NAME, INFO_BLOCK_SIZE]),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                encode::meta_data("vol", &[BASE_ALLOCATION, "base:", "qemu:x"])
            }
            _ => Vec::new(),
        };
        encode::option(&mut bytes, option, &data);
        encode::option(&mut bytes, OPT_GO, &encode::info_data("read-only", &[]));
        all.push(bytes);
    }
    let mut bytes = start();
    bytes[0] = 200;
    encode::option(&mut bytes, OPT_EXTENDED_HEADERS, &[]);
    encode::option(&mut bytes, OPT_GO, &encode::info_data("", &[]));
    all.push(bytes);
    all
}

fn transmissions() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (kind, style) in [(8, Style::Simple), (9, Style::Structured), (10, Style::Extended)] {
        let mut bytes = vec![3, kind];
        for command in
            [CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS]
        {
            let len = if command == CMD_FLUSH { 0 } else { 4096 };
            encode::request(&mut bytes, style, 0, command, 7, u64::from(len > 0) * 8192, len);
        }
        encode::write(&mut bytes, style, CMD_FLAG_FUA, 8, 5, b"payload");
        encode::write(&mut bytes, style, 0, 9, 1 << 50, b"refused");
        encode::request(&mut bytes, style, 0, CMD_DISC, 0, 0, 0);
        all.push(bytes.clone());
        bytes[1] |= 4;
        all.push(bytes);
    }
    all
}

/// The first bytes of every block of a kind in the pools that damage starts from.
fn blocks(kind: Kind, len: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for base in BASES.iter() {
        for block in base.image.0.iter().flatten().filter(|b| Kind::of(&b[..]) == Some(kind)) {
            let mut bytes = vec![0];
            bytes.extend(&block[..len]);
            all.push(bytes);
        }
    }
    all.dedup();
    all
}

fn summaries() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for base in BASES.iter() {
        let entry_blocks = base.spots.geo.shape.entry_blocks;
        for footer in &base.spots.footers {
            let block = |b: u32| base.image.0[b as usize].as_deref().map_or(&[][..], |b| &b[..]);
            let mut bytes = vec![0];
            bytes.extend(&block(footer.blocks[0])[..80]);
            bytes.extend(&block(footer.blocks[0] - entry_blocks)[..400]);
            all.push(bytes);
        }
    }
    all.truncate(8);
    all
}

/// Each base as it is, and with one change of each kind.
fn changes() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for base in 0..BASES.len() as u8 {
        for steps in [0, 1, 2, 4, 8] {
            all.push(vec![base, steps]);
        }
        for change in 0..12 {
            for class in 0..8 {
                all.push(vec![
                    base,
                    change & 7,
                    change,
                    class,
                    0,
                    0,
                    6,
                    5,
                    4,
                    change,
                    class,
                    1,
                    0,
                    9,
                    4,
                    1,
                ]);
            }
        }
    }
    all
}

fn requests() -> Vec<Vec<u8>> {
    let create = br#"{"name":"new","size_bytes":8192}"#;
    let resize = br#"{"size_bytes":2097152}"#;
    let request = |head: [u8; 3], rest: &[u8]| [&head, rest].concat();
    // A path length that stands for a path of the table: the multiple of 9 above 128, plus it.
    let known = |i: u8| 135 + i;
    let mut all = vec![
        request([0, 0, known(0)], create),
        request([0, 3, known(0)], br#"{"name":"demo","size_bytes":1048576,"pool":"/p"}"#),
        request([0, 1, known(0)], create),
        request([0, 0, known(0)], b"{"),
        request([0, 0, known(0)], br#"{"name":"a@b","size_bytes":1}"#),
        request([1, 0, known(1)], resize),
        request([2, 0, known(1)], b""),
        request([2, 0, known(2)], b""),
        request([2, 0, known(3)], b""),
        request([3, 0, 16], b"/v1/volumes/%2F{}"),
        request([3, 0, 22], b"/v1/volumes/x?force=no{}"),
    ];
    all.extend((0..9).map(|i| request([3, 2, known(i)], b"")));
    all.extend((4..6).map(|method| request([method, 0, known(0)], b"")));
    all
}

fn texts() -> Vec<Vec<u8>> {
    let with = |which: u8, texts: &[&str]| {
        let one = move |text: &&str| [&[which], text.as_bytes()].concat();
        texts.iter().map(one).collect::<Vec<_>>()
    };
    [
        with(0, &["10G", "512 MiB", "4096B", "1.5G", "10GB", "8192P", "0", "7p", "99999999999T"]),
        with(1, &["demo", "pvc-0b7e.1_x", "a@b", ".a", "a b", "z\u{fc}rich", ""]),
        with(
            2,
            &[
                "pool = [\"/dev/sdb\", \"p\"]\nnbd-socket = '/n'\nnbd-listen = \"127.0.0.1\"\n",
                "api-socket = \"/a\"\nmemory = \"512MiB\"\nmax-connections = 64\n",
                "log-level = \"warn,flagstone=debug\"\nlog-format = \"json\"\nmemory = 65536\n",
                "nbd_socket = 3\n[api]\nx = {a = [1, 2]}\n",
            ],
        ),
        with(
            3,
            &[
                "nbd://localhost:1234/disk",
                "nbd://[::1]/a%20b",
                "nbd+unix:///v?x=1&socket=/a%3Fb",
                "nbds://x",
            ],
        ),
        with(4, &["demo\n/run/nbd.sock\n127.0.0.1:10809", "\n/tmp/my dir&x\n[::]:1", "a\n\n::1"]),
    ]
    .concat()
}

/// Writes the seeds of the target called `name` into the folder that the environment variable
/// `FLAGSTONE_FUZZ_SEEDS` names, if it is set, and ends the process. The binaries of the targets
/// do this because instrumented code can't be linked into any other.
pub fn write_if_asked(name: &str) {
    let Some(folder) = std::env::var_os("FLAGSTONE_FUZZ_SEEDS") else { return };
    for (i, seed) in seeds(name).iter().enumerate() {
        let path = std::path::Path::new(&folder).join(format!("seed-{i:03}"));
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("{}: {error}", path.display());
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}
