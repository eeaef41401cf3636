//! A change of the devices under way: one superblock write, with what has to come before and after.

use super::is_free;
use crate::engine::Engine;
use crate::error::IoFault;
use crate::format::device::{DeviceTable, Failure};
use crate::format::superblock::{FLAG_JOINING, Superblock};
use crate::geometry::Geometry;
use crate::limits::USER_STREAMS;
use crate::plant::Plant;
use crate::recover::every_place;
use crate::stream::user_streams;
use crate::token::Token;
use flagstone_block::{Buffers, DeviceCommand, DeviceError, Tag};

/// Places of a superblock on a device.
const PLACES: usize = 5;

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A device has more segments.
    Fit,
    /// There is one more.
    Join,
    /// It takes nothing any more.
    Close,
    /// It takes data again.
    Reopen,
    /// It is no more.
    Remove,
    /// The journal goes on on this device.
    Journal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until nobody else writes a superblock.
    Waiting,
    /// The joining superblock is being written to this place.
    Joining(usize),
    JoiningFlush,
    /// The superblock that makes the change is to be written.
    Deciding,
    Writing,
    /// The superblock of the removed device is being wiped at this place.
    Wiping(usize),
    WipingFlush,
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Who is answered, if anybody is to be.
    tag: Option<Tag>,
    device: usize,
    /// Its size.
    bytes: u64,
    kind: Kind,
    geo: Geometry,
    devices: DeviceTable,
    stage: Stage,
    /// A command of its own is under way.
    busy: bool,
    /// A command of its own failed.
    failed: bool,
}

impl Change {
    pub(super) fn new(
        tag: Option<Tag>,
        (device, bytes): (usize, u64),
        kind: Kind,
        geo: Geometry,
        devices: DeviceTable,
    ) -> Self {
        let stage = Stage::Waiting;
        Self { tag, device, bytes, kind, geo, devices, stage, busy: false, failed: false }
    }

    /// Whether it changes this device.
    pub(super) fn is_about(&self, device: usize) -> bool {
        self.device == device
    }

    /// A device that it is not about has failed.
    pub(super) fn device_failed(&mut self, device: usize, failure: Failure) {
        self.geo = self.geo.failed(device);
        if let Some(Some(row)) = self.devices.0.get_mut(device) {
            row.failed = Some(failure);
        }
    }

    /// Whether the journal must not begin another block.
    pub(crate) fn holds_journal(&self) -> bool {
        self.kind == Kind::Journal && self.stage == Stage::Writing
    }
}

impl Engine {
    /// Takes a change as far as it can go.
    pub(crate) fn advance_change(&mut self, bufs: &mut impl Buffers) {
        let Some(mut change) = self.change.take() else { return };
        let before = change.stage;
        let over = !change.busy && self.step_change(bufs, &mut change);
        self.again |= over || before != change.stage;
        if !over {
            self.change = Some(change);
        }
    }

