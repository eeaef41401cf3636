//! The API over a real socket, in front of a made-up daemon: what every request is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::backend::{Backend, Created, Reply, Snapshot};
use super::client::{Client, ClientError};
use super::clones::{CreateClone, RolledBack};
use super::devices::{AddDevice, DeviceAction};
use super::diff::{DiffExtent, DiffKind, DiffPage, DiffQuery, DiffSide};
use super::errors::{ApiError, ErrorCode};
use super::kernel_nbd::{AttachNbd, NbdAttached};
use super::routes::{self, Context};
use super::scrub::{RATE_DEFAULT, Scrub, ScrubState, StartScrub};
use super::server::{ApiSocket, BindError};
use super::snapshots::{CreateSnapshots, NewSnapshot, SnapshotInfo, SnapshotQuery};
use super::types::{CreateVolume, OnFull, Pool, PoolState, UpdateVolume, Volume};
use super::ublk::{AttachVolume, Attached};
use super::usage::Usage;
use crate::exit::Exit;
use crate::name::split_snapshot_name;
use crate::node::{NodeStats, ScrubAction, SettingsChange, Shrink};

mod attached;
mod document;

/// Volumes in a map; the one called `busy` has a client.
#[derive(Default)]
struct Fake {
    volumes: Mutex<BTreeMap<String, Volume>>,
    snapshots: Mutex<BTreeMap<String, SnapshotInfo>>,
    /// What rollbacks have kept.
    kept: Mutex<BTreeSet<String>>,
    scrub: Mutex<Scrub>,
    failed: bool,
}

fn volume(name: &str, size_bytes: u64) -> Volume {
    Volume {
        name: name.to_owned(),
        uuid: "00000000-0000-4000-8000-000000000000".to_owned(),
        pool: "/p".to_owned(),
        size_bytes,
        mapped_bytes: 0,
        exclusive_bytes: 0,
        kept_bytes: 0,
        reserved_bytes: 0,
        on_full: OnFull::Wait,
        snapshots: 0,
        cloned_from: None,
        connections: u32::from(name == "busy"),
        io: Default::default(),
        uris: vec![format!("nbd+unix:///{name}?socket=/s")],
    }
}

fn snapshot(name: &str) -> SnapshotInfo {
    SnapshotInfo {
        name: name.to_owned(),
        uuid: "00000000-0000-4000-8000-000000000001".to_owned(),
        pool: "/p".to_owned(),
        size_bytes: 4096,
        mapped_bytes: 0,
        connections: 0,
        uris: vec![format!("nbd+unix:///{name}?socket=/s")],
    }
}

fn answer<T: Send + 'static>(result: Result<T, ApiError>) -> Reply<T> {
    Box::pin(async move { result })
}

impl Backend for Fake {
    fn snapshot(&self, count: usize) -> Reply<Snapshot> {
        let volumes: Vec<_> = self.volumes.lock().unwrap().values().take(count).cloned().collect();
        let pool = Pool {
            uuid: "u".to_owned(),
            path: "/p".to_owned(),
            state: if self.failed { PoolState::Failed } else { PoolState::Running },
            read_only: self.failed,
            reason: None,
            device_bytes: 4,
            devices: Vec::new(),
            capacity_bytes: 3,
            used_bytes: 1,
            free_bytes: 2,
            reserved_bytes: 5,
            debt_bytes: 6,
            log_debt_bytes: 8,
            checkpoints: 2,
            map_bytes: 7,
            warning_percent: Some(75),
            waiting: 1,
            provisioned_bytes: 9,
            volumes: self.volumes.lock().unwrap().len() as u32,
            snapshots: 0,
            direct_io: true,
            segments: 20,
            segments_free: 10,
            written_bytes: 4096,
            moved_bytes: 8192,
            rewritten_bytes: 0,
            scrubs: 1,
            scrub_read_bytes: 4096,
            scrub_findings: 0,
            scrub_repairs: 0,
            discarded_bytes: 0,
            counting: false,
            map_damaged: false,
        };
        let stats = NodeStats { reads: 7, connections_now: 1, ..NodeStats::default() };
        answer(Ok(Snapshot { pools: vec![pool], volumes, stats }))
    }

