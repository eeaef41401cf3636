//! The endpoints, and the OpenAPI document generated from them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{self, DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::backend::{Backend, Created};
use super::clones;
use super::devices;
use super::diff;
use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::kernel_nbd;
use super::metrics;
use super::scrub;
use super::snapshots;
use super::types::{
    CreateVolume, DeleteVolumeQuery, Health, ListQuery, OnFull, PAGE_VOLUMES, Pool, PoolList,
    PoolState, Shrink, Status, UpdateVolume, Volume, VolumeList,
};
use super::ublk;
use super::usage;
use crate::node::SettingsChange;
use crate::{name, size};

/// Largest request body, in bytes. A request is a name and a number.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What every handler has at hand.
#[derive(Clone)]
pub struct Context {
    pub(super) backend: Arc<dyn Backend>,
    started: Instant,
}

impl Context {
    /// A context that counts its uptime from now.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, started: Instant::now() }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Flagstone control API",
        description = "Served over HTTP/1.1 on the daemon's unix socket. Calls are idempotent by \
            name: the same again changes nothing, and either succeeds or answers with a code that says \
            that it is done, as volume_not_found for a deletion. Every answer that is not a success is an ErrorBody with a stable code and a \
            sentence that says what to do.",
    ),
    tags(
        (name = "volumes", description = "Thin volumes, each an NBD export"),
        (name = "snapshots", description = "Volumes as they were at one instant, each a read-only NBD export"),
        (name = "pools", description = "The files and devices that volumes live on"),
        (name = "ublk", description = "Volumes as block devices of the daemon's machine"),
        (name = "nbd", description = "The same where there is no ublk, by the kernel's NBD client"),
        (name = "daemon", description = "The daemon itself"),
    )
)]
struct Info;

fn endpoints() -> (Router<Context>, Document) {
    OpenApiRouter::with_openapi(Info::openapi())
        .routes(routes!(create_volume, list_volumes))
        .routes(routes!(show_volume, update_volume, delete_volume))
        .routes(routes!(snapshots::create_snapshots, snapshots::list_snapshots))
        .routes(routes!(snapshots::show_snapshot, snapshots::delete_snapshot))
        .routes(routes!(clones::create_clone))
        .routes(routes!(clones::roll_back))
        .routes(routes!(diff::diff))
        .routes(routes!(usage::usage))
        .routes(routes!(list_pools))
        .routes(routes!(show_pool))
        .routes(routes!(grow_pool))
        .routes(routes!(devices::add_device))
        .routes(routes!(devices::remove_device))
        .routes(routes!(devices::keep_device))
        .routes(routes!(scrub::start_scrub, scrub::show_scrub, scrub::cancel_scrub))
        .routes(routes!(ublk::attach, ublk::list_attached))
        .routes(routes!(ublk::detach))
        .routes(routes!(kernel_nbd::attach_nbd, kernel_nbd::list_nbd))
        .routes(routes!(kernel_nbd::detach_nbd))
        .routes(routes!(status))
        .routes(routes!(openapi))
        .routes(routes!(metrics_text))
        .routes(routes!(healthz))
        .split_for_parts()
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> Document {
    endpoints().1
}

/// Everything the API serves.
pub fn router(context: Context) -> Router {
    endpoints()
        .0
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(context)
}

/// Creates a volume.
///
/// The same name and size again is a success (200) that changes nothing.
#[utoipa::path(
    post, path = "/v1/volumes", tag = "volumes", request_body = CreateVolume,
    responses(
        (status = 201, description = "Created, and durable", body = Volume),
        (status = 200, description = "It existed already, with this size", body = Volume),
        (status = 400, description = "invalid_name, invalid_size, invalid_reservation, malformed_json", body = ErrorBody),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "volume_exists", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
        (status = 507, description = "pool_full, reservation_unbacked, too_many_volumes", body = ErrorBody),
    )
)]
async fn create_volume(
    State(context): State<Context>,
    Json(request): Json<CreateVolume>,
) -> Result<Response, ApiError> {
    check_name(&request.name)?;
    check_size(request.size_bytes)?;
    let (name, size_bytes) = (request.name.clone(), request.size_bytes);
    let wanted = settings(request.on_full, request.reserved_bytes);
    check_reservation(wanted)?;
    match context.backend.create_volume(request).await? {
        Created::New(volume) => {
            let location = [(header::LOCATION, format!("/v1/volumes/{name}"))];
            Ok((StatusCode::CREATED, location, axum::Json(volume)).into_response())
        }
        Created::Existing(volume) if volume.size_bytes == size_bytes && has(&volume, wanted) => {
            Ok(axum::Json(volume).into_response())
        }
        Created::Existing(volume) if volume.size_bytes == size_bytes => Err(ApiError::new(
            ErrorCode::VolumeExists,
            format!(
                "the volume \"{name}\" exists with other settings; choose another name, or change \
                 them with `flagstone volume set`"
            ),
        )),
        Created::Existing(volume) => Err(ApiError::new(
            ErrorCode::VolumeExists,
            format!(
                "the volume \"{name}\" exists with {} bytes, not {size_bytes}; choose another \
                 name, or change its size with `flagstone volume resize`",
                volume.size_bytes
            ),
        )),
    }
}

