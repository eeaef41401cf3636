//! Submitting requests, and what their answers may be.

use super::{Attempts, Check, Owner, Request, Submitted, World};
use crate::content::{Place, fill};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Durability, Lba, VolumeId, ZeroMode};
use flagstone_engine::{
    CloneSpec, Completion, IoFault, RollbackSpec, Shrink, SnapshotSpec, StatusExtent, StatusKind,
    SubmitError, VolumeSettings, VolumeSpec,
};

/// Part of a client's write that is offered to the engine.
#[derive(Clone, Copy, Debug)]
pub struct WritePart<'a> {
    /// Volume number.
    pub volume: u32,
    /// Byte offset of `data` in the volume.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
    /// Stamp of the block that holds byte `start`.
    pub stamp: u64,
    /// First byte of the whole write.
    pub start: u64,
    /// When it counts as done.
    pub durability: Durability,
}

/// The bytes of a write of `len` bytes at `start` whose first block carries `stamp`.
#[must_use]
pub fn payload(volume: u32, start: u64, len: u64, stamp: u64) -> Vec<u8> {
    let block = BLOCK_SIZE as u64;
    let first = start / block;
    let blocks = (start + len).div_ceil(block) - first;
    let mut bytes = vec![0; (blocks * block) as usize];
    for (b, bytes) in (0..).zip(bytes.chunks_exact_mut(BLOCK_SIZE)) {
        fill(stamp + b, Place { volume, lba: first + b }, bytes);
    }
    let skip = (start - first * block) as usize;
    bytes.drain(..skip);
    bytes.truncate(len as usize);
    bytes
}

impl World {
    /// Offers part of a write; returns the bytes taken.
    pub fn write(&mut self, owner: Owner, part: WritePart<'_>) -> Check<Submitted<u64>> {
        let tag = self.peek_tag();
        let WritePart { volume, offset, data, stamp, start, durability } = part;
        let engine = self.engine.as_mut().expect("the process lives");
        let arena = &mut self.arena;
        let taken = match engine.write(arena, tag, VolumeId(volume), offset, data, durability) {
            Ok(taken) => taken as u64,
            Err(error) => {
                self.check_reservation(volume, 1, error)?;
                return self.refused("write", data.len() as u64, error);
            }
        };
        // Whole blocks, or the rest of one block.
        let block = BLOCK_SIZE as u64;
        let whole = offset.is_multiple_of(block) && data.len() as u64 >= block;
        let rest_of_block = (block - offset % block).min(data.len() as u64);
        let right = if whole {
            taken > 0 && taken.is_multiple_of(block) && taken <= data.len() as u64
        } else {
            taken == rest_of_block
        };
        if !right {
            return Err(self.fail(format!("took {taken} of {} bytes at {offset}", data.len())));
        }
        let part = (!whole).then_some(Place { volume, lba: offset / block });
        let op = self.oracle.write(volume, offset, taken, stamp, start / block);
        let durable = durability == Durability::Fua;
        if durable {
            self.oracle.is_fua(op);
        }
        let touched_before = self.own_reads_touched;
        self.enter(owner, Request::Change { op, part, durable, touched_before })?;
        self.log.step(&[1, u64::from(volume), offset, taken, stamp], || {
            format!(
                "write volume {volume} bytes {offset}..{} (block {}..), stamp {}{}",
                offset + taken,
                offset / block,
                stamp + offset / block - start / block,
                if durable { ", FUA" } else { "" }
            )
        });
        Ok(Submitted::Taken(taken))
    }

