//! What was sent to a volume and what was promised about it, to be compared with what is found
//! after a crash.
//!
//! Each block has its versions in the order in which they were sent. A block never has two requests
//! in flight, so that order is also the order of their effect. The rules:
//! 1. A block is, whole, one of its versions: never a mixture, never something else's content.
//! 2. No version is older than the newest one that was promised to survive.
//! 3. Prefix order: if a write survived, so did every write acknowledged before it was sent.
//!
//! Two clocks. *Ticks* order the client's own events, sending and being answered. *Positions*
//! count the commands that a recorded disk has taken; they say which promises hold at a power cut.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::BLOCK;
use crate::random::Random;

/// The clock that orders the events of all connections, and the numbers of operations.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A number that was never given before, larger than all given before.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What a version holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes: never written, discarded, or written as zeroes.
    Zeroes,
    /// The block that [`stamp`] makes of the operation's number.
    Stamp,
    /// The version before, with these bytes taken from the operation's own stamp.
    Patch {
        /// First byte in the block.
        from: u16,
        /// End.
        to: u16,
    },
}

/// One version of a block.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// The operation that made it: also the tick at which that was sent.
    pub sent: u64,
    /// What it holds.
    pub content: Content,
    /// The tick at which it was acknowledged.
    pub acknowledged: Option<u64>,
    /// The position from which a promise of its own, by FUA, holds.
    pub forced: Option<u64>,
}

const FIRST: Version =
    Version { sent: 0, content: Content::Zeroes, acknowledged: Some(0), forced: Some(0) };

/// A flush that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// The tick at which it was sent.
    pub sent: u64,
    /// The position at which its acknowledgement had been seen.
    pub position: u64,
}

/// The content that operation `sent` gives to block `lba`.
#[must_use]
pub fn stamp(sent: u64, lba: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    Random::new(sent.wrapping_mul(0x1_0000_0001).wrapping_add(lba)).fill(&mut block[16..]);
    block[..8].copy_from_slice(&sent.to_le_bytes());
    block[8..16].copy_from_slice(&lba.to_le_bytes());
    block
}

/// The versions of a volume's blocks, or of some of them.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    blocks: HashMap<u64, Vec<Version>>,
    flushes: Vec<Flush>,
}

/// Which promises are to be held against what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The process was killed: all that was acknowledged.
    Process,
    /// The power failed when the disk had taken this many commands: what was flushed before.
    Power(u64),
}

impl Ledger {
    /// The versions of a block, oldest first; never empty.
    #[must_use]
    pub fn versions(&self, lba: u64) -> &[Version] {
        self.blocks.get(&lba).map_or(std::slice::from_ref(&FIRST), Vec::as_slice)
    }

    /// A new version of a block was sent.
    pub fn sent(&mut self, lba: u64, sent: u64, content: Content) {
        let version = Version { sent, content, acknowledged: None, forced: None };
        self.blocks.entry(lba).or_insert_with(|| vec![FIRST]).push(version);
    }

    /// The newest version of a block was acknowledged.
    ///
    /// # Panics
    /// When nothing was sent to that block.
    pub fn acknowledged(&mut self, lba: u64, tick: u64, forced: Option<u64>) {
        let version = self.blocks.get_mut(&lba).and_then(|v| v.last_mut()).expect("sent before");
        version.acknowledged = Some(tick);
        version.forced = forced;
    }

    /// A flush was acknowledged.
    pub fn flushed(&mut self, flush: Flush) {
        self.flushes.push(flush);
    }

