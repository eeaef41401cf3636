//! The checksum of a block: paid once per 4 KiB written and once per 4 KiB read.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flagstone_block::BLOCK_SIZE;

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    // One block lies in the first cache; a segment of 4 MiB comes from memory.
    for blocks in [1, 32, 1024] {
        let bytes: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|i| ((i * 31) >> 3) as u8).collect();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("crc32 of {blocks} blocks, each its own"), |bencher| {
            bencher.iter(|| {
                let blocks = black_box(&bytes).chunks_exact(BLOCK_SIZE);
                blocks.map(crc32fast::hash).fold(0, |sum, crc| sum ^ crc)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
