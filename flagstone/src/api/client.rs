//! The command line's side of the control API: one request per connection, with time limits.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::clones::{CreateClone, Rollback, RolledBack};
use super::devices::{AddDevice, DeviceAction};
use super::diff::{DiffPage, DiffQuery};
use super::errors::{ApiError, ErrorBody};
use super::kernel_nbd::{AttachNbd, NbdAttached, NbdAttachedList};
use super::scrub::{Scrub, StartScrub};
use super::snapshots::{CreateSnapshots, SnapshotInfo, SnapshotList, SnapshotQuery};
use super::types::{
    CreateVolume, ListQuery, PAGE_VOLUMES, Pool, PoolList, Shrink, Status, UpdateVolume, Volume,
    VolumeList,
};
use super::ublk::{AttachVolume, Attached, AttachedList};
use super::usage::Usage;
use crate::exit::Exit;

/// Longest wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer: a change is durable when answered, and a disk can be slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer that is read, in bytes: a million volumes.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon answers at {}: {}. Is it running? Start one with `flagstone up` or \
         `flagstone serve`, or name its control socket with --api-socket PATH or FLAGSTONE_API",
        socket.display(), missing(socket, source)
    )]
    Unreachable {
        /// The control socket.
        socket: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The socket can't be opened.
    #[error(
        "{}: permission denied; the control socket belongs to the user who runs the daemon \
         (try sudo)",
        socket.display()
    )]
    Denied {
        /// The control socket.
        socket: PathBuf,
    },
    /// The daemon took too long.
    #[error("the daemon at {} did not answer within {limit:?}", socket.display())]
    Timeout {
        /// The control socket.
        socket: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection broke, or does not speak HTTP.
    #[error("the connection to {} broke: {source}", socket.display())]
    Broken {
        /// The control socket.
        socket: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what this version understands.
    #[error("{} gave an answer that can't be understood (HTTP status {status})", socket.display())]
    Answer {
        /// The control socket.
        socket: PathBuf,
        /// The HTTP status.
        status: StatusCode,
    },
    /// The daemon says no.
    #[error("{0}")]
    Refused(#[from] ApiError),
}

fn missing(socket: &Path, source: &io::Error) -> &'static str {
    let is_socket = || std::fs::metadata(socket).is_ok_and(|meta| meta.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        _ if !is_socket() => "that is not a socket",
        _ => "the socket is there but nobody listens on it",
    }
}

impl ClientError {
    /// The exit status of a command that failed so.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Refused(error) => error.code.exit(),
            _ => Exit::Failure,
        }
    }
}