    /// How many versions and acknowledged flushes it knows.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.blocks.values().map(|versions| versions.len() - 1).sum(), self.flushes.len())
    }

    /// Adds what another ledger knows of other blocks.
    pub fn merge(&mut self, other: Self) {
        self.blocks.extend(other.blocks);
        self.flushes.extend(other.flushes);
    }

    /// Takes out the part that knows the blocks which `owns` names.
    pub fn take(&mut self, owns: impl Fn(u64) -> bool) -> Self {
        let blocks = self.blocks.extract_if(|lba, _| owns(*lba)).collect();
        Self { blocks, flushes: Vec::new() }
    }

    /// What a version holds.
    #[must_use]
    pub fn content(&self, lba: u64, version: usize) -> Vec<u8> {
        let versions = self.versions(lba);
        let Version { sent, content, .. } = versions[version];
        match content {
            Content::Zeroes => vec![0; BLOCK],
            Content::Stamp => stamp(sent, lba),
            Content::Patch { from, to } => {
                let mut block = self.content(lba, version - 1);
                let range = usize::from(from)..usize::from(to);
                block[range.clone()].copy_from_slice(&stamp(sent, lba)[range]);
                block
            }
        }
    }

    /// Compares `found`, a whole volume, with what may be there.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn verify(&self, found: &[u8], cut: Cut) -> Result<Survivors, String> {
        let promises = Promises::new(&self.flushes, cut);
        let mut survivors = Survivors::default();
        // The last write that certainly survived, and the first acknowledged one that is lost.
        let mut last_kept = (0, 0);
        let mut first_lost = (u64::MAX, 0);
        for (lba, block) in (0..).zip(found.chunks_exact(BLOCK)) {
            let versions = self.versions(lba);
            let (oldest, newest) = self.matching(lba, block)?;
            let promised = versions.iter().rposition(|version| promises.hold(version)).unwrap_or(0);
            if newest < promised {
                return Err(format!(
                    "block {lba} is at version {newest} ({:?}), but version {promised} was \
                     promised ({:?}) at {cut:?}",
                    versions[newest], versions[promised]
                ));
            }
            last_kept = last_kept.max((versions[oldest].sent, lba));
            for version in &versions[newest + 1..] {
                survivors.lost += 1;
                if let Some(tick) = version.acknowledged {
                    first_lost = first_lost.min((tick, lba));
                }
            }
            survivors.versions.push(newest);
        }
        if first_lost.0 < last_kept.0 {
            return Err(format!(
                "the write acknowledged at tick {} to block {} is lost, but the one sent at tick {} \
                 to block {} is there",
                first_lost.0, first_lost.1, last_kept.0, last_kept.1
            ));
        }
        Ok(survivors)
    }

    /// The oldest and the newest version that `block` may be; more than one only for zeroes.
    fn matching(&self, lba: u64, block: &[u8]) -> Result<(usize, usize), String> {
        let versions = self.versions(lba);
        let zeroes = block.iter().all(|&byte| byte == 0);
        // Cheap first: a stamp and its patches begin with the number of the stamp.
        let number = u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
        let mut base = Content::Zeroes;
        let mut base_sent = 0;
        let mut range: Option<(usize, usize)> = None;
        for (index, version) in versions.iter().enumerate() {
            if !matches!(version.content, Content::Patch { .. }) {
                (base, base_sent) = (version.content, version.sent);
            }
            let may_be = match base {
                Content::Stamp => number == base_sent,
                _ => number == 0,
            };
            let same = match version.content {
                Content::Zeroes => zeroes,
                _ => may_be && self.content(lba, index) == block,
            };
            if same {
                range = Some((range.map_or(index, |(first, _)| first), index));
            }
        }
        range.ok_or_else(|| {
            let newest = self.content(lba, versions.len() - 1);
            let differing = newest.iter().zip(block).position(|(a, b)| a != b);
            format!(
                "block {lba} is none of its {} versions; it begins with {:x?}; it differs from the \
                 newest ({:?}) from byte {differing:?}",
                versions.len(),
                &block[..16],
                versions[versions.len() - 1],
            )
        })
    }

    /// All of it as text, for whoever verifies in another process.
    #[must_use]
    pub fn to_text(&self) -> String {
        let or_none = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        let mut text = String::new();
        for (lba, versions) in &self.blocks {
            for version in versions {
                let (acknowledged, forced) =
                    (or_none(version.acknowledged), or_none(version.forced));
                let content = match version.content {
                    Content::Zeroes => "zeroes".to_owned(),
                    Content::Stamp => "stamp".to_owned(),
                    Content::Patch { from, to } => format!("{from}..{to}"),
                };
                text += &format!("{lba} {} {content} {acknowledged} {forced}\n", version.sent);
            }
        }
        for flush in &self.flushes {
            text += &format!("flush {} {}\n", flush.sent, flush.position);
        }
        text
    }

    /// What [`Self::to_text`] wrote; `None` if it is anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let or_none = |word: &str| match word {
            "-" => Some(None),
            _ => word.parse().ok().map(Some),
        };
        let mut ledger = Self::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["flush", sent, position] => {
                    let (sent, position) = (sent.parse().ok()?, position.parse().ok()?);
                    ledger.flushes.push(Flush { sent, position });
                }
                [lba, sent, content, acknowledged, forced] => {
                    let content = match content {
                        "zeroes" => Content::Zeroes,
                        "stamp" => Content::Stamp,
                        patch => {
                            let (from, to) = patch.split_once("..")?;
                            Content::Patch { from: from.parse().ok()?, to: to.parse().ok()? }
                        }
                    };
                    let version = Version {
                        sent: sent.parse().ok()?,
                        content,
                        acknowledged: or_none(acknowledged)?,
                        forced: or_none(forced)?,
                    };
                    ledger.blocks.entry(lba.parse().ok()?).or_default().push(version);
                }
                _ => return None,
            }
        }
        Some(ledger)
    }

    /// Forgets what did not survive: the versions found are the present now, and were promised.
    pub fn settle(&mut self, survivors: &Survivors) {
        self.flushes.clear();
        for (lba, &newest) in (0..).zip(&survivors.versions) {
            if let Some(versions) = self.blocks.get_mut(&lba) {
                versions.truncate(newest + 1);
                // What a patch rests on stays.
                let patch = |version: &Version| matches!(version.content, Content::Patch { .. });
                let first = versions.iter().rposition(|version| !patch(version)).unwrap_or(0);
                versions.drain(..first);
                for version in versions {
                    version.acknowledged = Some(version.sent);
                    version.forced = Some(0);
                }
            }
        }
    }
}

