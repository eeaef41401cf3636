//! The control API's router, without a socket, in front of a daemon that is a map.
//!
//! An input is `method, content type, path length, path, body`. Whatever it says, the answer must
//! be well formed, and the daemon behind must never see a name or size that was not checked.

use crate::input::Input;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use flagstone::api::backend::{Backend, Created, Reply, Snapshot};
use flagstone::api::clones::{CreateClone, RolledBack};
use flagstone::api::devices::{AddDevice, DeviceAction};
use flagstone::api::diff::{DiffPage, DiffQuery};
use flagstone::api::errors::{ApiError, ErrorBody, ErrorCode};
use flagstone::api::kernel_nbd::{AttachNbd, NbdAttached};
use flagstone::api::routes::{Context, router};
use flagstone::api::scrub::Scrub;
use flagstone::api::snapshots::{NewSnapshot, SnapshotInfo};
use flagstone::api::types::{CreateVolume, OnFull, Pool, Volume};
use flagstone::api::ublk::{AttachVolume, Attached};
use flagstone::api::usage::Usage;
use flagstone::name::{check_name, split_snapshot_name};
use flagstone::node::{NodeStats, ScrubAction, SettingsChange, Shrink};
use flagstone::size::check_blocks;
use http_body_util::BodyExt as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tower::ServiceExt as _;

const METHODS: [Method; 6] =
    [Method::POST, Method::PATCH, Method::DELETE, Method::GET, Method::HEAD, Method::PUT];
const TYPES: [&str; 4] = ["application/json", "text/plain", "", "application/json; charset=utf-8"];
const PATHS: [&str; 13] = [
    "/v1/volumes",
    "/v1/volumes/demo",
    "/v1/volumes/busy",
    "/v1/volumes/demo?force=true",
    "/v1/pools",
    "/v1/status",
    "/v1/openapi.json",
    "/metrics",
    "/healthz",
    "/v1/snapshots",
    "/v1/snapshots/demo@a",
    "/v1/clones",
    "/v1/snapshots/demo@a/rollback",
];

#[derive(Default)]
struct Fake(Mutex<BTreeMap<String, Volume>>);

impl Fake {
    fn reset(&self) {
        let mut volumes = self.0.lock().unwrap();
        volumes.clear();
        for name in ["demo", "busy"] {
            volumes.insert(name.to_owned(), volume(name.to_owned(), 1 << 20));
        }
    }
}

fn volume(name: String, size_bytes: u64) -> Volume {
    Volume {
        uuid: String::new(),
        pool: "/p".to_owned(),
        size_bytes,
        mapped_bytes: 0,
        exclusive_bytes: 0,
        kept_bytes: 0,
        reserved_bytes: 0,
        on_full: OnFull::default(),
        snapshots: 0,
        cloned_from: None,
        connections: u32::from(name == "busy"),
        io: Default::default(),
        uris: vec![flagstone::uri::unix_uri(&name, std::path::Path::new("/s"))],
        name,
    }
}

fn answer<T: Send + 'static>(result: Result<T, ApiError>) -> Reply<T> {
    Box::pin(std::future::ready(result))
}

fn snapshot(name: &str) -> SnapshotInfo {
    SnapshotInfo {
        name: name.to_owned(),
        uuid: String::new(),
        pool: "/p".to_owned(),
        size_bytes: 4096,
        mapped_bytes: 0,
        connections: 0,
        uris: vec![flagstone::uri::unix_uri(name, std::path::Path::new("/s"))],
    }
}

impl Backend for Fake {
    fn snapshot(&self, count: usize) -> Reply<Snapshot> {
        let volumes: Vec<_> = self.0.lock().unwrap().values().take(count).cloned().collect();
        let pool = Pool {
            path: "/p".to_owned(),
            device_bytes: 64 << 20,
            capacity_bytes: 32 << 20,
            free_bytes: 32 << 20,
            volumes: self.0.lock().unwrap().len() as u32,
            direct_io: true,
            segments: 12,
            segments_free: 8,
            written_bytes: 4096,
            ..Pool::default()
        };
        answer(Ok(Snapshot { pools: vec![pool], volumes, stats: NodeStats::default() }))
    }

    fn volumes(&self, after: Option<String>, limit: usize) -> Reply<Vec<Volume>> {
        let volumes = self.0.lock().unwrap();
        let behind = |name: &&String| after.as_ref().is_none_or(|after| *name > after);
        let listed = volumes.iter().filter(|(name, _)| behind(name)).take(limit);
        answer(Ok(listed.map(|(_, volume)| volume.clone()).collect()))
    }