    fn volumes(&self, after: Option<String>, limit: usize) -> Reply<Vec<Volume>> {
        let volumes = self.volumes.lock().unwrap();
        let behind = |name: &&String| after.as_ref().is_none_or(|after| *name > after);
        let listed = volumes.iter().filter(|(name, _)| behind(name)).take(limit);
        answer(Ok(listed.map(|(_, volume)| volume.clone()).collect()))
    }

    fn volume(&self, name: String) -> Reply<Volume> {
        let found = self.volumes.lock().unwrap().get(&name).cloned();
        answer(found.ok_or_else(|| ApiError::volume_not_found(&name)))
    }

    fn create_volume(&self, request: CreateVolume) -> Reply<Created> {
        let mut volumes = self.volumes.lock().unwrap();
        if let Some(existing) = volumes.get(&request.name) {
            return answer(Ok(Created::Existing(existing.clone())));
        }
        let mut made = volume(&request.name, request.size_bytes);
        made.on_full = request.on_full.unwrap_or_default();
        made.reserved_bytes = request.reserved_bytes.unwrap_or(0);
        volumes.insert(request.name, made.clone());
        answer(Ok(Created::New(made)))
    }

    fn create_clone(&self, request: CreateClone) -> Reply<Created> {
        let (name, size_bytes) = (request.name, 4096);
        let (on_full, reserved_bytes) = (request.on_full, request.reserved_bytes);
        let pool = None;
        self.create_volume(CreateVolume { name, size_bytes, pool, on_full, reserved_bytes })
    }

    fn rollback(&self, from: String, keep: Option<String>, force: bool) -> Reply<RolledBack> {
        let (name, _) = split_snapshot_name(&from).expect("the caller checks names");
        let volumes = self.volumes.lock().unwrap();
        let Some(volume) = volumes.get(name).cloned() else {
            return answer(Err(ApiError::snapshot_not_found(&from)));
        };
        if volume.connections > 0 && !force {
            return answer(Err(ApiError::new(ErrorCode::VolumeInUse, "a client has it open")));
        }
        let kept = keep.map(|keep| snapshot(&format!("{name}@{keep}")));
        if let Some(kept) = &kept
            && !self.kept.lock().unwrap().insert(kept.name.clone())
        {
            return answer(Err(ApiError::new(ErrorCode::SnapshotExists, "it is there")));
        }
        answer(Ok(RolledBack { volume, kept }))
    }

    fn resize_volume(&self, name: String, size_bytes: u64, shrink: Shrink) -> Reply<Volume> {
        let mut volumes = self.volumes.lock().unwrap();
        let Some(volume) = volumes.get_mut(&name) else {
            return answer(Err(ApiError::volume_not_found(&name)));
        };
        if size_bytes < volume.size_bytes && shrink == Shrink::Never {
            return answer(Err(ApiError::new(ErrorCode::ShrinkRefused, "not told to")));
        }
        volume.size_bytes = size_bytes;
        answer(Ok(volume.clone()))
    }

    fn set_volume(&self, name: String, change: SettingsChange) -> Reply<Volume> {
        let mut volumes = self.volumes.lock().unwrap();
        let Some(volume) = volumes.get_mut(&name) else {
            return answer(Err(ApiError::volume_not_found(&name)));
        };
        volume.on_full = change.on_full.map_or(volume.on_full, OnFull::from);
        volume.reserved_bytes = change.reserved_bytes.unwrap_or(volume.reserved_bytes);
        answer(Ok(volume.clone()))
    }

    fn delete_volume(&self, name: String, force: bool, _snapshots: bool) -> Reply<()> {
        let mut volumes = self.volumes.lock().unwrap();
        match volumes.get(&name) {
            None => answer(Err(ApiError::volume_not_found(&name))),
            Some(volume) if volume.connections > 0 && !force => {
                answer(Err(ApiError::new(ErrorCode::VolumeInUse, "a client has it open")))
            }
            Some(_) => {
                volumes.remove(&name);
                answer(Ok(()))
            }
        }
    }

