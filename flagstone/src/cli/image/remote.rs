//! The volumes of a daemon, as images want them: its control API for what there is, NBD for the data.

use std::collections::VecDeque;
use std::rc::Rc;

use flagstone_loadgen::{NbdClient, NbdClientError, NbdUri};
use tokio::runtime::Runtime;

use crate::api::client::{Client, ClientError};
use crate::api::diff::{DiffKind, DiffPage, DiffQuery};
use crate::api::errors::ErrorCode;
use crate::api::snapshots::{CreateSnapshots, NewSnapshot, SnapshotInfo, SnapshotQuery};
use crate::api::types::{CreateVolume, Shrink};
use crate::image::copy::{AHEAD_BYTES, AHEAD_REQUESTS, Change, Source, Target};
use crate::image::store::{Changes, SnapshotFacts, Store, VolumeFacts};

/// Zeroes that one request makes at most.
const ZEROES_BYTES: u64 = 1 << 30;

/// Why the daemon does not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    /// Its control API says so.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// Its NBD server does.
    #[error("{name}: {source}")]
    Nbd {
        /// The export.
        name: String,
        /// The reason.
        source: NbdClientError,
    },
    /// It says something that can't be.
    #[error("{name}: the daemon says {what}, which can't be understood")]
    Answer {
        /// What it is about.
        name: String,
        /// What it says.
        what: String,
    },
    /// What is read is not what it was.
    #[error("{name} was deleted meanwhile, and another made of the same name")]
    Replaced {
        /// The volume or snapshot.
        name: String,
    },
}

/// A daemon.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    runtime: Rc<Runtime>,
    client: Client,
    /// Pool that volumes are made in: its path or UUID.
    pool: Option<String>,
}

impl Remote {
    /// The daemon that `client` reaches.
    ///
    /// # Errors
    /// The system gives no runtime.
    pub(super) fn new(client: Client, pool: Option<String>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime: Rc::new(runtime), client, pool })
    }

    fn call<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, RemoteError> {
        Ok(self.runtime.block_on(work)?)
    }

    fn uri(&self, name: &str) -> Result<Option<String>, RemoteError> {
        let uris = match name.contains('@') {
            true => self.call(self.client.snapshot(name))?.uris,
            false => self.call(self.client.volume(name))?.uris,
        };
        Ok(uris.into_iter().next())
    }
}

fn parse_uuid(name: &str, text: &str) -> Result<[u8; 16], RemoteError> {
    let parsed = uuid::Uuid::try_parse(text).map(uuid::Uuid::into_bytes);
    parsed.map_err(|_| RemoteError::Answer { name: name.to_owned(), what: text.to_owned() })
}

fn facts(info: SnapshotInfo) -> Result<SnapshotFacts, RemoteError> {
    let uuid = parse_uuid(&info.name, &info.uuid)?;
    let idle = info.connections == 0;
    Ok(SnapshotFacts { name: info.name, uuid, size_bytes: info.size_bytes, idle })
}

/// Makes an answer that something is not there `None`.
fn found<T>(result: Result<T, RemoteError>, missing: ErrorCode) -> Result<Option<T>, RemoteError> {
    match result {
        Err(RemoteError::Api(ClientError::Refused(error))) if error.code == missing => Ok(None),
        result => result.map(Some),
    }
}

impl Store for Remote {
    type Error = RemoteError;
    type Access = Export;

    fn volume(&self, name: &str) -> Result<Option<VolumeFacts>, RemoteError> {
        let volume = self.call(self.client.volume(name));
        let Some(volume) = found(volume, ErrorCode::VolumeNotFound)? else { return Ok(None) };
        Ok(Some(VolumeFacts {
            uuid: parse_uuid(name, &volume.uuid)?,
            size_bytes: volume.size_bytes,
            empty: volume.mapped_bytes == 0 && volume.kept_bytes == 0,
        }))
    }

    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotFacts>, RemoteError> {
        let mut query = SnapshotQuery { volume: Some(volume.to_owned()), ..Default::default() };
        let mut all = Vec::new();
        loop {
            let page = self.call(self.client.snapshot_page(&query))?;
            for info in page.snapshots {
                all.push(facts(info)?);
            }
            query.after = page.next;
            if query.after.is_none() {
                return Ok(all);
            }
        }
    }

