//! Requests: sent to the engine and told to the model, answered and compared.

use super::Run;
use super::model::{Content, Existence, Op, Volume, fill};
use crate::arena::Arena;
use crate::input::Input;
use crate::trace::say;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers as _, Durability, Lba, Tag, VolumeId, ZeroMode};
use flagstone_engine::limits::VOLUME_BYTES;
use flagstone_engine::{Engine, IoFault, Shrink, StatusKind, SubmitError, VolumeSpec};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks that one request for zeroes covers at most: the model looks at each.
const ZERO_BLOCKS: u64 = 2000;
/// Volumes at a time.
const VOLUMES: usize = 6;
const NAMES: [&str; 5] = ["a", "b", "another volume", "\u{fc}", "filler"];
/// In blocks; the last is 1 TiB.
const SIZES: [u64; 8] = [1, 8, 511, 512, 600, 4096, 1 << 18, 1 << 28];
/// Reads under way at a time.
const READERS: usize = 16;
const SUBMITS_MAX: u32 = 5000;

/// A request that the engine has accepted and not answered.
#[derive(Debug)]
pub(super) enum Pending {
    Change {
        op: Op,
        fua: bool,
        /// Volume and block of a request for part of a block, which can fail by itself.
        part: Option<(u32, u64)>,
    },
    /// A hint about part of a block: changes nothing.
    Nothing,
    Read {
        volume: u32,
        lba: u64,
        buffer: Buffer,
        /// For each block the version that was answered before the read was sent.
        floors: Vec<usize>,
    },
    Flush {
        sent: u64,
    },
    Create {
        op: Op,
        volume: u32,
    },
    Delete {
        op: Op,
        volume: u32,
    },
    Resize {
        op: Op,
        volume: u32,
    },
}

/// A block of a volume: near its beginning, near the border of two map leaves, near its end.
fn place(input: &mut Input<'_>, blocks: u64) -> u64 {
    let lba = match input.u8() % 4 {
        0 => u64::from(input.u8()),
        1 => 500 + u64::from(input.u8()) % 24,
        2 => blocks - 1 - u64::from(input.u8()).min(blocks - 1),
        _ => u64::from(input.u16()),
    };
    lba % blocks
}

fn durability(what: u8) -> Durability {
    if what & 128 != 0 { Durability::Fua } else { Durability::Completed }
}