    /// One step; true if that was the last.
    fn step_change(&mut self, bufs: &mut impl Buffers, change: &mut Change) -> bool {
        match change.stage {
            Stage::Waiting if change.kind == Kind::Join => {
                self.write_place(bufs, change, 0);
                change.stage = Stage::Joining(0);
            }
            Stage::Joining(_) | Stage::JoiningFlush if change.failed => {
                change.tag.into_iter().for_each(|tag| self.complete(tag, Err(IoFault::Device)));
                return true;
            }
            Stage::Joining(place) if place + 1 < PLACES => {
                self.write_place(bufs, change, place + 1);
                change.stage = Stage::Joining(place + 1);
            }
            Stage::Joining(_) => {
                self.flush_own(change);
                change.stage = Stage::JoiningFlush;
            }
            Stage::Waiting | Stage::JoiningFlush => change.stage = Stage::Deciding,
            // A checkpoint has a superblock of its own to write; after it there is room for this.
            Stage::Deciding if self.compaction.is_none() && is_free(&self.super_write) => {
                if change.kind == Kind::Journal {
                    change.geo.journal.from = self.journal.next;
                    if self.planted.has(Plant::JournalForgetsOld) {
                        change.geo.journal.old = change.geo.journal.device;
                    }
                }
                let superblock = Superblock {
                    device: change.geo.journal.device,
                    devices: change.devices,
                    segments: u64::from(change.geo.segments),
                    journal: change.geo.journal,
                    ..self.superblock(0)
                };
                self.begin_superblock(bufs, superblock);
                self.counters.device_changes += 1;
                change.stage = Stage::Writing;
                self.journal.held = change.holds_journal();
            }
            Stage::Writing if self.super_write.take_done() => {
                self.journal.held = false;
                self.apply_change(bufs, change);
                change.tag.take().into_iter().for_each(|tag| self.complete(tag, Ok(())));
                if change.kind != Kind::Remove {
                    return true;
                }
                self.write_place(bufs, change, 0);
                change.stage = Stage::Wiping(0);
            }
            // If it can't be wiped, it is none of ours any more.
            Stage::Wiping(place) if place + 1 < PLACES && !change.failed => {
                self.write_place(bufs, change, place + 1);
                change.stage = Stage::Wiping(place + 1);
            }
            Stage::Wiping(_) => {
                self.flush_own(change);
                change.stage = Stage::WipingFlush;
            }
            Stage::WipingFlush => {
                self.counters.devices_removed += 1;
                self.evacuation.removed(change.device);
                return true;
            }
            _ => {}
        }
        false
    }

    fn apply_change(&mut self, bufs: &mut impl Buffers, change: &Change) {
        self.devices = change.devices;
        match change.kind {
            Kind::Fit | Kind::Join => self.fit_to(change.geo),
            Kind::Close => {
                self.geo = change.geo;
                self.segs.shun(change.device);
            }
            Kind::Reopen => {
                self.fit_to(change.geo);
                self.segs.reopen(change.device);
            }
            Kind::Remove => {
                self.geo = change.geo;
                self.segs.forget(change.device);
                self.flush.forget(change.device);
                // A pool that has become small has fewer streams.
                for stream in user_streams(&self.geo)..USER_STREAMS {
                    self.seal_open(bufs, stream);
                }
            }
            Kind::Journal => {
                self.geo.journal = change.geo.journal;
                self.segs.set_primary(change.device);
                self.want_copies();
            }
        }
        self.slab.grow(&self.geo);
        self.space.epoch += 1;
        self.evacuation.changed();
        self.look_for_leaving();
    }

    /// Writes one place of a joining superblock, or wipes it.
    fn write_place(&mut self, bufs: &mut impl Buffers, change: &mut Change, place: usize) {
        let offset = every_place(change.bytes).nth(place).unwrap_or_default();
        let buffer = self.change_buffer;
        if change.kind == Kind::Remove {
            bufs.bytes_mut(buffer).fill(0);
        } else {
            let superblock = Superblock {
                device: change.device as u32,
                devices: change.devices,
                segments: u64::from(change.geo.segments),
                flags: FLAG_JOINING,
                ..self.superblock(0)
            };
            superblock.encode(offset, bufs.bytes_mut(buffer));
        }
        change.busy = true;
        self.emit_to(change.device, Token::Change, DeviceCommand::Write { offset, buffer });
    }

    fn flush_own(&mut self, change: &mut Change) {
        change.busy = true;
        self.emit_to(change.device, Token::Change, DeviceCommand::Flush);
    }

    /// A command of the change has ended. Its failure is no failure of the pool: the device is not
    /// part of it yet, or not any more.
    pub(crate) fn change_io_done(&mut self, result: Result<(), DeviceError>) {
        if let Some(change) = &mut self.change {
            change.busy = false;
            change.failed |= result.is_err();
        }
    }

    /// After a device failure.
    pub(crate) fn fail_change(&mut self) {
        if self.change.is_some_and(|change| change.busy) {
            return;
        }
        if let Some(tag) = self.change.take().and_then(|change| change.tag) {
            self.complete(tag, Err(IoFault::Device));
        }
    }

    pub(crate) fn release_change(&mut self, bufs: &mut impl Buffers) {
        bufs.free(self.change_buffer);
    }
}