/// Lists the volumes.
#[utoipa::path(
    get, path = "/v1/volumes", tag = "volumes",
    params(
        ("limit" = Option<u32>, Query, description = "How many at most, 1 to 1000, which is the default"),
        ("after" = Option<String>, Query, description = "Only names behind this one: `next` of the page before"),
    ),
    responses(
        (status = 200, description = "Volumes, by name; `next` if there are more", body = VolumeList),
        (status = 400, description = "invalid_query", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn list_volumes(
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<VolumeList>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE_VOLUMES);
    if !(1..=PAGE_VOLUMES).contains(&limit) {
        let text = format!("limit is from 1 to {PAGE_VOLUMES}, not {limit}");
        return Err(ApiError::new(ErrorCode::InvalidQuery, text));
    }
    let limit = limit as usize;
    // One more tells whether there is another page.
    let mut volumes = context.backend.volumes(query.after, limit + 1).await?;
    let more = volumes.len() > limit;
    volumes.truncate(limit);
    let next = volumes.last().filter(|_| more).map(|volume| volume.name.clone());
    Ok(axum::Json(VolumeList { volumes, next }))
}

/// Shows a volume.
#[utoipa::path(
    get, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, description = "The volume", body = Volume),
        (status = 400, description = "invalid_name", body = ErrorBody),
        (status = 404, description = "volume_not_found", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn show_volume(
    State(context): State<Context>,
    VolumeName(name): VolumeName,
) -> Result<axum::Json<Volume>, ApiError> {
    context.backend.volume(name).await.map(axum::Json)
}

/// Changes a volume's size, or its settings.
///
/// Clients see a new size when they connect again; beyond the end of a smaller one their requests
/// fail at once. The same again is a success.
#[utoipa::path(
    patch, path = "/v1/volumes/{name}", tag = "volumes", request_body = UpdateVolume,
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, description = "The volume as it is now, durable", body = Volume),
        (status = 400, description = "invalid_name, invalid_size, invalid_reservation, malformed_json", body = ErrorBody),
        (status = 404, description = "volume_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "shrink_refused", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
        (status = 507, description = "pool_full, reservation_unbacked", body = ErrorBody),
    )
)]
async fn update_volume(
    State(context): State<Context>,
    VolumeName(name): VolumeName,
    Json(request): Json<UpdateVolume>,
) -> Result<axum::Json<Volume>, ApiError> {
    let change = settings(request.on_full, request.reserved_bytes);
    let volume = match (request.size_bytes, change == SettingsChange::default()) {
        (Some(size_bytes), true) => {
            check_size(size_bytes)?;
            context.backend.resize_volume(name, size_bytes, Shrink::of(request.shrink))
        }
        (None, false) if request.shrink.is_none() => {
            check_reservation(change)?;
            context.backend.set_volume(name, change)
        }
        _ => {
            return Err(ApiError::new(
                ErrorCode::InvalidBody,
                "give either size_bytes, with or without shrink, or on_full or reserved_bytes or both \
                 of these",
            ));
        }
    };
    volume.await.map(axum::Json)
}