impl Run {
    /// Submits until the engine accepts or refuses.
    fn submit<T>(
        &mut self,
        mut request: impl FnMut(&mut Engine, &mut Arena, Tag) -> Result<T, SubmitError>,
    ) -> Result<(u64, T), SubmitError> {
        let tag = self.world.tag();
        for _ in 0..SUBMITS_MAX {
            let world = &mut self.world;
            match request(&mut world.engine, &mut world.arena, tag) {
                Ok(value) => return Ok((tag.0, value)),
                Err(SubmitError::Busy) => self.turn(),
                Err(error) => {
                    assert!(self.write_failed || error != SubmitError::Failed, "{error}");
                    return Err(error);
                }
            }
        }
        panic!("busy for ever");
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<(VolumeId, u64)> {
        let which = usize::from(input.u8());
        let volumes = &self.model.volumes;
        let volume = volumes.get(which % volumes.len().max(1))?;
        Some((VolumeId(volume.id), volume.blocks))
    }

    /// A refusal must have its reason.
    fn refused(&self, volume: VolumeId, error: SubmitError) {
        let active = self.model.volume(volume.0).is_some_and(|v| v.existence == Existence::Active);
        match error {
            SubmitError::NoSpace | SubmitError::Failed => {}
            SubmitError::NoVolume => assert!(!active, "{volume:?} is there"),
            error => panic!("{error}"),
        }
    }

    pub(super) fn write(&mut self, what: u8, input: &mut Input<'_>) {
        let Some((volume, blocks)) = self.pick(input) else { return self.create(what, input) };
        let lba = place(input, blocks);
        let count = match input.u8() {
            n @ 0..200 => u64::from(n) % 8 + 1,
            n => u64::from(n) % 56,
        };
        let count = count.clamp(1, blocks - lba);
        let mut data = vec![0; count as usize * BLOCK_SIZE];
        let stamp = self.stamp;
        self.stamp += 64;
        for (i, block) in (stamp..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(block, i);
        }
        let durability = durability(what);
        match self.submit(|e, a, t| e.write(a, t, volume, lba * BLOCK, &data, durability)) {
            Err(error) => self.refused(volume, error),
            Ok((tag, taken)) => {
                assert!(taken > 0 && taken % BLOCK_SIZE == 0 && taken <= data.len());
                let op = self.model.send();
                let blocks = taken / BLOCK_SIZE;
                say!(
                    "op {op}: write {blocks} of {count} blocks at {lba} of {volume:?}, {durability:?}"
                );
                let volume = self.model.volume_mut(volume.0).expect("just picked");
                for i in 0..(taken / BLOCK_SIZE) as u32 {
                    volume.put(lba + u64::from(i), op, Content::Stamp(stamp + i));
                }
                self.change(tag, op, durability, None);
            }
        }
    }

    fn change(&mut self, tag: u64, op: Op, durability: Durability, part: Option<(u32, u64)>) {
        let fua = durability == Durability::Fua;
        self.pending.insert(tag, Pending::Change { op, fua, part });
    }

    /// Tells the model that `bytes` of one block change.
    fn change_part(
        &mut self,
        tag: u64,
        volume: VolumeId,
        offset: u64,
        bytes: &[u8],
        durability: Durability,
    ) {
        let (lba, from) = (offset / BLOCK, (offset % BLOCK) as usize);
        let op = self.model.send();
        let len = bytes.len();
        say!(
            "op {op}: change {len} bytes of block {lba} of {volume:?} from {from}, {durability:?}"
        );
        let model = self.model.volume_mut(volume.0).expect("just picked");
        let mut block = model.latest(lba).bytes();
        block[from..from + bytes.len()].copy_from_slice(bytes);
        model.put(lba, op, Content::Bytes(block.into()));
        self.change(tag, op, durability, Some((volume.0, lba)));
    }

    pub(super) fn write_part(&mut self, what: u8, input: &mut Input<'_>) {
        let Some((volume, blocks)) = self.pick(input) else { return };
        let (lba, from) = (place(input, blocks), u64::from(input.u16()) % BLOCK);
        let len = 1 + u64::from(input.u16()) % (BLOCK - 1).min(2 * BLOCK - from);
        let end = (lba * BLOCK + from + len).min(blocks * BLOCK);
        let offset = lba * BLOCK + from;
        let data = vec![self.stamp as u8 | 1; (end - offset) as usize];
        self.stamp += 3;
        let durability = durability(what);
        match self.submit(|e, a, t| e.write(a, t, volume, offset, &data, durability)) {
            Err(error) => self.refused(volume, error),
            Ok((tag, taken)) => {
                assert_eq!(taken as u64, (end - offset).min(BLOCK - from));
                self.change_part(tag, volume, offset, &data[..taken], durability);
            }
        }
    }

    pub(super) fn zero(&mut self, what: u8, input: &mut Input<'_>) {
        let Some((volume, blocks)) = self.pick(input) else { return };
        let mode = match what >> 4 & 3 {
            0 => ZeroMode::Discard,
            1 => ZeroMode::KeepAllocated,
            _ => ZeroMode::MayUnmap,
        };
        let (lba, shape) = (place(input, blocks), input.u8());
        let count = match shape % 4 {
            0 => 1 + u64::from(shape >> 4),
            1 => u64::from(input.u8()) * 8,
            2 => u64::from(input.u16()) % ZERO_BLOCKS,
            _ => 1,
        };
        let skew = if shape & 8 != 0 { u64::from(input.u16()) } else { 0 };
        let offset = lba * BLOCK + skew % BLOCK;
        let len = (count.max(1) * BLOCK - skew % 77).min(blocks * BLOCK - offset);
        let durability = durability(what);
        match self.submit(|e, a, t| e.zero(a, t, volume, offset, len, mode, durability)) {
            Err(error) => self.refused(volume, error),
            Ok((tag, taken)) if !offset.is_multiple_of(BLOCK) || len < BLOCK => {
                assert_eq!(taken, len.min(BLOCK - offset % BLOCK));
                if mode == ZeroMode::Discard {
                    self.pending.insert(tag, Pending::Nothing);
                } else {
                    self.change_part(tag, volume, offset, &vec![0; taken as usize], durability);
                }
            }
            Ok((tag, taken)) => {
                assert!(taken > 0 && taken % BLOCK == 0 && taken <= len);
                let op = self.model.send();
                let blocks = taken / BLOCK;
                say!(
                    "op {op}: zero {blocks} blocks at {lba} of {volume:?}, {mode:?}, {durability:?}"
                );
                let model = self.model.volume_mut(volume.0).expect("just picked");
                for i in 0..taken / BLOCK {
                    model.put(lba + i, op, Content::Zero);
                }
                self.change(tag, op, durability, None);
            }
        }
    }

    pub(super) fn read(&mut self, input: &mut Input<'_>) {
        let Some((volume, blocks)) = self.pick(input) else { return };
        let lba = place(input, blocks);
        let count = (1 + u64::from(input.u8()) % 40).min(blocks - lba) as u32;
        let readers = self.pending.values().filter(|p| matches!(p, Pending::Read { .. })).count();
        if readers >= READERS {
            self.finish();
        }
        let buffer = self.world.arena.alloc(count).expect("room for some readers");
        let submitted = self.submit(|e, a, t| e.read(a, t, volume, Lba(lba), buffer));
        match submitted {
            Err(error) => {
                self.world.arena.free(buffer);
                self.refused(volume, error);
            }
            Ok((tag, ())) => {
                let model = self.model.volume(volume.0).expect("just picked");
                let floor = |lba| {
                    let cell = model.cells.get(&lba);
                    cell.map_or(0, |cell| cell.newest(|op| self.model.is_acknowledged(op)))
                };
                let floors = (lba..lba + u64::from(count)).map(floor).collect();
                let read = Pending::Read { volume: volume.0, lba, buffer, floors };
                self.pending.insert(tag, read);
            }
        }
    }

    pub(super) fn flush(&mut self) {
        if let Ok((tag, ())) = self.submit(|e, _, t| e.flush(t, VolumeId(0))) {
            let sent = self.model.tick();
            say!("flush");
            self.pending.insert(tag, Pending::Flush { sent });
        }
    }

    pub(super) fn create(&mut self, what: u8, input: &mut Input<'_>) {
        let name = NAMES[usize::from(what >> 4) % NAMES.len()];
        let blocks = SIZES[usize::from(input.u8()) % SIZES.len()];
        if self.model.volumes.len() >= VOLUMES {
            return;
        }
        let spec =
            VolumeSpec { uuid: [3; 16], name, size: blocks * BLOCK, settings: Default::default() };
        let submitted = self.submit(|e, a, t| e.create_volume(a, t, &spec));
        let same = self.model.volumes.iter().find(|volume| volume.name == name);
        match submitted {
            Ok((tag, id)) => {
                let gone = |v: &Volume| matches!(v.existence, Existence::Deleting(_));
                assert!(same.is_none_or(gone), "{name} was there");
                assert!(self.model.volume(id.0).is_none(), "a number was given twice");
                let op = self.model.send();
                say!("op {op}: create {name} with {blocks} blocks: {id:?}");
                self.model.volumes.push(Volume {
                    id: id.0,
                    name: name.to_owned(),
                    existence: Existence::Creating(op),
                    blocks,
                    growths: Vec::new(),
                    filled: 0,
                    cells: Default::default(),
                });
                self.pending.insert(tag, Pending::Create { op, volume: id.0 });
            }
            Err(SubmitError::VolumeExists) => assert!(same.is_some(), "{name} is not there"),
            Err(SubmitError::NoSpace | SubmitError::Failed) => {}
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn delete(&mut self, what: u8, input: &mut Input<'_>) {
        // Volumes must live long enough to matter.
        if what & 64 != 0 {
            return self.flush();
        }
        let Some((volume, _)) = self.pick(input) else { return };
        let existence = self.model.volume(volume.0).map(|model| model.existence);
        if let Some(Existence::Creating(_)) = existence {
            // It may exist already, but then two requests about it would be under way.
            return self.turn();
        }
        match self.submit(|e, a, t| e.delete_volume(a, t, volume)) {
            Err(error) => self.refused(volume, error),
            Ok((tag, ())) => {
                let op = self.model.send();
                say!("op {op}: delete {volume:?}");
                let model = self.model.volume_mut(volume.0).expect("just picked");
                assert_eq!(model.existence, Existence::Active);
                model.existence = Existence::Deleting(op);
                self.pending.insert(tag, Pending::Delete { op, volume: volume.0 });
            }
        }
    }

    pub(super) fn resize(&mut self, input: &mut Input<'_>) {
        let Some((volume, _)) = self.pick(input) else { return };
        let last = self.model.volume(volume.0).expect("just picked").blocks_last();
        let blocks = last + u64::from(input.u8()) * 3;
        let size = blocks * BLOCK;
        match self.submit(|e, a, t| e.resize_volume(a, t, volume, size, Shrink::Never)) {
            Err(SubmitError::VolumeSize) => assert!(blocks * BLOCK > VOLUME_BYTES),
            Err(error) => self.refused(volume, error),
            Ok((tag, ())) => {
                let op = self.model.send();
                say!("op {op}: grow {volume:?} to {blocks} blocks");
                let model = self.model.volume_mut(volume.0).expect("just picked");
                model.growths.push((op, blocks));
                self.pending.insert(tag, Pending::Resize { op, volume: volume.0 });
            }
        }
    }

    pub(super) fn block_status(&mut self, input: &mut Input<'_>) {
        let Some((volume, blocks)) = self.pick(input) else { return };
        let model = self.model.volume(volume.0).expect("just picked");
        if model.existence != Existence::Active {
            return;
        }
        let (offset, max) = (place(input, blocks) * BLOCK, usize::from(input.u8()) % 20);
        let len = blocks * BLOCK - offset;
        let mut extents = Vec::new();
        let told = self.world.engine.block_status(volume, offset, len, &mut extents, max);
        told.expect("inside the volume");
        assert!(!extents.is_empty() && extents.len() <= max.max(1));
        let mut at = offset;
        for extent in &extents {
            assert!(extent.len > 0 && extent.len <= len - (at - offset));
            let range = at / BLOCK..(at + extent.len) / BLOCK;
            for (lba, cell) in model.cells.range(range) {
                // While something is under way the map may be before or after it.
                let settled = cell.versions.iter().all(|(op, _)| self.model.is_acknowledged(*op));
                let data = extent.kind == StatusKind::Data;
                assert!(data || !settled || cell.latest().is(&[0; BLOCK_SIZE]), "block {lba}");
            }
            at += extent.len;
        }
        let usage = self.world.engine.usage();
        // A full pool whose metadata has just grown by a segment has less than it holds until the next checkpoint.
        let fits = usage.live + usage.available <= usage.capacity;
        assert!(fits || usage.available == 0, "{usage:?}");
    }

    /// Takes the engine's answers.
    pub(super) fn deliver(&mut self) {
        while let Some(completion) = self.world.engine.next_completion() {
            let pending = self.pending.remove(&completion.tag.0);
            let pending = pending.expect("an answer to nothing, or the second one");
            self.answered(pending, completion.result);
        }
    }

    fn answered(&mut self, pending: Pending, result: Result<(), IoFault>) {
        say!("answer {result:?} to {pending:?}");
        if let Err(fault) = result {
            match fault {
                IoFault::Device => assert!(self.write_failed || self.read_failed),
                IoFault::BadBlock { .. } => assert!(self.read_failed, "{fault}: {pending:?}"),
                _ => {}
            }
        }
        match (pending, result) {
            (Pending::Change { op, fua, .. }, Ok(())) => self.model.acknowledge(op, fua),
            (
                Pending::Change { op, part: Some((volume, lba)), .. },
                Err(IoFault::NoSpace | IoFault::BadBlock { .. } | IoFault::Gone),
            ) => self.model.retract(volume, lba, op),
            (Pending::Change { .. }, Err(fault)) => {
                assert!(matches!(fault, IoFault::Device | IoFault::Gone), "{fault}");
            }
            (Pending::Nothing, _) => {}
            (Pending::Read { volume, lba, buffer, floors }, result) => {
                if result.is_ok() {
                    self.compare(volume, lba, buffer, &floors);
                }
                self.world.arena.free(buffer);
            }
            (Pending::Flush { sent }, Ok(())) => self.model.flushed(sent),
            (Pending::Create { op, volume }, Ok(())) => {
                self.model.acknowledge(op, true);
                let model = self.model.volume_mut(volume).expect("nobody else removes it");
                model.existence = Existence::Active;
            }
            (Pending::Delete { op, volume }, Ok(())) => {
                self.model.acknowledge(op, true);
                self.model.volumes.retain(|other| other.id != volume);
            }
            (Pending::Resize { op, volume }, Ok(())) => {
                self.model.acknowledge(op, true);
                if let Some(model) = self.model.volume_mut(volume)
                    && let Some(i) = model.growths.iter().position(|(other, _)| *other == op)
                {
                    model.blocks = model.growths[i].1;
                    model.growths.drain(..=i);
                }
            }
            (
                Pending::Flush { .. }
                | Pending::Create { .. }
                | Pending::Delete { .. }
                | Pending::Resize { .. },
                Err(fault),
            ) => assert!(matches!(fault, IoFault::Device | IoFault::Gone), "{fault}"),
        }
    }

    /// A read returns what was there when it was sent, or something written since.
    fn compare(&self, volume: u32, lba: u64, buffer: Buffer, floors: &[usize]) {
        let Some(model) = self.model.volume(volume) else { return };
        let bytes = self.world.arena.bytes(buffer);
        for ((lba, floor), bytes) in (lba..).zip(floors).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            let good = match model.cells.get(&lba) {
                None => model.initial(lba).is(bytes),
                Some(cell) => (*floor..=cell.versions.len()).any(|v| cell.version(v).is(bytes)),
            };
            assert!(good, "{} block {lba} is none of what it could be", model.name);
        }
    }
}
