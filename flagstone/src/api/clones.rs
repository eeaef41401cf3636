//! Clones of snapshots and volumes that are rolled back: what requests and answers look like, and the
//! endpoints.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backend::Created;
use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::routes::{Context, Json, OptionalJson, check_name, check_reservation, settings};
use super::snapshots::{SnapshotInfo, SnapshotName, check_snapshot_name};
use super::types::{OnFull, Volume};

/// Asks for a volume that has what a snapshot has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClone {
    /// The snapshot, `VOLUME@SNAPSHOT`.
    #[schema(example = "demo@monday")]
    pub snapshot: String,
    /// Name of the new volume; see CreateVolume.
    #[schema(example = "demo-test")]
    pub name: String,
    /// As in CreateVolume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// As in CreateVolume. What the clone shares with the snapshot counts as not taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_bytes: Option<u64>,
}

/// How a volume is rolled back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Name, without the volume's, of a snapshot that keeps what the volume has now. Without it, and without
    /// `discard`, it is `rollback-` and the date and time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// What the volume has now is not kept, but given up for good.
    #[serde(default)]
    pub discard: bool,
    /// Roll back even while clients are connected; they are disconnected.
    #[serde(default)]
    pub force: bool,
}

/// A volume that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolledBack {
    /// It, as it is now.
    pub volume: Volume,
    /// What it was before, if that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<SnapshotInfo>,
}

/// Creates a volume that has what a snapshot has.
///
/// It costs no copy, and reads of it no detour: it shares the snapshot's blocks until it overwrites them. It
/// is a volume like any other, of the snapshot's size; the snapshot may be deleted before it. The same
/// snapshot and name again is a success (200) that changes nothing.
#[utoipa::path(
    post, path = "/v1/clones", tag = "snapshots", request_body = CreateClone,
    responses(
        (status = 201, description = "Created, and durable", body = Volume),
        (status = 200, description = "It existed already, cloned from this snapshot", body = Volume),
        (status = 400, description = "invalid_name, invalid_reservation, malformed_json", body = ErrorBody),
        (status = 404, description = "snapshot_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "volume_exists", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, pool_read_only, busy, stopping", body = ErrorBody),
        (status = 507, description = "pool_full, reservation_unbacked, too_many_volumes", body = ErrorBody),
    )
)]
pub(super) async fn create_clone(
    State(context): State<Context>,
    Json(request): Json<CreateClone>,
) -> Result<Response, ApiError> {
    check_name(&request.name)?;
    check_snapshot_name(&request.snapshot)?;
    check_reservation(settings(request.on_full, request.reserved_bytes))?;
    let name = request.name.clone();
    match context.backend.create_clone(request).await? {
        Created::New(volume) => {
            let location = [(header::LOCATION, format!("/v1/volumes/{name}"))];
            Ok((StatusCode::CREATED, location, axum::Json(volume)).into_response())
        }
        Created::Existing(volume) => Ok(axum::Json(volume).into_response()),
    }
}

/// Rolls the volume of a snapshot back to it.
///
/// The volume has the snapshot's content and size again, at once. What it has now is kept as a snapshot,
/// unless told otherwise. Clients must not be connected, since they have what they read before in caches.
#[utoipa::path(
    post, path = "/v1/snapshots/{name}/rollback", tag = "snapshots", request_body = Option<Rollback>,
    params(("name" = String, Path, description = "Name of the snapshot, VOLUME@SNAPSHOT")),
    responses(
        (status = 200, description = "The volume as it is now, durable, and what was kept", body = RolledBack),
        (status = 400, description = "invalid_name, malformed_json", body = ErrorBody),
        (status = 404, description = "snapshot_not_found, volume_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "volume_in_use, snapshot_exists, shrink_refused", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, pool_read_only, busy, stopping", body = ErrorBody),
        (status = 507, description = "pool_full, reservation_unbacked, too_many_volumes", body = ErrorBody),
    )
)]
pub(super) async fn roll_back(
    State(context): State<Context>,
    SnapshotName(name): SnapshotName,
    OptionalJson(request): OptionalJson<Rollback>,
) -> Result<axum::Json<RolledBack>, ApiError> {
    let Rollback { keep, discard, force } = request;
    let volume = name.split('@').next().unwrap_or_default().to_owned();
    let keep = match (keep, discard) {
        (Some(_), true) => {
            return Err(ApiError::new(ErrorCode::InvalidBody, "give keep or discard, not both"));
        }
        (Some(keep), false) => {
            check_name(&keep)?;
            check_snapshot_name(&format!("{volume}@{keep}"))?;
            Some(keep)
        }
        (None, true) => None,
        (None, false) => return roll_back_named(&context, &name, &volume, force).await,
    };
    context.backend.rollback(name, keep, force).await.map(axum::Json)
}

/// Names that are tried for a snapshot of what a volume had.
const NAMES: u32 = 100;

/// Rolls a volume back, and gives the snapshot of what it had a name of its own.
async fn roll_back_named(
    context: &Context,
    name: &str,
    volume: &str,
    force: bool,
) -> Result<axum::Json<RolledBack>, ApiError> {
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut number = 1;
    loop {
        let keep = name_to_keep(volume, &now, number);
        match context.backend.rollback(name.to_owned(), Some(keep), force).await {
            Err(error) if error.code == ErrorCode::SnapshotExists && number < NAMES => number += 1,
            result => return result.map(axum::Json),
        }
    }
}

/// The `number`th name to try, shorter where the volume's leaves less room.
fn name_to_keep(volume: &str, now: &str, number: u32) -> String {
    let again = if number == 1 { String::new() } else { format!("-{number}") };
    let long = format!("rollback-{now}{again}");
    if check_snapshot_name(&format!("{volume}@{long}")).is_ok() {
        long
    } else {
        format!("r{number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_name_that_fits() {
        let now = "20261122-180000";
        assert_eq!(name_to_keep("v", now, 1), "rollback-20261122-180000");
        assert_eq!(name_to_keep("v", now, 2), "rollback-20261122-180000-2");
        let long = "v".repeat(110);
        let name = name_to_keep(&long, now, 3);
        assert_eq!(name, "r3");
        assert!(check_snapshot_name(&format!("{long}@{name}")).is_ok());
    }
}
