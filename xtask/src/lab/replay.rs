//! `cargo xtask lab replay`: the image that a power cut could have left of a disk whose writes were
//! recorded.
//!
//! The power fails just before an entry of the log. What stands before the last flush is there, and
//! so are writes with FUA; of the rest, by seed, some is lost: whole writes, or pieces of them, each
//! for itself, as a disk tears them. A write that was not answered when a flush was sent, but done
//! before it, counts as flushed: an image never lacks what a disk had promised to keep.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::Trouble;
use super::writes::{Entry, Log};

/// What share of the unflushed writes is kept, in percent: from nothing to everything, because each
/// kind of loss finds its own bugs. The seed chooses.
const KEPT: [u64; 5] = [0, 10, 50, 90, 100];

#[derive(Debug, Default)]
struct Cut {
    /// Entries before it; all, if not given.
    at: Option<usize>,
    /// Entries that are there whatever happens.
    from: usize,
    seed: u64,
    /// The size of what a disk keeps or loses as a whole; whole writes, if not given.
    torn_bytes: Option<u64>,
    reorder: bool,
    ignore_flushes: bool,
}

/// What became of the pieces of the writes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    kept: usize,
    lost: usize,
}

/// The command, with what stands behind `replay`.
pub fn run(args: &[&str]) -> Result<(), Trouble> {
    let Some((&log, rest)) = args.split_first() else {
        return Err(Trouble::Usage("replay needs a log".to_owned()));
    };
    let (mut list, mut base, mut out, mut cut) = (false, None, None, Cut::default());
    let mut args = rest.iter().copied();
    while let Some(arg) = args.next() {
        let mut value =
            || args.next().ok_or_else(|| Trouble::Usage(format!("{arg} needs a value")));
        match arg {
            "--list" => list = true,
            "--base" => base = Some(PathBuf::from(value()?)),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--at" => cut.at = Some(number(arg, value()?)? as usize),
            "--from" => cut.from = number(arg, value()?)? as usize,
            "--seed" => cut.seed = number(arg, value()?)?,
            "--torn" => match number(arg, value()?)? {
                bytes @ (512 | 4096) => cut.torn_bytes = Some(bytes),
                _ => return Err(Trouble::Usage("--torn is 512 or 4096".to_owned())),
            },
            "--reorder" => cut.reorder = true,
            "--ignore-flushes" => cut.ignore_flushes = true,
            _ => return Err(Trouble::Usage(format!("replay has no {arg:?}"))),
        }
    }
    let log = Log::open(Path::new(log))?;
    if list {
        let mut out = std::io::stdout().lock();
        for (index, entry) in log.entries.iter().enumerate() {
            if writeln!(out, "{index} {}", entry.describe()).is_err() {
                // Whoever reads has seen enough.
                break;
            }
        }
        return Ok(());
    }
    let (Some(base), Some(out)) = (base, out) else {
        return Err(Trouble::Usage("replay needs --list, or --base and --out".to_owned()));
    };
    let end = cut.at.unwrap_or(log.entries.len());
    if end > log.entries.len() {
        let why = format!("--at {end}: the log has {} entries", log.entries.len());
        return Err(Trouble::Usage(why));
    }
    let failed = |path: &Path, error| Trouble::Failed(format!("{}: {error}", path.display()));
    // A copy of an image that nobody may write to must be one that we may.
    let _ = fs::remove_file(&out);
    fs::copy(&base, &out).map_err(|error| failed(&base, error))?;
    let image = File::options().write(true).open(&out).map_err(|error| failed(&out, error))?;
    let tally = apply(&log, &cut, end, &image).map_err(|error| failed(&out, error))?;
    let Tally { kept, lost } = tally;
    println!("cut before entry {end} of {}: {kept} pieces kept, {lost} lost", log.entries.len());
    Ok(())
}

fn number(name: &str, text: &str) -> Result<u64, Trouble> {
    text.parse().map_err(|_| Trouble::Usage(format!("{name} needs a number, not {text:?}")))
}