    fn create_volume(&self, name: &str, size_bytes: u64) -> Result<(), RemoteError> {
        let request = CreateVolume {
            name: name.to_owned(),
            size_bytes,
            pool: self.pool.clone(),
            on_full: None,
            reserved_bytes: None,
        };
        self.call(self.client.create_volume(&request)).map(drop)
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<(), RemoteError> {
        let shrink = Some(Shrink::Discard);
        self.call(self.client.resize_volume(name, size_bytes, shrink)).map(drop)
    }

    fn take_snapshot(&self, volume: &str, name: &str, uuid: [u8; 16]) -> Result<(), RemoteError> {
        let uuid = Some(uuid::Uuid::from_bytes(uuid).hyphenated().to_string());
        let new = NewSnapshot { uuid, ..NewSnapshot::new(volume, name) };
        let request = CreateSnapshots { snapshots: vec![new] };
        self.call(self.client.create_snapshots(&request)).map(drop)
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), RemoteError> {
        let deleted = self.call(self.client.delete_snapshot(name, true));
        found(deleted, ErrorCode::SnapshotNotFound).map(drop)
    }

    fn changes(&self, older: Option<&str>, newer: &str) -> Changes<RemoteError> {
        let older = older.map(str::to_owned);
        let query = DiffQuery { older, newer: newer.to_owned(), ..DiffQuery::default() };
        let (remote, extents) = (self.clone(), VecDeque::new());
        Box::new(Pages { remote, query, extents, uuids: None, over: false })
    }

    fn open(&self, name: &str) -> Result<Export, RemoteError> {
        let uri = self.uri(name)?.unwrap_or_default();
        let parsed = uri.parse::<NbdUri>();
        let parsed =
            parsed.map_err(|_| RemoteError::Answer { name: name.to_owned(), what: uri })?;
        let client = NbdClient::connect(&parsed)
            .map_err(|source| RemoteError::Nbd { name: name.to_owned(), source })?;
        Ok(Export { name: name.to_owned(), client, sizes: VecDeque::new(), bytes: 0 })
    }
}

/// Differences, page by page.
struct Pages {
    remote: Remote,
    query: DiffQuery,
    extents: VecDeque<Change>,
    uuids: Option<(Option<String>, String)>,
    over: bool,
}

impl Pages {
    fn fetch(&mut self) -> Result<(), RemoteError> {
        // It ends after an error.
        self.over = true;
        let page = self.remote.call(self.remote.client.diff(&self.query))?;
        let DiffPage { older, newer, extents, next } = page;
        let uuids = (older.map(|older| older.uuid), newer.uuid);
        if self.uuids.as_ref().is_some_and(|before| *before != uuids) {
            return Err(RemoteError::Replaced { name: newer.name });
        }
        self.uuids = Some(uuids);
        self.extents = extents
            .iter()
            .map(|extent| Change {
                offset: extent.offset_bytes,
                length: extent.length_bytes,
                zeroes: extent.kind == DiffKind::Zero,
            })
            .collect();
        if next.is_some() {
            (self.query.from, self.over) = (next, false);
        }
        Ok(())
    }
}

impl Iterator for Pages {
    type Item = Result<Change, RemoteError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.extents.is_empty() && !self.over {
            if let Err(error) = self.fetch() {
                return Some(Err(error));
            }
        }
        self.extents.pop_front().map(Ok)
    }
}

/// A connection to an export. Reads are asked for ahead by the caller; writes are sent ahead here.
#[derive(Debug)]
pub(super) struct Export {
    name: String,
    client: NbdClient,
    /// Bytes of each write that is under way, oldest first.
    sizes: VecDeque<u64>,
    /// Their sum.
    bytes: u64,
}

impl Export {
    fn told<T>(&self, result: Result<T, NbdClientError>) -> Result<T, RemoteError> {
        result.map_err(|source| RemoteError::Nbd { name: self.name.clone(), source })
    }

    /// Waits until another write of `bytes` may be under way, with all others or alone.
    fn make_room(&mut self, bytes: u64) -> Result<(), RemoteError> {
        while let Some(&oldest) = self.sizes.front()
            && (self.sizes.len() >= AHEAD_REQUESTS || self.bytes + bytes > AHEAD_BYTES)
        {
            let taken = self.client.take();
            self.told(taken)?;
            self.sizes.pop_front();
            self.bytes -= oldest;
        }
        self.sizes.push_back(bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Waits for all writes.
    fn settle(&mut self) -> Result<(), RemoteError> {
        while self.sizes.pop_front().is_some() {
            let taken = self.client.take();
            self.told(taken)?;
        }
        self.bytes = 0;
        Ok(())
    }
}

impl Source for Export {
    type Error = RemoteError;

    fn ask(&mut self, offset: u64, length: u32) -> Result<(), RemoteError> {
        let sent = self.client.send_read(offset, length);
        self.told(sent)
    }

    fn take(&mut self) -> Result<Vec<u8>, RemoteError> {
        let taken = self.client.take();
        self.told(taken)
    }
}

impl Target for Export {
    type Error = RemoteError;

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), RemoteError> {
        self.make_room(data.len() as u64)?;
        let sent = self.client.send_write(offset, data);
        self.told(sent)
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), RemoteError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let bytes = (end - at).min(ZEROES_BYTES);
            self.make_room(0)?;
            let sent = self.client.send_zeroes(at, bytes as u32);
            self.told(sent)?;
            at += bytes;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, RemoteError> {
        self.settle()?;
        self.ask(offset, length)?;
        self.take()
    }

    fn flush(&mut self) -> Result<(), RemoteError> {
        self.settle()?;
        let sent = self.client.send_flush();
        self.told(sent)?;
        self.take().map(drop)
    }
}