/// Deletes a volume and its data.
///
/// Deleting it again answers volume_not_found, which a caller that retries may take as success.
#[utoipa::path(
    delete, path = "/v1/volumes/{name}", tag = "volumes",
    params(
        ("name" = String, Path, description = "Name of the volume"),
        ("force" = Option<bool>, Query, description = "Delete even while clients are connected"),
        ("snapshots" = Option<bool>, Query, description = "Delete its snapshots as well"),
    ),
    responses(
        (status = 204, description = "Deleted, and durable"),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "volume_not_found", body = ErrorBody),
        (status = 409, description = "volume_in_use, volume_has_snapshots", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
async fn delete_volume(
    State(context): State<Context>,
    VolumeName(name): VolumeName,
    Query(query): Query<DeleteVolumeQuery>,
) -> Result<StatusCode, ApiError> {
    context.backend.delete_volume(name, query.force, query.snapshots).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the pools.
#[utoipa::path(
    get, path = "/v1/pools", tag = "pools",
    responses(
        (status = 200, description = "Every pool", body = PoolList),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn list_pools(State(context): State<Context>) -> Result<axum::Json<PoolList>, ApiError> {
    let pools = context.backend.snapshot(0).await?.pools;
    Ok(axum::Json(PoolList { pools }))
}

/// Describes a pool.
#[utoipa::path(
    get, path = "/v1/pools/{pool}", tag = "pools",
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 200, description = "The pool", body = Pool),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn show_pool(
    State(context): State<Context>,
    Path(uuid): Path<String>,
) -> Result<axum::Json<Pool>, ApiError> {
    let pools = context.backend.snapshot(0).await?.pools;
    let pool = pools.into_iter().find(|pool| pool.uuid == uuid);
    pool.map(axum::Json).ok_or_else(|| {
        let message = format!("there is no pool \"{uuid}\"; GET /v1/pools lists them");
        ApiError::new(ErrorCode::PoolNotFound, message)
    })
}

/// Takes the new space of a pool's device, which has become larger.
///
/// Nothing new is a success that changes nothing. Writes that wait for space go on.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/grow", tag = "pools",
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 200, description = "The pool as it is now, durable", body = Pool),
        (status = 400, description = "invalid_size: the device has become smaller", body = ErrorBody),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
async fn grow_pool(
    State(context): State<Context>,
    Path(pool): Path<String>,
) -> Result<axum::Json<Pool>, ApiError> {
    context.backend.grow_pool(pool).await.map(axum::Json)
}

/// Describes the daemon.
#[utoipa::path(
    get, path = "/v1/status", tag = "daemon",
    responses(
        (status = 200, description = "The daemon", body = Status),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn status(State(context): State<Context>) -> Result<axum::Json<Status>, ApiError> {
    let snapshot = context.backend.snapshot(0).await?;
    Ok(axum::Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: context.started.elapsed().as_secs(),
        uris: context.backend.server_uris(),
        pools: snapshot.pools.len() as u64,
        volumes: snapshot.volume_count(),
        connections: snapshot.stats.connections_now,
    }))
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = 200, description = "The OpenAPI document", content_type = "application/json"))
)]
async fn openapi() -> axum::Json<Document> {
    axum::Json(document())
}

/// Metrics for Prometheus, in the OpenMetrics text format.
#[utoipa::path(
    get, path = "/metrics", tag = "daemon",
    responses(
        (status = 200, description = "Metrics", content_type = "application/openmetrics-text"),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
async fn metrics_text(State(context): State<Context>) -> Result<Response, ApiError> {
    let snapshot = context.backend.snapshot(metrics::VOLUMES_MAX).await?;
    let text = metrics::encode(snapshot, context.started.elapsed())
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the metrics could not be written"))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// Says whether the daemon serves.
#[utoipa::path(
    get, path = "/healthz", tag = "daemon",
    responses(
        (status = 200, description = "Every pool serves; `degraded` if one does without a device that has failed", body = Health),
        (status = 503, description = "A pool has failed or is only read, or the daemon is stopping", body = Health),
    )
)]
async fn healthz(State(context): State<Context>) -> Result<Response, ApiError> {
    let snapshot = context.backend.snapshot(0).await?;
    let any = |state| snapshot.pools.iter().any(|pool| pool.state == state);
    let (code, status) = if any(PoolState::Failed) {
        (StatusCode::SERVICE_UNAVAILABLE, "failed")
    } else if any(PoolState::Degraded) {
        let read_only = snapshot.pools.iter().any(|pool| pool.read_only);
        let serves = if read_only { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        (serves, "degraded")
    } else {
        (StatusCode::OK, "ok")
    };
    Ok((code, axum::Json(Health { status: status.to_owned() })).into_response())
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no {}; GET /v1/openapi.json lists every path", uri.path()),
    )
}

