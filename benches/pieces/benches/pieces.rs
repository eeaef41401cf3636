//! Times every piece: `cargo bench -p flagstone-pieces [-- NAME]`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn pieces(criterion: &mut Criterion) {
    for piece in flagstone_pieces::pieces() {
        let (what, of) = piece.name.split_once(": ").expect("a name says what it is a piece of");
        let mut group = criterion.benchmark_group(what);
        group.throughput(Throughput::Elements(piece.per_run));
        // Made only if it is asked for.
        let mut run = None;
        group.bench_function(of, |bencher| bencher.iter(run.get_or_insert_with(piece.make)));
        group.finish();
    }
}

criterion_group!(benches, pieces);
criterion_main!(benches);