    fn volume(&self, name: String) -> Reply<Volume> {
        check_name(&name).expect("the caller checks names");
        let found = self.0.lock().unwrap().get(&name).cloned();
        answer(found.ok_or_else(|| ApiError::volume_not_found(&name)))
    }

    fn create_volume(&self, request: CreateVolume) -> Reply<Created> {
        check_name(&request.name).expect("the caller checks names");
        check_blocks(request.size_bytes).expect("the caller checks sizes");
        let mut volumes = self.0.lock().unwrap();
        if request.pool.is_some_and(|pool| pool != "/p") {
            return answer(Err(ApiError::new(ErrorCode::PoolNotFound, "no such pool")));
        }
        if let Some(existing) = volumes.get(&request.name) {
            return answer(Ok(Created::Existing(existing.clone())));
        }
        let mut made = volume(request.name.clone(), request.size_bytes);
        made.on_full = request.on_full.unwrap_or_default();
        made.reserved_bytes = request.reserved_bytes.unwrap_or(0);
        assert!(made.reserved_bytes.is_multiple_of(4096), "the caller checks reservations");
        volumes.insert(request.name, made.clone());
        answer(Ok(Created::New(made)))
    }

    fn take_snapshots(&self, wanted: Vec<NewSnapshot>) -> Reply<Vec<SnapshotInfo>> {
        answer(match wanted.is_empty() {
            true => Ok(Vec::new()),
            false => Err(ApiError::new(ErrorCode::Busy, "not now")),
        })
    }

    fn snapshots(
        &self,
        _volume: Option<String>,
        _after: Option<String>,
        _limit: usize,
    ) -> Reply<Vec<SnapshotInfo>> {
        answer(Ok(Vec::new()))
    }

    fn one_snapshot(&self, name: String) -> Reply<SnapshotInfo> {
        answer(Ok(snapshot(&name)))
    }

    fn usage(&self, name: String) -> Reply<Usage> {
        let checked = match name.contains('@') {
            true => split_snapshot_name(&name).is_ok(),
            false => check_name(&name).is_ok(),
        };
        assert!(checked, "the caller checks names");
        answer(Err(ApiError::volume_not_found(&name)))
    }

    fn diff(&self, query: DiffQuery) -> Reply<DiffPage> {
        for name in query.older.iter().chain([&query.newer]) {
            let checked = match name.contains('@') {
                true => split_snapshot_name(name).is_ok(),
                false => check_name(name).is_ok(),
            };
            assert!(checked, "the caller checks names");
        }
        assert!(query.limit.is_none_or(|limit| limit > 0), "the caller checks limits");
        answer(Err(ApiError::volume_not_found(&query.newer)))
    }

    fn delete_snapshot(&self, _name: String, _force: bool) -> Reply<()> {
        answer(Ok(()))
    }

    fn create_clone(&self, request: CreateClone) -> Reply<Created> {
        let (name, size_bytes) = (request.name, 4096);
        let (on_full, reserved_bytes) = (request.on_full, request.reserved_bytes);
        let pool = None;
        self.create_volume(CreateVolume { name, size_bytes, pool, on_full, reserved_bytes })
    }

    fn rollback(&self, from: String, keep: Option<String>, force: bool) -> Reply<RolledBack> {
        let (name, _) = split_snapshot_name(&from).expect("the caller checks names");
        let volumes = self.0.lock().unwrap();
        let Some(volume) = volumes.get(name).cloned() else {
            return answer(Err(ApiError::snapshot_not_found(&from)));
        };
        if volume.connections > 0 && !force {
            return answer(Err(ApiError::new(ErrorCode::VolumeInUse, "a client has it open")));
        }
        let kept = keep.map(|keep| snapshot(&format!("{name}@{keep}")));
        answer(Ok(RolledBack { volume, kept }))
    }

    fn resize_volume(&self, name: String, size_bytes: u64, shrink: Shrink) -> Reply<Volume> {
        check_name(&name).expect("the caller checks names");
        check_blocks(size_bytes).expect("the caller checks sizes");
        let mut volumes = self.0.lock().unwrap();
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
        check_name(&name).expect("the caller checks names");
        assert!(change != SettingsChange::default(), "the caller wants something");
        let mut volumes = self.0.lock().unwrap();
        let Some(volume) = volumes.get_mut(&name) else {
            return answer(Err(ApiError::volume_not_found(&name)));
        };
        volume.on_full = change.on_full.map_or(volume.on_full, OnFull::from);
        volume.reserved_bytes = change.reserved_bytes.unwrap_or(volume.reserved_bytes);
        assert!(volume.reserved_bytes.is_multiple_of(4096), "the caller checks reservations");
        answer(Ok(volume.clone()))
    }