/// What a crash left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survivors {
    /// The newest version that each block may be.
    pub versions: Vec<usize>,
    /// Versions newer than those: sent, and gone.
    pub lost: usize,
}

/// The promises that hold at a cut.
struct Promises {
    cut: Cut,
    /// The last flush, by the tick at which it was sent, that was acknowledged before the cut.
    flushed: u64,
}

impl Promises {
    fn new(flushes: &[Flush], cut: Cut) -> Self {
        let before = |flush: &&Flush| matches!(cut, Cut::Power(at) if flush.position <= at);
        let flushed = flushes.iter().filter(before).map(|flush| flush.sent).max().unwrap_or(0);
        Self { cut, flushed }
    }

    fn hold(&self, version: &Version) -> bool {
        let Some(acknowledged) = version.acknowledged else { return false };
        match self.cut {
            Cut::Process => true,
            Cut::Power(at) => {
                acknowledged < self.flushed || version.forced.is_some_and(|position| position <= at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Block 0: written at 1, acknowledged at 2, patched at 5; block 1: written at 3, acknowledged
    /// at 4. A flush was sent at 6 and acknowledged at position 10.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.sent(0, 1, Content::Stamp);
        ledger.acknowledged(0, 2, None);
        ledger.sent(1, 3, Content::Stamp);
        ledger.acknowledged(1, 4, None);
        ledger.sent(0, 5, Content::Patch { from: 512, to: 600 });
        ledger.flushed(Flush { sent: 6, position: 10 });
        ledger
    }

    fn volume(ledger: &Ledger, versions: [usize; 2]) -> Vec<u8> {
        [ledger.content(0, versions[0]), ledger.content(1, versions[1])].concat()
    }

    #[test]
    fn the_newest_version_is_found() {
        let ledger = ledger();
        let found = ledger.verify(&volume(&ledger, [2, 1]), Cut::Process).unwrap();
        assert_eq!(found, Survivors { versions: vec![2, 1], lost: 0 });
        let found = ledger.verify(&volume(&ledger, [1, 1]), Cut::Process).unwrap();
        assert_eq!(found, Survivors { versions: vec![1, 1], lost: 1 });
    }

    #[test]
    fn an_acknowledged_write_must_outlive_the_process() {
        let ledger = ledger();
        ledger.verify(&volume(&ledger, [2, 0]), Cut::Process).unwrap_err();
        ledger.verify(&volume(&ledger, [0, 1]), Cut::Process).unwrap_err();
    }

    #[test]
    fn a_flushed_write_must_outlive_the_power() {
        let ledger = ledger();
        ledger.verify(&volume(&ledger, [1, 0]), Cut::Power(9)).unwrap();
        ledger.verify(&volume(&ledger, [1, 0]), Cut::Power(10)).unwrap_err();
        ledger.verify(&volume(&ledger, [1, 1]), Cut::Power(10)).unwrap();
    }

    #[test]
    fn what_survives_is_a_prefix() {
        let ledger = ledger();
        ledger.verify(&volume(&ledger, [0, 1]), Cut::Power(9)).unwrap_err();
        ledger.verify(&volume(&ledger, [0, 0]), Cut::Power(9)).unwrap();
    }

    #[test]
    fn a_mixture_is_no_version() {
        let ledger = ledger();
        let mut torn = volume(&ledger, [1, 1]);
        torn[..512].fill(0);
        ledger.verify(&torn, Cut::Power(0)).unwrap_err();
        let mut flipped = volume(&ledger, [2, 1]);
        flipped[4000] ^= 1;
        ledger.verify(&flipped, Cut::Power(0)).unwrap_err();
    }

    #[test]
    fn text_has_all_of_it() {
        let ledger = ledger();
        let text = ledger.to_text();
        let copy = Ledger::from_text(&text).unwrap();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(lines(&copy.to_text()), lines(&text));
        let found = volume(&ledger, [1, 1]);
        assert_eq!(
            copy.verify(&found, Cut::Power(10)).unwrap(),
            ledger.verify(&found, Cut::Power(10)).unwrap()
        );
        assert!(Ledger::from_text("flush 1\n").is_none());
    }

    #[test]
    fn settled_versions_are_the_new_beginning() {
        let mut ledger = ledger();
        let found = volume(&ledger, [2, 1]);
        let survivors = ledger.verify(&found, Cut::Process).unwrap();
        ledger.settle(&survivors);
        assert_eq!(ledger.versions(0).len(), 2, "the patch and what it rests on");
        let survivors = ledger.verify(&found, Cut::Process).unwrap();
        assert_eq!(survivors.lost, 0);
    }
}
