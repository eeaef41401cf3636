//! What a crash leaves of the writes that no flush covers.

use super::{Command, Disk, Layout, Pending, merged, store};
use crate::content::Block;
use crate::rng::Rng;
use std::collections::BTreeMap;

/// How the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The process ends; what completed stays with the disk.
    Kill,
    /// The power goes.
    Power,
}

/// Which pending writes a power cut spares. Chance alone seldom hits the one write that matters,
/// so several ways to choose take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashStyle {
    /// Each write on its own.
    Each {
        /// Writes kept whole, of a hundred.
        keep: u32,
        /// Writes torn, of a hundred of the rest.
        torn: u32,
    },
    /// All but a few.
    AllBut(u64),
    /// Only a few.
    Only(u64),
    /// By the part of the disk: of a hundred, how many of the superblocks', the journal's and
    /// the segments' writes are kept.
    ByArea([u32; 3]),
    /// By the disk: one keeps everything and the others lose it, or the other way round.
    ByDisk {
        /// Counted among those there are.
        one: u64,
        /// Whether that one keeps it.
        keeps: bool,
    },
    /// In order of completion up to some write, which is torn.
    Prefix,
}

impl CrashStyle {
    /// Any of them.
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.below(7) {
            0 => Self::Each { keep: rng.pick(&[0, 10, 50, 90, 97]), torn: rng.pick(&[0, 30, 100]) },
            1 => Self::AllBut(rng.between(1, 3)),
            2 => Self::Only(rng.between(0, 3)),
            3 | 4 => {
                let mut any = || rng.pick(&[0, 50, 95, 100, 100]);
                Self::ByArea([any(), any(), any()])
            }
            5 => Self::ByDisk { one: rng.below(4), keeps: rng.one_in(2) },
            _ => Self::Prefix,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

impl Disk {
    /// Stops the machine: commands in flight are never heard of again. `layout` is what
    /// [`CrashStyle::ByArea`] goes by.
    pub fn crash(&mut self, kind: CrashKind, style: CrashStyle, layout: &Layout) {
        for command in std::mem::take(&mut self.in_flight) {
            match command.command {
                Command::Write { first, blocks, .. } => self.write_part(first, &blocks),
                // The other half of the time nothing of it had been done.
                Command::Discard { first, count } if self.rng.one_in(2) => {
                    self.discard_blocks(first, count);
                }
                _ => {}
            }
        }
        if kind == CrashKind::Power {
            self.cut_power(style, layout);
        }
    }

    fn cut_power(&mut self, style: CrashStyle, layout: &Layout) {
        let pending = std::mem::take(&mut self.pending);
        let fates = self.fates(&pending, style, layout);
        // Between flushes a disk may write in any order; usually the last write of a place wins.
        let any_order = self.rng.one_in(4);
        for (block, Pending { durable, writes }) in pending {
            self.current[block as usize] = self.survivor(durable, &writes, &fates, any_order);
        }
    }

    fn survivor(
        &mut self,
        durable: Option<Block>,
        writes: &[(u64, Block)],
        fates: &BTreeMap<u64, Fate>,
        any_order: bool,
    ) -> Option<Block> {
        let mut writes: Vec<&(u64, Block)> = writes.iter().collect();
        if any_order && writes.len() > 1 {
            for i in (1..writes.len()).rev() {
                writes.swap(i, self.rng.below(i as u64 + 1) as usize);
            }
        }
        let mut result = durable;
        for (seq, bytes) in writes {
            let mask = match fates[seq] {
                Fate::Lost => continue,
                Fate::Kept => 0xff,
                Fate::Torn if self.rng.one_in(2) => ((1u32 << self.rng.below(9)) - 1) as u8,
                Fate::Torn => self.rng.next() as u8,
            };
            if mask != 0 {
                result = Some(merged(result.as_ref(), bytes, mask));
            }
        }
        result
    }

    fn fates(
        &mut self,
        pending: &BTreeMap<u32, Pending>,
        style: CrashStyle,
        layout: &Layout,
    ) -> BTreeMap<u64, Fate> {
        // One block of each command tells its area.
        let mut commands: BTreeMap<u64, u32> = BTreeMap::new();
        for (&block, writes) in pending {
            for (seq, _) in &writes.writes {
                commands.entry(*seq).or_insert(block);
            }
        }
        let count = commands.len() as u64;
        let (exception, rest, few) = match style {
            CrashStyle::AllBut(few) => (Fate::Lost, Fate::Kept, few),
            CrashStyle::Only(few) => (Fate::Kept, Fate::Lost, few),
            _ => (Fate::Kept, Fate::Lost, 0),
        };
        let exceptions: Vec<u64> = (0..few).map(|_| self.rng.below(count.max(1))).collect();
        let cut = self.rng.below(count + 1);
        let mut fates = BTreeMap::new();
        for (i, (seq, block)) in (0u64..).zip(commands) {
            let fate = match style {
                CrashStyle::Each { keep, torn } => {
                    if self.rng.percent(keep) {
                        Fate::Kept
                    } else if self.rng.percent(torn) {
                        Fate::Torn
                    } else {
                        Fate::Lost
                    }
                }
                CrashStyle::AllBut(_) | CrashStyle::Only(_) => {
                    if exceptions.contains(&i) && self.rng.one_in(3) {
                        Fate::Torn
                    } else if exceptions.contains(&i) {
                        exception
                    } else {
                        rest
                    }
                }
                CrashStyle::ByArea(keep) => {
                    let area = layout.area_index(block);
                    if self.rng.percent(keep[area]) { Fate::Kept } else { Fate::Lost }
                }
                CrashStyle::ByDisk { one, keeps } => {
                    let disks = self.disks();
                    let is_one = disks[one as usize % disks.len()] == store::split(block).0;
                    if is_one == keeps { Fate::Kept } else { Fate::Lost }
                }
                CrashStyle::Prefix => match i.cmp(&cut) {
                    std::cmp::Ordering::Less => Fate::Kept,
                    std::cmp::Ordering::Equal => Fate::Torn,
                    std::cmp::Ordering::Greater => Fate::Lost,
                },
            };
            fates.insert(seq, fate);
        }
        fates
    }
}