/// A daemon's control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Makes a volume; the flag says whether it is new.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub async fn create_volume(
        &self,
        request: &CreateVolume,
    ) -> Result<(Volume, bool), ClientError> {
        let (status, volume) = self.call(Method::POST, "/v1/volumes", Some(request)).await?;
        Ok((volume, status == StatusCode::CREATED))
    }

    /// Every volume, by name, page by page.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        let (mut volumes, mut query) = (Vec::new(), ListQuery::default());
        loop {
            let page = self.volume_page(&query).await?;
            volumes.extend(page.volumes);
            query.after = page.next;
            if query.after.is_none() {
                return Ok(volumes);
            }
        }
    }

    /// One page of the volumes. The name in `query` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volume_page(&self, query: &ListQuery) -> Result<VolumeList, ClientError> {
        let mut path = format!("/v1/volumes?limit={}", query.limit.unwrap_or(PAGE_VOLUMES));
        if let Some(after) = &query.after {
            path.push_str("&after=");
            path.push_str(after);
        }
        Ok(self.get(&path).await?.1)
    }

    /// One volume. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn volume(&self, name: &str) -> Result<Volume, ClientError> {
        Ok(self.get(&format!("/v1/volumes/{name}")).await?.1)
    }

    /// Changes a volume's size. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn resize_volume(
        &self,
        name: &str,
        size_bytes: u64,
        shrink: Option<Shrink>,
    ) -> Result<Volume, ClientError> {
        let path = format!("/v1/volumes/{name}");
        let size_bytes = Some(size_bytes);
        let request = UpdateVolume { size_bytes, shrink, ..UpdateVolume::default() };
        Ok(self.call(Method::PATCH, &path, Some(&request)).await?.1)
    }

    /// Changes a volume's settings: `on_full` and `reserved_bytes`. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_volume(
        &self,
        name: &str,
        change: &UpdateVolume,
    ) -> Result<Volume, ClientError> {
        let path = format!("/v1/volumes/{name}");
        Ok(self.call(Method::PATCH, &path, Some(change)).await?.1)
    }

    /// Has a pool take the new space of its device. `uuid` is the pool's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn grow_pool(&self, uuid: &str) -> Result<Pool, ClientError> {
        let path = format!("/v1/pools/{uuid}/grow");
        Ok(self.call(Method::POST, &path, None::<&()>).await?.1)
    }

    /// Adds a device to a pool. `uuid` is the pool's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_device(&self, uuid: &str, request: &AddDevice) -> Result<Pool, ClientError> {
        let path = format!("/v1/pools/{uuid}/devices");
        Ok(self.call(Method::POST, &path, Some(request)).await?.1)
    }

    /// Empties a device of a pool, or keeps it. Both are meant by their UUIDs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_device(
        &self,
        pool: &str,
        device: &str,
        action: DeviceAction,
    ) -> Result<Pool, ClientError> {
        let path = format!("/v1/pools/{pool}/devices/{device}");
        let (method, path) = match action {
            DeviceAction::Remove => (Method::DELETE, path),
            DeviceAction::Keep => (Method::POST, path + "/keep"),
        };
        Ok(self.call(method, &path, None::<&()>).await?.1)
    }

    /// Begins a scrub of a pool. `uuid` is the pool's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start_scrub(
        &self,
        uuid: &str,
        request: &StartScrub,
    ) -> Result<Scrub, ClientError> {
        let path = format!("/v1/pools/{uuid}/scrub");
        Ok(self.call(Method::POST, &path, Some(request)).await?.1)
    }

    /// A pool's scrub under way, or its last. `uuid` is the pool's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scrub(&self, uuid: &str) -> Result<Scrub, ClientError> {
        Ok(self.get(&format!("/v1/pools/{uuid}/scrub")).await?.1)
    }

    /// Ends a pool's scrub. `uuid` is the pool's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel_scrub(&self, uuid: &str) -> Result<Scrub, ClientError> {
        let path = format!("/v1/pools/{uuid}/scrub");
        Ok(self.call(Method::DELETE, &path, None::<&()>).await?.1)
    }

    /// Deletes a volume, with its `snapshots` or if it has none. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_volume(
        &self,
        name: &str,
        force: bool,
        snapshots: bool,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/volumes/{name}?force={force}&snapshots={snapshots}");
        self.send(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Takes snapshots, all of one instant.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_snapshots(
        &self,
        request: &CreateSnapshots,
    ) -> Result<SnapshotList, ClientError> {
        Ok(self.call(Method::POST, "/v1/snapshots", Some(request)).await?.1)
    }

    /// One page of the snapshots. The names in `query` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshot_page(&self, query: &SnapshotQuery) -> Result<SnapshotList, ClientError> {
        let mut path = format!("/v1/snapshots?limit={}", query.limit.unwrap_or(PAGE_VOLUMES));
        for (field, value) in [("&volume=", &query.volume), ("&after=", &query.after)] {
            if let Some(value) = value {
                path.push_str(field);
                path.push_str(value);
            }
        }
        Ok(self.get(&path).await?.1)
    }

    /// One snapshot. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotInfo, ClientError> {
        Ok(self.get(&format!("/v1/snapshots/{name}")).await?.1)
    }

    /// One page of differences. The names in `query` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn diff(&self, query: &DiffQuery) -> Result<DiffPage, ClientError> {
        let mut path = format!("/v1/diff?newer={}", query.newer);
        let from = query.from.map(|from| from.to_string());
        let limit = query.limit.map(|limit| limit.to_string());
        for (field, value) in [("older", &query.older), ("from", &from), ("limit", &limit)] {
            if let Some(value) = value {
                path.push_str(&format!("&{field}={value}"));
            }
        }
        Ok(self.get(&path).await?.1)
    }

    /// What a volume or snapshot has alone. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn usage(&self, name: &str) -> Result<Usage, ClientError> {
        Ok(self.get(&format!("/v1/usage/{name}")).await?.1)
    }

    /// Makes a volume that has what a snapshot has.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_clone(&self, request: &CreateClone) -> Result<Volume, ClientError> {
        Ok(self.call(Method::POST, "/v1/clones", Some(request)).await?.1)
    }

    /// Rolls a volume back to a snapshot of it. `name`, the snapshot's, must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback(&self, name: &str, how: &Rollback) -> Result<RolledBack, ClientError> {
        let path = format!("/v1/snapshots/{name}/rollback");
        Ok(self.call(Method::POST, &path, Some(how)).await?.1)
    }

    /// Deletes a snapshot. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_snapshot(&self, name: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}?force={force}");
        self.send(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Attaches a volume or snapshot as a block device; the flag says whether it is new.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach(&self, request: &AttachVolume) -> Result<(Attached, bool), ClientError> {
        let (status, attached) = self.call(Method::POST, "/v1/ublk", Some(request)).await?;
        Ok((attached, status == StatusCode::CREATED))
    }

    /// The block devices that Flagstone has made on the daemon's machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attached(&self) -> Result<Vec<Attached>, ClientError> {
        let (_, list): (_, AttachedList) = self.get("/v1/ublk").await?;
        Ok(list.devices)
    }

    /// Takes the block device of a volume or snapshot away. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn detach(&self, name: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/ublk/{name}?force={force}");
        self.send(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Attaches a volume or snapshot to the kernel's NBD client; the flag says whether it is new.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attach_nbd(
        &self,
        request: &AttachNbd,
    ) -> Result<(NbdAttached, bool), ClientError> {
        let (status, attached) = self.call(Method::POST, "/v1/nbd", Some(request)).await?;
        Ok((attached, status == StatusCode::CREATED))
    }

    /// The devices of the kernel's NBD client that Flagstone has made on the daemon's machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn attached_nbd(&self) -> Result<Vec<NbdAttached>, ClientError> {
        let (_, list): (_, NbdAttachedList) = self.get("/v1/nbd").await?;
        Ok(list.devices)
    }

    /// Takes the `/dev/nbdN` of a volume or snapshot away. `name` must have been checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn detach_nbd(&self, name: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/nbd/{name}?force={force}");
        self.send(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Every pool.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pools(&self) -> Result<Vec<Pool>, ClientError> {
        let (_, list): (_, PoolList) = self.get("/v1/pools").await?;
        Ok(list.pools)
    }

    /// The daemon.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        Ok(self.get("/v1/status").await?.1)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<(StatusCode, T), ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: Option<&Q>,
    ) -> Result<(StatusCode, A), ClientError> {
        let body = match request {
            None => Bytes::new(),
            Some(request) => Bytes::from(
                serde_json::to_vec(request).map_err(|source| self.broken(source.into()))?,
            ),
        };
        let (status, body) = self.send(method, path, body).await?;
        let answer = serde_json::from_slice(&body)
            .map_err(|_| ClientError::Answer { socket: self.socket.clone(), status })?;
        Ok((status, answer))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = within(CONNECT_TIMEOUT, self, UnixStream::connect(&self.socket)).await?;
        let stream = stream.map_err(|source| self.connect_error(source))?;
        let (status, body) =
            within(ANSWER_TIMEOUT, self, self.exchange(stream, method, path, body)).await??;
        if status.is_success() {
            return Ok((status, body));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(answer) => Err(ClientError::Refused(answer.error)),
            Err(_) => Err(ClientError::Answer { socket: self.socket.clone(), status }),
        }
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source: hyper::Error| self.broken(source.into());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|source| self.broken(source.into()))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(|source| self.broken(source))?;
            Ok((status, body.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        // The connection moves the bytes and the answer waits for them: both must be polled, and
        // a connection that ends first still leaves the answer to be read.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ended = &mut connection => answer.await,
        }
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), source }
    }

    fn connect_error(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Unreachable { socket, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::Broken { socket, source: source.into() },
        }
    }
}

async fn within<T>(
    limit: Duration,
    client: &Client,
    work: impl Future<Output = T>,
) -> Result<T, ClientError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| ClientError::Timeout { socket: client.socket.clone(), limit })
}
