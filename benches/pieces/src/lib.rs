//! Every hot piece of the data path by itself.
//!
//! A [`Piece`] is made once and run many times. The same pieces are timed
//! (`cargo bench -p flagstone-pieces`, criterion) and have their instructions counted
//! (`cargo xtask instructions`), which the machine's noise does not move: CI compares these with
//! `instructions.tsv` beside this crate's manifest.

mod checksum;
mod cleaner;
mod codec;
mod format;
mod maps;
mod requests;
mod world;

/// Something the data path does, ready to be measured.
pub struct Piece {
    /// What it is called in tables, and in `instructions.tsv`.
    pub name: &'static str,
    /// So many of what the name says are done per run.
    pub per_run: u64,
    /// Runs that instructions are counted over: some dozen milliseconds.
    pub runs: u64,
    /// Does what need not be measured.
    pub make: fn() -> Run,
}

/// One run of a piece.
pub type Run = Box<dyn FnMut()>;

/// All of them, in the order of a request's way.
#[must_use]
pub fn pieces() -> Vec<Piece> {
    let lists = [
        codec::pieces(),
        checksum::pieces(),
        format::pieces(),
        requests::pieces(),
        maps::pieces(),
        cleaner::pieces(),
    ];
    lists.into_iter().flatten().collect()
}