    fn take_snapshots(&self, wanted: Vec<NewSnapshot>) -> Reply<Vec<SnapshotInfo>> {
        let mut snapshots = self.snapshots.lock().unwrap();
        let taken = wanted.into_iter().map(|new| {
            let name = format!("{}@{}", new.volume, new.name);
            if !self.volumes.lock().unwrap().contains_key(&new.volume) {
                return Err(ApiError::volume_not_found(&new.volume));
            }
            if snapshots.contains_key(&name) {
                return Err(ApiError::new(ErrorCode::SnapshotExists, "it is there"));
            }
            let made = snapshot(&name);
            snapshots.insert(name, made.clone());
            Ok(made)
        });
        answer(taken.collect())
    }

    fn snapshots(
        &self,
        volume: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Reply<Vec<SnapshotInfo>> {
        let snapshots = self.snapshots.lock().unwrap();
        let meant = |name: &&String| {
            after.as_ref().is_none_or(|after| *name > after)
                && volume.as_ref().is_none_or(|volume| name.starts_with(&format!("{volume}@")))
        };
        let listed = snapshots.iter().filter(|(name, _)| meant(name)).take(limit);
        answer(Ok(listed.map(|(_, snapshot)| snapshot.clone()).collect()))
    }

    fn one_snapshot(&self, name: String) -> Reply<SnapshotInfo> {
        let found = self.snapshots.lock().unwrap().get(&name).cloned();
        answer(found.ok_or_else(|| ApiError::snapshot_not_found(&name)))
    }

    fn delete_snapshot(&self, name: String, _: bool) -> Reply<()> {
        let gone = self.snapshots.lock().unwrap().remove(&name);
        answer(gone.map(drop).ok_or_else(|| ApiError::snapshot_not_found(&name)))
    }

    /// Every second block differs.
    fn diff(&self, query: DiffQuery) -> Reply<DiffPage> {
        let found = self.volumes.lock().unwrap().get(&query.newer).cloned();
        let Some(volume) = found else {
            return answer(Err(ApiError::volume_not_found(&query.newer)));
        };
        let side = |name: String| DiffSide {
            name,
            uuid: volume.uuid.clone(),
            size_bytes: volume.size_bytes,
        };
        let limit = query.limit.unwrap_or(4096) as usize;
        let mut left = (query.from.unwrap_or(0)..volume.size_bytes).step_by(8192);
        let extent =
            |offset_bytes| DiffExtent { offset_bytes, length_bytes: 4096, kind: DiffKind::Data };
        let extents = left.by_ref().take(limit).map(extent).collect();
        let (older, newer) = (query.older.map(side), side(query.newer));
        answer(Ok(DiffPage { older, newer, extents, next: left.next() }))
    }

    fn usage(&self, name: String) -> Reply<Usage> {
        answer(match self.volumes.lock().unwrap().get(&name) {
            Some(volume) => Ok(Usage {
                name,
                uuid: volume.uuid.clone(),
                exclusive_bytes: 1,
                shared_bytes: 2,
                frees_bytes: 3,
            }),
            None => Err(ApiError::volume_not_found(&name)),
        })
    }

    fn grow_pool(&self, pool: String) -> Reply<Pool> {
        let snapshot = self.snapshot(0);
        Box::pin(async move {
            let found = snapshot.await?.pools.into_iter().find(|p| p.uuid == pool);
            found.ok_or_else(|| ApiError::new(ErrorCode::PoolNotFound, "no such pool"))
        })
    }

    fn add_device(&self, pool: String, request: AddDevice) -> Reply<Pool> {
        if request.path == "/busy" {
            return answer(Err(ApiError::new(ErrorCode::DeviceUnfit, "it holds ext4")));
        }
        self.grow_pool(pool)
    }

    fn change_device(&self, pool: String, device: String, _: DeviceAction) -> Reply<Pool> {
        if device != "d" {
            return answer(Err(ApiError::new(ErrorCode::DeviceNotFound, "no such device")));
        }
        self.grow_pool(pool)
    }

    fn scrub(&self, pool: String, action: ScrubAction) -> Reply<Scrub> {
        if pool != "u" {
            return answer(Err(ApiError::new(ErrorCode::PoolNotFound, "no such pool")));
        }
        let mut scrub = self.scrub.lock().unwrap();
        match action {
            ScrubAction::Start { .. } if scrub.state == ScrubState::Running => {
                return answer(Err(ApiError::new(ErrorCode::ScrubRunning, "under way")));
            }
            ScrubAction::Start { rate } => {
                scrub.state = ScrubState::Running;
                scrub.rate_bytes_per_second = rate;
            }
            ScrubAction::Show => {}
            ScrubAction::Cancel => scrub.state = ScrubState::Cancelled,
        }
        answer(Ok(scrub.clone()))
    }

    fn attach(&self, request: AttachVolume) -> Reply<(Attached, bool)> {
        let new = request.volume != "again";
        let AttachVolume { volume, number, queue_depth } = request;
        let (number, queue_depth) = (number.unwrap_or(0), queue_depth.unwrap_or(128));
        let device = format!("/dev/ublkb{number}");
        let volume = Some(volume);
        let attached = Attached { device, number, volume, queue_depth, ..Attached::default() };
        answer(Ok((attached, new)))
    }

    fn detach(&self, name: String, force: bool) -> Reply<()> {
        answer(match (name.as_str(), force) {
            ("away", _) => Err(ApiError::new(ErrorCode::NotAttached, "not attached")),
            ("busy", false) => Err(ApiError::new(ErrorCode::VolumeInUse, "it is mounted")),
            _ => Ok(()),
        })
    }

    fn attached(&self) -> Reply<Vec<Attached>> {
        answer(Err(ApiError::new(ErrorCode::UblkUnavailable, "no ublk")))
    }

    fn attach_nbd(&self, request: AttachNbd) -> Reply<(NbdAttached, bool)> {
        let (new, number) = (request.volume != "again", request.number.unwrap_or(0));
        let (device, volume) = (format!("/dev/nbd{number}"), Some(request.volume));
        answer(Ok((NbdAttached { device, number, volume, ..NbdAttached::default() }, new)))
    }

    fn detach_nbd(&self, name: String, force: bool) -> Reply<()> {
        self.detach(name, force)
    }

    fn attached_nbd(&self) -> Reply<Vec<NbdAttached>> {
        answer(Err(ApiError::new(ErrorCode::NbdUnavailable, "no NBD client")))
    }

    fn server_uris(&self) -> Vec<String> {
        vec!["nbd+unix:///?socket=/s".to_owned()]
    }
}

struct Daemon {
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Daemon {
    fn start(fake: Fake) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&dir.path().join("api.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = routes::router(Context::new(Arc::new(fake)));
        let task = tokio::spawn(socket.serve(router, async move {
            let _ = stopped.await;
        }));
        Self { dir, stop: Some(stop), task }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("api.sock")
    }

    async fn raw(&self, request: Request<Full<Bytes>>) -> (StatusCode, hyper::HeaderMap, String) {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        connection.abort();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).uri(path).header("host", "x");
    builder.header("content-type", "application/json").body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn snapshots_are_paged() {
    let daemon = Daemon::start(Fake::default());
    let client = daemon.client();
    for name in ["a", "b"] {
        let request = CreateVolume {
            name: name.to_owned(),
            size_bytes: 4096,
            pool: None,
            on_full: None,
            reserved_bytes: None,
        };
        client.create_volume(&request).await.unwrap();
    }
    let new = |volume: &str, i: u32| NewSnapshot::new(volume, &format!("s{i}"));
    let snapshots = (0..3).flat_map(|i| [new("a", i), new("b", i)]).collect();
    let taken = client.create_snapshots(&CreateSnapshots { snapshots }).await.unwrap();
    assert_eq!(taken.snapshots.len(), 6);
    let mut query =
        SnapshotQuery { volume: Some("b".to_owned()), limit: Some(2), ..SnapshotQuery::default() };
    let page = client.snapshot_page(&query).await.unwrap();
    assert_eq!(page.next.as_deref(), Some("b@s1"));
    query.after = page.next;
    let page = client.snapshot_page(&query).await.unwrap();
    assert_eq!((page.snapshots[0].name.as_str(), page.next), ("b@s2", None));
    assert_eq!(client.snapshot("a@s0").await.unwrap().name, "a@s0");
    client.delete_snapshot("a@s0", false).await.unwrap();
    let error = client.snapshot("a@s0").await.unwrap_err();
    assert_eq!(error.exit(), Exit::NotFound);
}

#[tokio::test]
async fn differences_are_paged() {
    let daemon = Daemon::start(Fake::default());
    let client = daemon.client();
    let request = CreateVolume {
        name: "a".to_owned(),
        size_bytes: 10 * 4096,
        pool: None,
        on_full: None,
        reserved_bytes: None,
    };
    client.create_volume(&request).await.unwrap();
    let newer = "a".to_owned();
    let mut query = DiffQuery { newer, limit: Some(2), ..DiffQuery::default() };
    let mut offsets = Vec::new();
    loop {
        let page = client.diff(&query).await.unwrap();
        assert!(page.extents.len() <= 2 && page.older.is_none() && page.newer.name == "a");
        offsets.extend(page.extents.iter().map(|extent| extent.offset_bytes));
        query.from = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(offsets, [0, 8192, 16384, 24576, 32768]);
}

#[tokio::test]
async fn every_request_has_its_answer() {
    let daemon = Daemon::start(Fake::default());
    let demo = json!({"name": "demo", "size_bytes": 8192}).to_string();
    let other = json!({"name": "demo", "size_bytes": 4096}).to_string();
    let odd = json!({"name": "odd", "size_bytes": 5000}).to_string();
    let bad_name = json!({"name": "a/b", "size_bytes": 4096}).to_string();
    let extra = json!({"name": "x", "size_bytes": 4096, "colour": "red"}).to_string();
    let negative = json!({"name": "x", "size_bytes": -1}).to_string();
    let huge = json!({"name": "x".repeat(routes::BODY_BYTES_MAX), "size_bytes": 1}).to_string();
    let shots = |volume: &str, name: &str| {
        json!({"snapshots": [{"volume": volume, "name": name}]}).to_string()
    };
    let (shot, no_shot) = (shots("demo", "one"), shots("nobody", "one"));
    let (bad_shot, long_shot) = (shots("demo", "a@b"), shots("demo", &"x".repeat(124)));
    let busy = json!({"name": "busy", "size_bytes": 4096}).to_string();
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("POST", "/v1/volumes", &demo, 201, ""),
        ("POST", "/v1/volumes", &demo, 200, ""),
        ("POST", "/v1/volumes", &other, 409, "volume_exists"),
        ("POST", "/v1/volumes", &odd, 400, "invalid_size"),
        ("POST", "/v1/volumes", &bad_name, 400, "invalid_name"),
        ("POST", "/v1/volumes", &extra, 422, "invalid_body"),
        ("POST", "/v1/volumes", &negative, 422, "invalid_body"),
        ("POST", "/v1/volumes", "{}", 422, "invalid_body"),
        ("POST", "/v1/volumes", "[", 400, "malformed_json"),
        ("POST", "/v1/volumes", "", 400, "malformed_json"),
        ("POST", "/v1/volumes", &huge, 413, "body_too_large"),
        ("GET", "/v1/volumes", "", 200, ""),
        ("GET", "/v1/volumes?limit=1&after=a", "", 200, ""),
        ("GET", "/v1/volumes?limit=0", "", 400, "invalid_query"),
        ("POST", "/v1/snapshots", &shot, 201, ""),
        ("POST", "/v1/snapshots", &shot, 409, "snapshot_exists"),
        ("POST", "/v1/snapshots", &bad_shot, 400, "invalid_name"),
        ("POST", "/v1/snapshots", &long_shot, 400, "invalid_name"),
        ("POST", "/v1/snapshots", &no_shot, 404, "volume_not_found"),
        (
            "POST",
            "/v1/snapshots",
            r#"{"snapshots":[{"volume":"demo","name":"x","uuid":"7"}]}"#,
            422,
            "invalid_body",
        ),
        ("POST", "/v1/snapshots", "{}", 422, "invalid_body"),
        ("GET", "/v1/snapshots", "", 200, ""),
        ("GET", "/v1/snapshots?volume=demo&limit=1&after=demo@a", "", 200, ""),
        ("GET", "/v1/snapshots?volume=a@b", "", 400, "invalid_name"),
        ("GET", "/v1/snapshots?limit=1001", "", 400, "invalid_query"),
        ("GET", "/v1/snapshots?colour=red", "", 400, "invalid_query"),
        ("GET", "/v1/snapshots/demo@one", "", 200, ""),
        ("GET", "/v1/snapshots/demo%40one", "", 200, ""),
        ("GET", "/v1/snapshots/demo", "", 400, "invalid_name"),
        ("GET", "/v1/volumes/demo@one", "", 400, "invalid_name"),
        ("GET", "/v1/diff?older=demo@one&newer=demo&from=0&limit=4096", "", 200, ""),
        ("GET", "/v1/diff?newer=demo", "", 200, ""),
        ("GET", "/v1/diff?newer=nobody", "", 404, "volume_not_found"),
        ("GET", "/v1/usage/demo", "", 200, ""),
        ("GET", "/v1/usage/nobody", "", 404, "volume_not_found"),
        ("GET", "/v1/usage/a@b@c", "", 400, "invalid_name"),
        ("GET", "/v1/usage/%ff", "", 400, "invalid_name"),
        ("POST", "/v1/usage/demo", "", 405, "method_not_allowed"),
        ("GET", "/v1/diff?older=demo@one", "", 400, "invalid_query"),
        ("GET", "/v1/diff?older=demo@&newer=demo", "", 400, "invalid_name"),
        ("GET", "/v1/diff?newer=demo@a@b", "", 400, "invalid_name"),
        ("GET", "/v1/diff?newer=demo&limit=4097", "", 400, "invalid_query"),
        ("GET", "/v1/diff?newer=demo&from=-1", "", 400, "invalid_query"),
        ("PATCH", "/v1/snapshots/demo@one", "{}", 405, "method_not_allowed"),
        ("DELETE", "/v1/snapshots/demo@one?force=perhaps", "", 400, "invalid_query"),
        ("DELETE", "/v1/snapshots/demo@one?force=true", "", 204, ""),
        ("DELETE", "/v1/snapshots/demo@one", "", 404, "snapshot_not_found"),
        ("GET", "/v1/snapshots/demo@one", "", 404, "snapshot_not_found"),
        ("GET", "/v1/volumes?limit=1001", "", 400, "invalid_query"),
        ("GET", "/v1/volumes?limit=-1", "", 400, "invalid_query"),
        ("GET", "/v1/volumes?first=1", "", 400, "invalid_query"),
        ("GET", "/v1/volumes/demo", "", 200, ""),
        ("GET", "/v1/volumes/none", "", 404, "volume_not_found"),
        ("GET", "/v1/volumes/a%40b", "", 400, "invalid_name"),
        ("GET", "/v1/volumes/%ff", "", 400, "invalid_name"),
        ("GET", "/v1/volumes/a/b", "", 404, "not_found"),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":16384}", 200, ""),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":16384}", 200, ""),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":4096}", 409, "shrink_refused"),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":8192,\"shrink\":\"unused\"}", 200, ""),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":4096,\"shrink\":\"discard\"}", 200, ""),
        (
            "PATCH",
            "/v1/volumes/demo",
            "{\"size_bytes\":4096,\"shrink\":\"yes\"}",
            422,
            "invalid_body",
        ),
        ("PATCH", "/v1/volumes/demo", "{\"shrink\":\"discard\"}", 422, "invalid_body"),
        (
            "PATCH",
            "/v1/volumes/demo",
            "{\"on_full\":\"wait\",\"shrink\":\"discard\"}",
            422,
            "invalid_body",
        ),
        ("PATCH", "/v1/volumes/demo", "{\"size_bytes\":0}", 400, "invalid_size"),
        ("PATCH", "/v1/volumes/none", "{\"size_bytes\":4096}", 404, "volume_not_found"),
        ("PUT", "/v1/volumes/demo", "{}", 405, "method_not_allowed"),
        ("DELETE", "/v1/volumes", "", 405, "method_not_allowed"),
        ("POST", "/v1/volumes", &busy, 201, ""),
        ("DELETE", "/v1/volumes/busy", "", 409, "volume_in_use"),
        ("DELETE", "/v1/volumes/busy?force=yes", "", 400, "invalid_query"),
        ("DELETE", "/v1/volumes/busy?fierce=true", "", 400, "invalid_query"),
        ("DELETE", "/v1/volumes/busy?force=true", "", 204, ""),
        ("DELETE", "/v1/volumes/busy", "", 404, "volume_not_found"),
        ("GET", "/v1/pools", "", 200, ""),
        ("GET", "/v1/pools/u", "", 200, ""),
        ("GET", "/v1/pools/x", "", 404, "pool_not_found"),
        ("GET", "/v1/pools/%FF", "", 404, "not_found"),
        ("DELETE", "/v1/ublk/%FF", "", 404, "not_found"),
        // What may be said need not be.
        ("POST", "/v1/pools/u/scrub", "", 202, ""),
        ("POST", "/v1/snapshots/demo@a/rollback", "", 200, ""),
        ("POST", "/v1/snapshots/demo@a/rollback", "", 200, ""),
        ("POST", "/v1/snapshots/demo@a/rollback", "{\"keep\":\"k\"}", 200, ""),
        ("POST", "/v1/snapshots/demo@a/rollback", "{\"keep\":\"k\"}", 409, "snapshot_exists"),
        ("GET", "/v1/status", "", 200, ""),
        ("GET", "/v1/openapi.json", "", 200, ""),
        ("GET", "/healthz", "", 200, ""),
        ("GET", "/metrics", "", 200, ""),
        ("POST", "/metrics", "", 405, "method_not_allowed"),
        ("GET", "/", "", 404, "not_found"),
        ("GET", "/v2/volumes", "", 404, "not_found"),
    ];
    for &(method, path, body, status, code) in cases {
        let (answered, headers, text) = daemon.raw(request(method, path, body.to_owned())).await;
        assert_eq!(answered.as_u16(), status, "{method} {path} {body}: {text}");
        if code.is_empty() {
            continue;
        }
        assert_eq!(headers["content-type"], "application/json", "{method} {path}");
        let text: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text["error"]["code"], code, "{method} {path} {body}");
        assert!(text["error"]["message"].as_str().unwrap().len() > 10, "{text}");
        assert_eq!(status == 405, headers.contains_key("allow"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_must_be_declared_as_json() {
    let daemon = Daemon::start(Fake::default());
    let request = Request::builder().method("POST").uri("/v1/volumes").header("host", "x");
    let (status, _, text) = daemon.raw(request.body(Full::new("{}".into())).unwrap()).await;
    assert_eq!(status.as_u16(), 415);
    assert!(text.contains("unsupported_media_type"), "{text}");
}

#[tokio::test]
async fn the_client_understands_the_server() {
    let daemon = Daemon::start(Fake::default());
    let client = daemon.client();
    let request = CreateVolume {
        name: "a".to_owned(),
        size_bytes: 4096,
        pool: None,
        on_full: None,
        reserved_bytes: None,
    };
    assert_eq!(client.create_volume(&request).await.unwrap(), (volume("a", 4096), true));
    assert_eq!(client.create_volume(&request).await.unwrap(), (volume("a", 4096), false));
    assert_eq!(client.volume("a").await.unwrap(), volume("a", 4096));
    assert_eq!(client.resize_volume("a", 8192, None).await.unwrap().size_bytes, 8192);
    let change = UpdateVolume { on_full: Some(OnFull::Error), ..UpdateVolume::default() };
    assert_eq!(client.set_volume("a", &change).await.unwrap().on_full, OnFull::Error);
    let change = UpdateVolume { reserved_bytes: Some(4096), ..UpdateVolume::default() };
    let set = client.set_volume("a", &change).await.unwrap();
    assert_eq!((set.on_full, set.reserved_bytes, set.size_bytes), (OnFull::Error, 4096, 8192));
    assert_eq!(client.volumes().await.unwrap(), [set]);
    assert_eq!(client.pools().await.unwrap().len(), 1);
    assert_eq!(client.grow_pool("u").await.unwrap().path, "/p");
    assert_eq!(client.grow_pool("v").await.unwrap_err().exit(), Exit::NotFound);
    let add = |path: &str| AddDevice { path: path.to_owned(), ..AddDevice::default() };
    assert_eq!(client.add_device("u", &add("/new")).await.unwrap().path, "/p");
    assert_eq!(client.add_device("u", &add("/busy")).await.unwrap_err().exit(), Exit::Refused);
    for action in [DeviceAction::Remove, DeviceAction::Keep] {
        assert!(client.change_device("u", "d", action.clone()).await.is_ok());
        let refused = client.change_device("u", "e", action).await;
        assert_eq!(refused.unwrap_err().exit(), Exit::NotFound);
    }
    assert_eq!(client.scrub("u").await.unwrap().state, ScrubState::Never);
    let scrub = client.start_scrub("u", &StartScrub::default()).await.unwrap();
    assert_eq!((scrub.state, scrub.rate_bytes_per_second), (ScrubState::Running, RATE_DEFAULT));
    let again = client.start_scrub("u", &StartScrub::default()).await.unwrap_err();
    assert!(matches!(again, ClientError::Refused(e) if e.code == ErrorCode::ScrubRunning));
    assert_eq!(client.cancel_scrub("u").await.unwrap().state, ScrubState::Cancelled);
    assert_eq!(client.scrub("v").await.unwrap_err().exit(), Exit::NotFound);
    let status = client.status().await.unwrap();
    assert_eq!((status.volumes, status.connections, status.pid), (1, 1, std::process::id()));
    client.delete_volume("a", false, false).await.unwrap();
    let error = client.delete_volume("a", false, false).await.unwrap_err();
    assert_eq!(error.exit(), Exit::NotFound);
    assert!(matches!(error, ClientError::Refused(e) if e.code == ErrorCode::VolumeNotFound));
}

#[tokio::test]
async fn the_client_says_why_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let error = Client::new(&path).volumes().await.unwrap_err();
    assert_eq!(error.exit(), Exit::Unreachable);
    assert!(error.to_string().contains("there is no such socket"), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Client::new(&path).volumes().await.unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let daemon = Daemon::start(Fake::default());
    let create = json!({"name": "demo", "size_bytes": 8192}).to_string();
    daemon.raw(request("POST", "/v1/volumes", create)).await;
    let (_, headers, text) = daemon.raw(request("GET", "/metrics", "")).await;
    assert!(headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    for line in [
        "# TYPE flagstone_nbd_reads counter",
        "flagstone_nbd_reads_total 7",
        "flagstone_nbd_connections 1",
        "flagstone_pool_free_bytes{pool=\"/p\",uuid=\"u\"} 2",
        "flagstone_volume_size_bytes{pool=\"/p\",volume=\"demo\"} 8192",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    assert!(text.contains("flagstone_build_info{version="), "{text}");
}

#[tokio::test]
async fn health_follows_the_pools() {
    let daemon = Daemon::start(Fake { failed: true, ..Fake::default() });
    let (status, _, text) = daemon.raw(request("GET", "/healthz", "")).await;
    assert_eq!((status.as_u16(), text.as_str()), (503, "{\"status\":\"failed\"}"));
}

#[tokio::test]
async fn the_socket_is_private_and_replaced_only_when_stale() {
    let daemon = Daemon::start(Fake::default());
    let path = daemon.socket();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(ApiSocket::bind(&path), Err(BindError::Live { .. })));

    let stale = daemon.dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let socket = ApiSocket::bind(&stale).unwrap();
    drop(socket);
    assert!(!stale.exists(), "removed when closed");

    let file = daemon.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(ApiSocket::bind(&file), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let long = daemon.dir.path().join("x".repeat(108));
    assert!(matches!(ApiSocket::bind(&long), Err(BindError::TooLong { .. })));
}

#[tokio::test]
async fn garbage_and_vanished_clients_disturb_nobody() {
    let daemon = Daemon::start(Fake::default());
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", &[b'x'; 64 << 10]] {
        let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
        // The server may have closed already.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    let mut half = UnixStream::connect(daemon.socket()).await.unwrap();
    half.write_all(b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        .await
        .unwrap();
    drop(half);
    assert_eq!(daemon.client().volumes().await.unwrap(), []);
}

#[tokio::test]
async fn stopping_closes_idle_connections_and_removes_the_socket() {
    let mut daemon = Daemon::start(Fake::default());
    let mut idle = UnixStream::connect(daemon.socket()).await.unwrap();
    assert_eq!(daemon.client().volumes().await.unwrap(), []);
    daemon.stop.take().unwrap().send(()).unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    (&mut daemon.task).await.unwrap();
    assert!(!daemon.socket().exists());
}