    /// Offers part of a discard or write-zeroes; returns the bytes taken.
    pub fn zero(
        &mut self,
        owner: Owner,
        volume: u32,
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durability: Durability,
    ) -> Check<Submitted<u64>> {
        let tag = self.peek_tag();
        let engine = self.engine.as_mut().expect("the process lives");
        let answer =
            engine.zero(&mut self.arena, tag, VolumeId(volume), offset, len, mode, durability);
        let taken = match answer {
            Ok(taken) => taken,
            Err(error) => {
                self.check_reservation(volume, len.div_ceil(BLOCK_SIZE as u64), error)?;
                return self.refused("zeroing", len, error);
            }
        };
        let block = BLOCK_SIZE as u64;
        let whole = offset.is_multiple_of(block) && len >= block;
        if taken == 0 || taken > len || (whole && taken % block != 0) {
            return Err(self.fail(format!("zeroed {taken} of {len} bytes at {offset}")));
        }
        let kind =
            if mode == ZeroMode::KeepAllocated { StatusKind::Zero } else { StatusKind::Hole };
        let discard = mode == ZeroMode::Discard;
        let op = self.oracle.zero(volume, offset, taken, kind, discard);
        let durable = durability == Durability::Fua;
        if durable {
            self.oracle.is_fua(op);
        }
        let part = (!whole && !discard).then_some(Place { volume, lba: offset / block });
        let touched_before = self.own_reads_touched;
        self.enter(owner, Request::Change { op, part, durable, touched_before })?;
        self.log.step(&[2, u64::from(volume), offset, taken, mode as u64], || {
            format!(
                "{mode:?} volume {volume} bytes {offset}..{} (block {}..){}",
                offset + taken,
                offset / block,
                if durable { ", FUA" } else { "" }
            )
        });
        Ok(Submitted::Taken(taken))
    }

