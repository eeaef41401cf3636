//! Snapshots of volumes: what requests and answers look like, and the endpoints.

use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::routes::{Context, Json, Query, check_name};
use super::types::{DeleteQuery, PAGE_VOLUMES};
use crate::name::split_snapshot_name;

/// A snapshot that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Name of the volume.
    #[schema(example = "demo")]
    pub volume: String,
    /// Name of the snapshot, without the volume's: of the same characters. The two and the `@`
    /// between them have at most 128 bytes.
    #[schema(example = "monday")]
    pub name: String,
    /// Its identity, of who restores a snapshot that was elsewhere: increments go by it. A new one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl NewSnapshot {
    /// A snapshot with an identity of its own.
    #[must_use]
    pub fn new(volume: &str, name: &str) -> Self {
        Self { volume: volume.to_owned(), name: name.to_owned(), uuid: None }
    }
}

/// Asks for snapshots, all of one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// Of volumes of one pool, as many as fit one block of the log: 33 with names of up to 55 bytes, 20 with the longest.
    pub snapshots: Vec<NewSnapshot>,
}

/// A snapshot: a volume as it was at one instant. It is exported read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// `VOLUME@SNAPSHOT`, which is also its NBD export name.
    pub name: String,
    /// Its identity, which never comes back.
    pub uuid: String,
    /// Path of its pool, as given to the daemon.
    pub pool: String,
    /// Size that clients see, in bytes: the volume's at that instant.
    pub size_bytes: u64,
    /// Bytes that hold data, in whole blocks; most are the volume's too, as long as it does not
    /// overwrite them.
    pub mapped_bytes: u64,
    /// NBD connections that use it now.
    pub connections: u32,
    /// Where clients reach it, ready to paste: the unix socket's URI first.
    pub uris: Vec<String>,
}

/// Snapshots, by name: one page of them, or those that were taken in one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// In the order of their names; those that were just taken in that of the request.
    pub snapshots: Vec<SnapshotInfo>,
    /// Where the next page begins: `after` of the request for it. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which snapshots are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotQuery {
    /// Those of this volume only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// How many at most, 1 to 1000; as many without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those whose names come behind this one, which need not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Takes snapshots of volumes, all of one instant, all or none.
///
/// No write to any of the volumes lies between two of them. They cost no copy: space is taken as the
/// volumes are overwritten. Unlike other calls this one is not a success when it is repeated, because
/// what the snapshot holds would not be what there is: it answers snapshot_exists.
#[utoipa::path(
    post, path = "/v1/snapshots", tag = "snapshots", request_body = CreateSnapshots,
    responses(
        (status = 201, description = "Taken, and durable", body = SnapshotList),
        (status = 400, description = "invalid_name, malformed_json", body = ErrorBody),
        (status = 404, description = "volume_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "snapshot_exists, different_pools, read_only_snapshot", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body, snapshot_count", body = ErrorBody),
        (status = 503, description = "pool_failed, pool_read_only, busy, stopping", body = ErrorBody),
        (status = 507, description = "pool_full, reservation_unbacked, too_many_volumes", body = ErrorBody),
    )
)]
pub(super) async fn create_snapshots(
    State(context): State<Context>,
    Json(request): Json<CreateSnapshots>,
) -> Result<(StatusCode, axum::Json<SnapshotList>), ApiError> {
    for NewSnapshot { volume, name, uuid } in &request.snapshots {
        check_name(volume)?;
        check_name(name)?;
        check_snapshot_name(&format!("{volume}@{name}"))?;
        if uuid.as_ref().is_some_and(|uuid| uuid::Uuid::try_parse(uuid).is_err()) {
            return Err(ApiError::new(ErrorCode::InvalidBody, "uuid is not a UUID"));
        }
    }
    let snapshots = context.backend.take_snapshots(request.snapshots).await?;
    Ok((StatusCode::CREATED, axum::Json(SnapshotList { snapshots, next: None })))
}

/// Lists the snapshots, of one volume or of all.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "snapshots",
    params(
        ("volume" = Option<String>, Query, description = "Those of this volume only"),
        ("limit" = Option<u32>, Query, description = "How many at most, 1 to 1000, which is the default"),
        ("after" = Option<String>, Query, description = "Only names behind this one: `next` of the page before"),
    ),
    responses(
        (status = 200, description = "Snapshots, by name; `next` if there are more", body = SnapshotList),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "volume_not_found", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
pub(super) async fn list_snapshots(
    State(context): State<Context>,
    Query(query): Query<SnapshotQuery>,
) -> Result<axum::Json<SnapshotList>, ApiError> {
    query.volume.as_deref().map_or(Ok(()), check_name)?;
    let limit = query.limit.unwrap_or(PAGE_VOLUMES);
    if !(1..=PAGE_VOLUMES).contains(&limit) {
        let text = format!("limit is from 1 to {PAGE_VOLUMES}, not {limit}");
        return Err(ApiError::new(ErrorCode::InvalidQuery, text));
    }
    let limit = limit as usize;
    // One more tells whether there is another page.
    let mut snapshots = context.backend.snapshots(query.volume, query.after, limit + 1).await?;
    let more = snapshots.len() > limit;
    snapshots.truncate(limit);
    let next = snapshots.last().filter(|_| more).map(|snapshot| snapshot.name.clone());
    Ok(axum::Json(SnapshotList { snapshots, next }))
}

/// Shows a snapshot.
#[utoipa::path(
    get, path = "/v1/snapshots/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name of the snapshot, VOLUME@SNAPSHOT")),
    responses(
        (status = 200, description = "The snapshot", body = SnapshotInfo),
        (status = 400, description = "invalid_name", body = ErrorBody),
        (status = 404, description = "snapshot_not_found", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
pub(super) async fn show_snapshot(
    State(context): State<Context>,
    SnapshotName(name): SnapshotName,
) -> Result<axum::Json<SnapshotInfo>, ApiError> {
    context.backend.one_snapshot(name).await.map(axum::Json)
}

/// Deletes a snapshot.
///
/// The space of what only it had comes back in the background. Deleting it again answers
/// snapshot_not_found, which a caller that retries may take as success.
#[utoipa::path(
    delete, path = "/v1/snapshots/{name}", tag = "snapshots",
    params(
        ("name" = String, Path, description = "Name of the snapshot, VOLUME@SNAPSHOT"),
        ("force" = Option<bool>, Query, description = "Delete even while clients are connected"),
    ),
    responses(
        (status = 204, description = "Deleted, and durable"),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "snapshot_not_found", body = ErrorBody),
        (status = 409, description = "snapshot_in_use", body = ErrorBody),
        (status = 503, description = "pool_failed, pool_read_only, busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn delete_snapshot(
    State(context): State<Context>,
    SnapshotName(name): SnapshotName,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    context.backend.delete_snapshot(name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn check_snapshot_name(name: &str) -> Result<(), ApiError> {
    let checked = split_snapshot_name(name);
    checked.map(drop).map_err(|error| ApiError::new(ErrorCode::InvalidName, error.to_string()))
}

/// The `{name}` of a path, checked.
pub(super) struct SnapshotName(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(ErrorCode::InvalidName, "a snapshot's name is UTF-8"))?;
        check_snapshot_name(&name)?;
        Ok(Self(name))
    }
}