async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} does not take {method}; GET /v1/openapi.json lists what it takes", uri.path()),
    )
}

pub(super) fn check_name(text: &str) -> Result<(), ApiError> {
    name::check_name(text).map_err(|error| ApiError::new(ErrorCode::InvalidName, error.to_string()))
}

fn check_size(bytes: u64) -> Result<(), ApiError> {
    size::check_blocks(bytes)
        .map_err(|error| ApiError::new(ErrorCode::InvalidSize, error.to_string()))
}

pub(super) fn check_reservation(change: SettingsChange) -> Result<(), ApiError> {
    match change.reserved_bytes {
        None | Some(0) => Ok(()),
        Some(bytes) => size::check_blocks(bytes)
            .map_err(|error| ApiError::new(ErrorCode::InvalidReservation, error.to_string())),
    }
}

pub(super) fn settings(on_full: Option<OnFull>, reserved_bytes: Option<u64>) -> SettingsChange {
    SettingsChange { on_full: on_full.map(OnFull::into), reserved_bytes }
}

/// Whether a volume has the settings that are wanted.
fn has(volume: &Volume, wanted: SettingsChange) -> bool {
    let present = settings(Some(volume.on_full), Some(volume.reserved_bytes));
    wanted.on_full.is_none_or(|_| wanted.on_full == present.on_full)
        && wanted.reserved_bytes.is_none_or(|_| wanted.reserved_bytes == present.reserved_bytes)
}

/// A JSON body, with the API's own errors.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = axum::Json::<T>::from_request(request, state);
        match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(axum::Json(value))) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(body_error(&rejection)),
            Err(_) => Err(ApiError::new(
                ErrorCode::RequestTimeout,
                format!("the request's body did not arrive within {BODY_TIMEOUT:?}"),
            )),
        }
    }
}

/// As [`Json`], of which nothing need be said: no body is an empty object.
pub(super) struct OptionalJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        if length && !headers.contains_key(header::TRANSFER_ENCODING) {
            return Ok(Self(T::default()));
        }
        Json::from_request(request, state).await.map(|Json(value)| Self(value))
    }
}

fn body_error(rejection: &JsonRejection) -> ApiError {
    use std::error::Error as _;
    // The rejection's own text only names the stage; its source says what and where.
    let cause = || rejection.source().map_or_else(String::new, |source| source.to_string());
    match rejection {
        JsonRejection::JsonSyntaxError(_) => ApiError::new(
            ErrorCode::MalformedJson,
            format!("the request's body is not JSON: {}", cause()),
        ),
        JsonRejection::JsonDataError(_) => ApiError::new(
            ErrorCode::InvalidBody,
            format!("the request's body does not fit: {}", cause()),
        ),
        JsonRejection::MissingJsonContentType(_) => ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "send the header Content-Type: application/json",
        ),
        other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            ErrorCode::BodyTooLarge,
            format!("the request's body is larger than {BODY_BYTES_MAX} bytes"),
        ),
        _ => ApiError::new(
            ErrorCode::MalformedJson,
            format!("the request's body could not be read: {}", cause()),
        ),
    }
}

/// Query parameters, with the API's own errors.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map(Self)
            .map_err(|error| ApiError::new(ErrorCode::InvalidQuery, error.to_string()))
    }
}

/// What a path names, with the API's own errors.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = extract::Path::<T>::from_request_parts(parts, state).await;
        named
            .map(|extract::Path(named)| Self(named))
            .map_err(|_| ApiError::new(ErrorCode::NotFound, "what the path names is not UTF-8"))
    }
}

/// The `{name}` of a path, checked.
struct VolumeName(String);

impl<S: Send + Sync> FromRequestParts<S> for VolumeName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let extract::Path(name) =
            extract::Path::<String>::from_request_parts(parts, state)
                .await
                .map_err(|_| ApiError::new(ErrorCode::InvalidName, "a volume name is UTF-8"))?;
        check_name(&name)?;
        Ok(Self(name))
    }
}