/// Writes to `image` what is there of the first `end` entries.
fn apply(log: &Log, cut: &Cut, end: usize, image: &File) -> std::io::Result<Tally> {
    let mut random = Random(cut.seed);
    let kept = KEPT[random.below(KEPT.len() as u64) as usize];
    let entries = &log.entries[..end];
    let flush = entries.iter().rposition(Entry::is_flush).filter(|_| !cut.ignore_flushes);
    let is_durable = |index: usize| {
        index < cut.from
            || flush.is_some_and(|flush| index < flush)
            || (entries[index].is_forced() && !cut.ignore_flushes)
    };
    let mut order: Vec<_> = (0..end).collect();
    if cut.reorder {
        // No write passes one that is durable: an older one would come to lie over it.
        for run in order.chunk_by_mut(|&a, &b| !is_durable(a) && !is_durable(b)) {
            random.shuffle(run);
        }
    }
    let mut tally = Tally::default();
    let mut bytes = Vec::new();
    for index in order {
        let entry = &entries[index];
        let durable = is_durable(index);
        let mut at = 0;
        while at < entry.length {
            // Pieces lie where the disk has them, not where the write begins.
            let to = match cut.torn_bytes {
                Some(unit) if !durable => {
                    let end = ((entry.offset + at) / unit + 1) * unit - entry.offset;
                    end.min(entry.length)
                }
                _ => entry.length,
            };
            if durable || random.below(100) < kept {
                tally.kept += 1;
                bytes.resize((to - at) as usize, 0);
                log.read(entry, at, &mut bytes)?;
                image.write_all_at(&bytes, entry.offset + at)?;
            } else {
                tally.lost += 1;
            }
            at = to;
        }
    }
    Ok(tally)
}

/// SplitMix64: a seed makes the same image everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::log;
    use super::*;

    const SECTOR: usize = 512;

    /// The first byte of each of four sectors, which began as zeroes, for many seeds.
    fn images(name: &str, entries: &[(u64, u64, u8)], cut: impl Fn(u64) -> Cut) -> Vec<[u8; 4]> {
        let path = log(name, entries);
        let found = Log::open(&path).unwrap();
        let out = path.with_extension("out");
        let images = (0..200).map(|seed| {
            fs::write(&out, [0; 4 * SECTOR]).unwrap();
            let image = File::options().write(true).open(&out).unwrap();
            apply(&found, &cut(seed), found.entries.len(), &image).unwrap();
            let bytes = fs::read(&out).unwrap();
            [0, 1, 2, 3].map(|sector| bytes[sector * SECTOR])
        });
        let images = images.collect();
        fs::remove_file(path).unwrap();
        fs::remove_file(out).unwrap();
        images
    }

    #[test]
    fn what_was_flushed_or_forced_is_kept_and_the_rest_may_be_lost() {
        let entries = [(0, 0, 1), (0, 1, 0), (1, 2, 2), (2, 0, 3), (3, 0, 4)];
        let found = images("kept", &entries, |seed| Cut { seed, ..Cut::default() });
        assert!(found.iter().all(|image| image[0] == 1 && image[1] == 2));
        for rest in [[0, 0], [3, 0], [0, 4], [3, 4]] {
            assert!(found.iter().any(|image| image[2..] == rest), "{rest:?} of {found:?}");
        }
    }

    #[test]
    fn a_disk_that_lies_loses_all() {
        let entries = [(0, 0, 1), (1, 2, 2), (0, 1, 0)];
        let lying = |seed| Cut { seed, ignore_flushes: true, ..Cut::default() };
        assert!(images("lies", &entries, lying).contains(&[0; 4]));
        let later = |seed| Cut { from: 1, ..lying(seed) };
        assert!(images("later", &entries, later).iter().all(|image| image[0] == 1));
    }

    #[test]
    fn reordered_writes_stay_between_durable_ones() {
        let entries = [(0, 0, 1), (0, 0, 2), (1, 0, 1), (1, 2, 9), (0, 0, 3)];
        let reordered = |seed| Cut { seed, reorder: true, ..Cut::default() };
        let found = images("order", &entries, reordered);
        assert!(found.iter().all(|image| image[1] == 9), "nothing older lies over what was forced");
        for first in [0, 1, 2, 3] {
            assert!(found.iter().any(|image| image[0] == first), "{first} of {found:?}");
        }
    }
}