    /// Submits a read of whole blocks into a buffer of the caller's, who frees it after the
    /// answer if `owner` is not 0.
    pub fn read(
        &mut self,
        owner: Owner,
        volume: u32,
        first: u64,
        buffer: Buffer,
    ) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let blocks = u64::from(buffer.blocks);
        let oldest = self.oracle.begin_read(volume, first, blocks);
        let engine = self.engine.as_mut().expect("the process lives");
        match engine.read(&mut self.arena, tag, VolumeId(volume), Lba(first), buffer) {
            Ok(()) => {}
            Err(error) => return self.refused("read", blocks * BLOCK_SIZE as u64, error),
        }
        let place = Place { volume, lba: first };
        let attempts = vec![Attempts::default(); buffer.blocks as usize];
        self.enter(owner, Request::Read { place, buffer, oldest, attempts })?;
        self.log.step(&[3, u64::from(volume), first, blocks], || {
            format!("read volume {volume} blocks {first}..{}", first + blocks)
        });
        Ok(Submitted::Taken(()))
    }

    /// Submits a flush of some volume.
    pub fn flush(&mut self, owner: Owner) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        // Not by chance: seeds are to do what they did before it mattered which.
        let volumes: Vec<u32> = self.oracle.live_volumes().collect();
        let at = self.log.events() as usize % volumes.len().max(1);
        let volume = volumes.get(at).copied().unwrap_or_default();
        match self.engine().flush(tag, VolumeId(volume)) {
            Ok(()) => {}
            Err(error) => return self.refused("flush", 0, error),
        }
        let op = self.oracle.flush();
        self.enter(owner, Request::Flush(op, volume))?;
        self.log.step(&[4], || format!("flush volume {volume}"));
        Ok(Submitted::Taken(()))
    }

    /// Submits the creation of a volume.
    pub fn create(
        &mut self,
        name: &str,
        size: u64,
        settings: VolumeSettings,
    ) -> Check<Submitted<u32>> {
        let tag = self.peek_tag();
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        let spec = VolumeSpec { uuid, name, size, settings };
        let engine = self.engine.as_mut().expect("the process lives");
        let id = match engine.create_volume(&mut self.arena, tag, &spec) {
            Ok(id) => id.0,
            Err(error) => return self.refused("create", 0, error),
        };
        let op = match self.oracle.create(id, name, uuid, size, settings) {
            Ok(op) => op,
            Err(what) => return Err(self.fail(what)),
        };
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[5, u64::from(id), size], || {
            format!("create volume {id} {name:?} of {size} bytes, {settings:?}")
        });
        Ok(Submitted::Taken(id))
    }

    /// Submits snapshots of those of these volumes of which it is certain what these have.
    pub fn snapshot(&mut self, volumes: &[u32]) -> Check<Submitted<()>> {
        let certain = |volume: &u32| self.oracle.is_certain(*volume);
        let certain: Vec<u32> = volumes.iter().copied().filter(certain).collect();
        let tag = self.peek_tag();
        let named: Vec<(u32, String, [u8; 16])> = certain
            .into_iter()
            .map(|volume| {
                let mut uuid = [0; 16];
                uuid[..8].copy_from_slice(&self.rng.next().to_le_bytes());
                // Some as people call them, who have the volume's name before theirs.
                let name = self.oracle.volume(volume).map_or("", |volume| volume.name.as_str());
                let name = if uuid[1] % 2 == 0 { name.to_owned() } else { volume.to_string() };
                (volume, format!("{name}@{}", uuid[0] % 8), uuid)
            })
            .collect();
        let specs: Vec<SnapshotSpec<'_>> = named
            .iter()
            .map(|(volume, name, uuid)| SnapshotSpec {
                volume: VolumeId(*volume),
                uuid: *uuid,
                name,
            })
            .collect();
        if specs.is_empty() {
            return Ok(Submitted::Taken(()));
        }
        let engine = self.engine.as_mut().expect("the process lives");
        let first = match engine.snapshot_volumes(&mut self.arena, tag, &specs) {
            Ok(first) => first.0,
            Err(error) => return self.refused("snapshot", 0, error),
        };
        let taken: Vec<(u32, u32, String, [u8; 16])> = (first..)
            .zip(&named)
            .map(|(id, (line, name, uuid))| (*line, id, name.clone(), *uuid))
            .collect();
        let op = self.oracle.snapshot(&taken);
        self.enter(0, Request::Volume(op))?;
        self.log
            .step(&[10, u64::from(first), taken.len() as u64], || format!("snapshots {taken:?}"));
        Ok(Submitted::Taken(()))
    }

    /// Submits a clone of a snapshot.
    pub fn clone_snapshot(
        &mut self,
        snapshot: u32,
        name: &str,
        settings: VolumeSettings,
    ) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let uuid = self.uuid();
        let spec = CloneSpec { snapshot: VolumeId(snapshot), uuid, name, settings };
        let engine = self.engine.as_mut().expect("the process lives");
        let id = match engine.clone_volume(&mut self.arena, tag, &spec) {
            Ok(id) => id.0,
            Err(error) => {
                let kept = self.oracle.usage(snapshot).1 * BLOCK_SIZE as u64;
                return self.refused("clone", kept, error);
            }
        };
        let op = match self.oracle.clone_of(snapshot, id, name, uuid, settings) {
            Ok(op) => op,
            Err(what) => return Err(self.fail(what)),
        };
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[11, u64::from(id), u64::from(snapshot)], || {
            format!("clone {id} {name:?} of snapshot {snapshot}, {settings:?}")
        });
        Ok(Submitted::Taken(()))
    }

    /// Submits the rollback of a volume of which it is certain what it has.
    pub fn rollback(&mut self, volume: u32, snapshot: u32, keep: bool) -> Check<Submitted<()>> {
        if !self.oracle.is_certain(volume) {
            return Ok(Submitted::Taken(()));
        }
        let tag = self.peek_tag();
        let uuid = self.uuid();
        let name = format!("{volume}@back{}", uuid[0] % 8);
        let keep = keep.then_some((uuid, name.as_str()));
        let spec = RollbackSpec { volume: VolumeId(volume), snapshot: VolumeId(snapshot), keep };
        let engine = self.engine.as_mut().expect("the process lives");
        let id = match engine.rollback_volume(&mut self.arena, tag, &spec) {
            Ok(id) => id.0,
            Err(error) => {
                let kept = self.oracle.usage(snapshot).1 * BLOCK_SIZE as u64;
                return self.refused("rollback", kept, error);
            }
        };
        self.rollbacks += 1;
        let kept = keep.map(|(uuid, name)| (id - 1, name.to_owned(), uuid));
        let op = match self.oracle.rollback(volume, snapshot, id, kept) {
            Ok(op) => op,
            Err(what) => return Err(self.fail(what)),
        };
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[12, u64::from(id), u64::from(snapshot)], || {
            format!("roll volume {volume} back to {snapshot}, as {id}, keep {keep:?}")
        });
        Ok(Submitted::Taken(()))
    }

    fn uuid(&mut self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        uuid
    }

    /// Submits the deletion of a volume.
    pub fn delete(&mut self, volume: u32) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let engine = self.engine.as_mut().expect("the process lives");
        match engine.delete_volume(&mut self.arena, tag, VolumeId(volume)) {
            Ok(()) => {}
            Err(error) => return self.refused("delete", 0, error),
        }
        let op = self.oracle.delete(volume);
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[6, u64::from(volume)], || format!("delete volume {volume}"));
        Ok(Submitted::Taken(()))
    }

    /// Submits a change of a volume's size.
    pub fn resize(&mut self, volume: u32, size: u64, shrink: Shrink) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let engine = self.engine.as_mut().expect("the process lives");
        match engine.resize_volume(&mut self.arena, tag, VolumeId(volume), size, shrink) {
            Ok(()) => {}
            Err(SubmitError::VolumeHasData { bytes }) => {
                // Nothing under way is about what lies there, so that it is known.
                let due = self.oracle.used_from(volume, size) * BLOCK_SIZE as u64;
                if bytes != due && !self.may_have_failed() {
                    return Err(self.fail(format!(
                        "volume {volume} is said to hold {bytes} bytes beyond {size}, not {due}"
                    )));
                }
                return Ok(Submitted::Refused(SubmitError::VolumeHasData { bytes }));
            }
            // An earlier growth may already be in force although it was not answered yet.
            Err(SubmitError::VolumeSize) if self.oracle.was_grown_beyond(volume, size) => {
                return Ok(Submitted::Refused(SubmitError::VolumeSize));
            }
            Err(error) => return self.refused("resize", 0, error),
        }
        let smaller = size < self.oracle.usable_size(volume);
        let used = self.oracle.used_from(volume, size);
        let op = self.oracle.resize(volume, size);
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[7, u64::from(volume), size], || {
            format!("resize volume {volume} to {size} bytes, {shrink:?}")
        });
        if shrink == Shrink::Unused && used > 0 && !self.may_have_failed() {
            return Err(self.fail(format!("volume {volume} has {used} blocks beyond {size}")));
        }
        if smaller {
            let mut out = Vec::new();
            let engine = self.engine.as_ref().expect("the process lives");
            let beyond = engine.block_status(VolumeId(volume), size, 1, &mut out, 1);
            if beyond != Err(SubmitError::OutOfRange) {
                return Err(self.fail(format!("volume {volume} is used beyond {size}")));
            }
        }
        Ok(Submitted::Taken(()))
    }

    /// A request that was accepted may not have happened.
    fn may_have_failed(&self) -> bool {
        self.device_failed
            || self.unsure
            || self.moved_bad()
            || self.stats.bad_blocks + self.bad_leaves_told > 0
    }

    /// Asks for the block status of a range and checks it.
    pub fn status(
        &mut self,
        volume: u32,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> Check<Vec<StatusExtent>> {
        let mut out = Vec::new();
        let engine = self.engine.as_ref().expect("the process lives");
        match engine.block_status(VolumeId(volume), offset, len, &mut out, extents_max) {
            Ok(()) => {}
            Err(error) => return Err(self.fail(format!("block status refused: {error}"))),
        }
        let told: u64 = out.iter().map(|extent| extent.len).sum();
        let merged = out.windows(2).all(|pair| pair[0].kind != pair[1].kind);
        if out.is_empty() || out.len() > extents_max || told > len || told == 0 || !merged {
            return Err(self.fail(format!("status of {offset}+{len}: malformed extents {out:?}")));
        }
        self.log.step(&[8, u64::from(volume), offset, told], || {
            format!(
                "status volume {volume} bytes {offset}..{}: {} extents",
                offset + told,
                out.len()
            )
        });
        match self.oracle.status(volume, offset, &out) {
            Ok(()) => Ok(out),
            Err(what) => Err(self.fail(what)),
        }
    }

    /// Submits a change of a volume's settings.
    pub fn set(&mut self, volume: u32, settings: VolumeSettings) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let engine = self.engine.as_mut().expect("the process lives");
        match engine.set_volume(&mut self.arena, tag, VolumeId(volume), settings) {
            Ok(()) => {}
            Err(error) => return self.refused("set", 0, error),
        }
        let op = self.oracle.set(volume, settings);
        self.enter(0, Request::Volume(op))?;
        self.log.step(&[11, u64::from(volume), settings.reserved], || {
            format!("volume {volume} is set to {settings:?}")
        });
        Ok(Submitted::Taken(()))
    }

    /// Enlarges a disk by `bytes` bytes, and submits the pool's growth.
    pub fn grow(&mut self, bytes: u64) -> Check<Submitted<()>> {
        let tag = self.peek_tag();
        let devices: Vec<usize> = self.engine().devices().map(|device| device.device).collect();
        let device = self.rng.pick(&devices);
        let bytes = self.disk.enlarge(device, self.disk.bytes(device) + bytes);
        match self.engine().grow(tag, device, bytes) {
            Ok(()) => {}
            // Behind its segments come another's.
            Err(SubmitError::DeviceSize) if devices.len() > 1 || self.stats.disks_removed > 0 => {
                return Ok(Submitted::Refused(SubmitError::DeviceSize));
            }
            Err(error) => return self.refused("grow", bytes, error),
        }
        let Some(geometry) = self.engine().geometry().grown(device, bytes) else {
            return Err(self.fail("grown to nowhere"));
        };
        self.segments.1 = self.segments.1.max(geometry.segments);
        self.enter(0, Request::Grow(geometry.segments))?;
        self.log.step(&[12, bytes], || {
            format!("disk {device} grows to {bytes} bytes, {} segments", geometry.segments)
        });
        Ok(Submitted::Taken(()))
    }

    /// A volume must not be refused what is reserved for it; unless damage keeps the cleaner from
    /// setting segments free, or what was deleted before a disk was to be removed, and made room for
    /// that, is back after a power cut.
    fn check_reservation(&mut self, volume: u32, blocks: u64, error: SubmitError) -> Check {
        let room = self.oracle.reserved_room(volume);
        let damaged = self.moved_bad() || self.disk.is_damaged() || self.device_failed;
        // Nobody is asked whether a disk may fail.
        let damaged = damaged || self.oracle.has_losses();
        let usage = self.engine().usage();
        let overfull = self.engine().devices().any(|device| device.leaving)
            && usage.live + usage.held > usage.capacity;
        if error == SubmitError::NoSpace && room >= blocks && !damaged && !overfull {
            return Err(self.fail(format!(
                "{blocks} blocks of volume {volume} refused as full, but {room} are reserved for it: {usage:?}"
            )));
        }
        Ok(())
    }

    /// Judges a refusal.
    fn refused<T>(&mut self, what: &str, bytes: u64, error: SubmitError) -> Check<Submitted<T>> {
        self.log.step(&[9], || format!("{what} of {bytes} bytes refused: {error}"));
        match error {
            SubmitError::Busy => return Ok(Submitted::Busy),
            SubmitError::Failed if self.device_failed => {}
            SubmitError::NoSpace => {
                self.stats.full += 1;
                let available = self.engine().usage().available;
                // One batch is the most that a single call takes; and a write that makes a leaf may
                // need a segment for its page.
                let segment = self.engine().geometry().shape.data_blocks as usize * BLOCK_SIZE;
                if available >= bytes.max(segment as u64) {
                    return Err(self.fail(format!(
                        "{what} of {bytes} bytes refused as full with {available} bytes available"
                    )));
                }
            }
            SubmitError::ReservationUnbacked { .. } | SubmitError::ReservationSize => {}
            SubmitError::DeviceFailed if self.oracle.has_losses() => {}
            SubmitError::NoVolume | SubmitError::Stopping | SubmitError::VolumeExists => {}
            _ => return Err(self.fail(format!("{what} refused: {error}"))),
        }
        Ok(Submitted::Refused(error))
    }

    /// Judges an answer.
    pub(super) fn completed(&mut self, completion: Completion) -> Check {
        let Completion { tag, result } = completion;
        let Some(slot) = self.leave(tag) else {
            return Err(self.fail(format!("an answer to tag {:#x}, which nobody waits for", tag.0)));
        };
        self.log.step(&[10, tag.0, u64::from(result.is_ok())], || {
            format!("answer {}: {result:?}", describe(&slot.request))
        });
        let disk = matches!(slot.request, Request::Disk(_));
        if result == Err(IoFault::Device) && !self.device_failed && !disk {
            return Err(self.fail("a request failed with the device, which did not fail"));
        }
        if result.is_ok() && self.device_failed && !matches!(slot.request, Request::Read { .. }) {
            return Err(self.fail("a change was acknowledged after the device failed"));
        }
        let durable_answer = match slot.request {
            Request::Read { place, buffer, oldest, attempts } => {
                self.read_completed(place, buffer, &oldest, &attempts, result)?;
                if slot.owner == 0 {
                    self.arena.free(buffer);
                }
                None
            }
            Request::Change { op, part, durable, touched_before } => match result {
                Ok(()) => Some((op, durable)),
                Err(fault) => {
                    self.change_failed(op, part, touched_before, fault)?;
                    None
                }
            },
            Request::Grow(segments) => match result {
                Ok(()) => {
                    self.segments.0 = segments;
                    let geometry = *self.engine().geometry();
                    if geometry.segments < segments {
                        return Err(self.fail(format!("grown to {} segments", geometry.segments)));
                    }
                    self.layout = Some(crate::disk::Layout::new(geometry));
                    None
                }
                Err(IoFault::Device) => None,
                Err(fault) => return Err(self.fail(format!("a growth failed: {fault}"))),
            },
            Request::Disk(change) => {
                self.disk_changed(change, result.is_ok());
                None
            }
            Request::Flush(op, volume) if result == Err(IoFault::Lost) => {
                self.stats.told += 1;
                if let Err(what) = self.oracle.told(volume, op) {
                    return Err(self.fail(what));
                }
                None
            }
            Request::Flush(op, volume) if result.is_ok() => {
                self.oracle.answered_flush(op, volume);
                None
            }
            Request::Flush(op, _) | Request::Volume(op) => match result {
                Ok(()) => Some((op, true)),
                Err(IoFault::Device) => None,
                // A shrink that needs a page which can't be read, or a page more than there is.
                Err(IoFault::NoSpace) if matches!(slot.request, Request::Volume(_)) => None,
                Err(IoFault::BadBlock { .. })
                    if self.bad_leaves_told < self.engine().counters().leaf_pages_bad =>
                {
                    self.bad_leaves_told += 1;
                    None
                }
                Err(fault) => return Err(self.fail(format!("a flush failed: {fault}"))),
            },
        };
        if let Some((op, durable)) = durable_answer {
            self.oracle.answered(op, durable);
        }
        if slot.owner != 0 {
            self.answers.push((slot.owner, result));
        }
        Ok(())
    }

    fn read_completed(
        &mut self,
        place: Place,
        buffer: Buffer,
        oldest: &[u32],
        attempts: &[Attempts],
        result: Result<(), IoFault>,
    ) -> Check {
        match result {
            Ok(()) => {
                let bytes = self.arena.bytes(buffer);
                for ((b, bytes), &oldest) in (0..).zip(bytes.chunks_exact(BLOCK_SIZE)).zip(oldest) {
                    let place = Place { lba: place.lba + b, ..place };
                    if let Err(what) = self.oracle.end_read(place, oldest, 0, bytes) {
                        return Err(self.log.fail(what));
                    }
                }
                Ok(())
            }
            Err(IoFault::BadBlock { lba }) => {
                self.stats.bad_blocks += 1;
                let b = lba.checked_sub(place.lba).map(|b| b as usize);
                let version = b.and_then(|b| oldest.get(b)).copied().unwrap_or(u32::MAX);
                if self.oracle.may_be_lost(Place { lba, ..place }, version) {
                    self.stats.lost += 1;
                    return Ok(());
                }
                let known = b.and_then(|b| attempts.get(b));
                // A block is read once more before it is given up. A failed flush may have dropped what was written.
                if known.is_some_and(|known| known.touched && known.count >= 2)
                    || self.device_failed
                    || self.moved_bad()
                {
                    return Ok(());
                }
                // Or the page that says where it lies could not be read: that is told once.
                if self.bad_leaves_told < self.engine().counters().leaf_pages_bad {
                    self.bad_leaves_told += 1;
                    return Ok(());
                }
                Err(self.fail(format!(
                    "block {lba} of volume {} is reported as damaged, but is not",
                    place.volume
                )))
            }
            Err(fault) => Err(self.fail(format!("a read failed: {fault}"))),
        }
    }

    fn change_failed(
        &mut self,
        op: crate::oracle::OpId,
        part: Option<Place>,
        touched_before: u64,
        fault: IoFault,
    ) -> Check {
        match (fault, part) {
            // Nobody knows whether it happened.
            (IoFault::Device, _) => Ok(()),
            (IoFault::Lost, _) if self.oracle.has_losses() => Ok(()),
            // It was to be written again, and the other disks have no room.
            (IoFault::NoSpace, None) if self.oracle.has_losses() => {
                self.unsure = true;
                Ok(())
            }
            (IoFault::BadBlock { lba }, Some(place))
                if lba == place.lba
                    && self.oracle.may_be_lost(place, self.oracle.oldest_of(place)) =>
            {
                self.oracle.undo(op, place).map_err(|what| self.fail(what))
            }
            // The page that says where its blocks lie could not be read: that is told once.
            (IoFault::BadBlock { .. }, _)
                if self.bad_leaves_told < self.engine().counters().leaf_pages_bad =>
            {
                self.bad_leaves_told += 1;
                self.stats.bad_blocks += 1;
                Ok(())
            }
            (IoFault::BadBlock { lba }, Some(place)) => {
                self.stats.bad_blocks += 1;
                let known = self.own_reads_touched > touched_before
                    || self.device_failed
                    || self.moved_bad();
                if lba != place.lba || !known {
                    return Err(self.fail(format!(
                        "a read-modify-write found block {lba} damaged, but it is not"
                    )));
                }
                self.oracle.undo(op, place).map_err(|what| self.fail(what))
            }
            (IoFault::NoSpace | IoFault::Gone, Some(place)) => {
                self.stats.full += u64::from(fault == IoFault::NoSpace);
                self.oracle.undo(op, place).map_err(|what| self.fail(what))
            }
            _ => Err(self.fail(format!("a request failed: {fault}"))),
        }
    }
}

fn describe(request: &Request) -> String {
    match request {
        Request::Change { op, .. } => format!("to change {op:?}"),
        Request::Flush(op, volume) => format!("to flush {op:?} of volume {volume}"),
        Request::Volume(op) => format!("to volume change {op:?}"),
        Request::Grow(segments) => format!("to grow to {segments} segments"),
        Request::Disk(change) => format!("to change of disks {change:?}"),
        Request::Read { place, buffer, .. } => format!(
            "to read of volume {} blocks {}..{}",
            place.volume,
            place.lba,
            place.lba + u64::from(buffer.blocks)
        ),
    }
}