    fn grow_pool(&self, _pool: String) -> Reply<Pool> {
        answer(Err(ApiError::new(ErrorCode::PoolNotFound, "no such pool")))
    }

    fn add_device(&self, _pool: String, _request: AddDevice) -> Reply<Pool> {
        answer(Err(ApiError::new(ErrorCode::DeviceUnfit, "it holds data")))
    }

    fn change_device(&self, _pool: String, _device: String, _: DeviceAction) -> Reply<Pool> {
        answer(Err(ApiError::new(ErrorCode::DeviceNotFound, "no such device")))
    }

    fn scrub(&self, _pool: String, _action: ScrubAction) -> Reply<Scrub> {
        answer(Ok(Scrub::default()))
    }

    fn attach(&self, request: AttachVolume) -> Reply<(Attached, bool)> {
        assert!(request.queue_depth.is_none_or(|depth| depth > 0), "the caller checks depths");
        answer(Err(ApiError::new(ErrorCode::UblkUnavailable, "no ublk")))
    }

    fn attach_nbd(&self, _request: AttachNbd) -> Reply<(NbdAttached, bool)> {
        answer(Err(ApiError::new(ErrorCode::NbdUnavailable, "no NBD client")))
    }

    fn detach_nbd(&self, _name: String, _force: bool) -> Reply<()> {
        answer(Err(ApiError::new(ErrorCode::NotAttached, "not attached")))
    }

    fn attached_nbd(&self) -> Reply<Vec<NbdAttached>> {
        answer(Ok(Vec::new()))
    }

    fn detach(&self, _name: String, _force: bool) -> Reply<()> {
        answer(Err(ApiError::new(ErrorCode::NotAttached, "not attached")))
    }

    fn attached(&self) -> Reply<Vec<Attached>> {
        answer(Ok(Vec::new()))
    }

    fn delete_volume(&self, name: String, force: bool, _snapshots: bool) -> Reply<()> {
        check_name(&name).expect("the caller checks names");
        let mut volumes = self.0.lock().unwrap();
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

    fn server_uris(&self) -> Vec<String> {
        Vec::new()
    }
}

struct Daemon {
    runtime: tokio::runtime::Runtime,
    router: Router,
    fake: Arc<Fake>,
}

impl Daemon {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let fake = Arc::new(Fake::default());
        Self {
            runtime: runtime.expect("a runtime without sockets"),
            router: router(Context::new(fake.clone())),
            fake,
        }
    }
}

thread_local! {
    static DAEMON: Daemon = Daemon::new();
}

/// One request; see the module.
pub fn api_input(input: &[u8]) {
    DAEMON.with(|daemon| {
        let Some((request, head)) = request(input) else { return };
        daemon.fake.reset();
        let (status, body) = daemon.runtime.block_on(async {
            let Ok(response) = daemon.router.clone().oneshot(request).await;
            let status = response.status();
            let body = response.into_body().collect().await.expect("a body from memory");
            (status, body.to_bytes())
        });
        check(status, &body, head);
    });
}

/// The request, and whether its answer has no body.
fn request(input: &[u8]) -> Option<(Request<Body>, bool)> {
    let mut input = Input::new(input);
    let method = &METHODS[usize::from(input.u8()) % METHODS.len()];
    let content_type = TYPES[usize::from(input.u8()) % TYPES.len()];
    let path = match usize::from(input.u8()) {
        // A path of the input's own; otherwise one that exists.
        len @ 1..128 => input.bytes(len),
        i => PATHS[i % PATHS.len()].as_bytes(),
    };
    let mut request = Request::builder().method(method).uri(path);
    if !content_type.is_empty() {
        request = request.header("content-type", content_type);
    }
    let request = request.body(Body::from(input.rest().to_vec())).ok()?;
    Some((request, *method == Method::HEAD))
}

fn check(status: StatusCode, body: &[u8], head: bool) {
    if status.is_success() || head {
        return;
    }
    let text = String::from_utf8_lossy(body);
    let parsed: ErrorBody =
        serde_json::from_slice(body).unwrap_or_else(|error| panic!("{status} {text}: {error}"));
    assert_eq!(parsed.error.code.status(), status, "{text}");
    assert!(!parsed.error.message.is_empty() && parsed.error.code != ErrorCode::Internal, "{text}");
}
