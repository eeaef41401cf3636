//! Block devices of the kernel: volumes and snapshots attached to the daemon's machine.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::routes::{Context, Json, Path, Query, check_name};
use super::snapshots::check_snapshot_name;
use super::types::DeleteQuery;

/// Most requests that a block device can have under way (`UBLK_MAX_QUEUE_DEPTH`).
pub const DEPTH_MAX: u16 = 4096;
/// The largest N of `/dev/ublkbN`: the kernel's minor numbers have 20 bits (`MINORBITS`).
pub const NUMBER_MAX: u32 = (1 << 20) - 1;

/// Asks for a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// Name of the volume, or of a snapshot, `VOLUME@SNAPSHOT`, which can only be read.
    #[schema(example = "demo")]
    pub volume: String,
    /// The N of `/dev/ublkbN`, 0 to 1048575; without it, the next that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Requests under way at once, 1 to 4096; 128 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<u16>,
}

/// What a block device is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttachedState {
    /// A process serves it.
    Live,
    /// Nobody does; its requests wait for the daemon that serves its pool.
    Waiting,
    /// It was not started, or is being stopped.
    Dead,
    /// Something that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A volume or snapshot as a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attached {
    /// Where it is.
    #[schema(example = "/dev/ublkb0")]
    pub device: String,
    /// The N of that.
    pub number: u32,
    /// Its volume or snapshot; absent if this daemon has none such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Size in bytes, as the kernel has it.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What it is doing.
    pub state: AttachedState,
    /// The process that serves it, or served it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Requests under way at once.
    pub queue_depth: u16,
    /// Features that it was made with, as in `ublk_cmd.h` without `UBLK_F_`.
    pub features: Vec<String>,
}

/// Block devices, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachedList {
    /// All of this machine that Flagstone has made.
    pub devices: Vec<Attached>,
}

/// Attaches a volume or a snapshot as a block device of the daemon's machine.
///
/// If it is one already, that is a success (200) that changes nothing. The device outlives the daemon: when it stops, or
/// dies, requests wait until it is back.
#[utoipa::path(
    post, path = "/v1/ublk", tag = "ublk", request_body = AttachVolume,
    responses(
        (status = 201, description = "Attached", body = Attached),
        (status = 200, description = "It was attached already", body = Attached),
        (status = 400, description = "invalid_name, malformed_json", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "volume_in_use: the kernel's NBD client has it; ublk_refused: the kernel does not make such a device", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 501, description = "ublk_unavailable: the kernel has no ublk, or an old one", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn attach(
    State(context): State<Context>,
    Json(request): Json<AttachVolume>,
) -> Result<Response, ApiError> {
    check_either(&request.volume)?;
    if request.queue_depth.is_some_and(|depth| !(1..=DEPTH_MAX).contains(&depth)) {
        let text = format!("queue_depth is from 1 to {DEPTH_MAX}");
        return Err(ApiError::new(ErrorCode::InvalidBody, text));
    }
    if request.number.is_some_and(|number| number > NUMBER_MAX) {
        let text = format!("number is from 0 to {NUMBER_MAX}");
        return Err(ApiError::new(ErrorCode::InvalidBody, text));
    }
    let (attached, new) = context.backend.attach(request).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(attached)).into_response())
}

/// Lists the block devices that Flagstone has made on the daemon's machine.
#[utoipa::path(
    get, path = "/v1/ublk", tag = "ublk",
    responses(
        (status = 200, description = "Block devices, by number", body = AttachedList),
        (status = 409, description = "ublk_refused: the kernel does not tell which there are", body = ErrorBody),
        (status = 501, description = "ublk_unavailable: the kernel has no ublk, or an old one", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
pub(super) async fn list_attached(
    State(context): State<Context>,
) -> Result<axum::Json<AttachedList>, ApiError> {
    let devices = context.backend.attached().await?;
    Ok(axum::Json(AttachedList { devices }))
}

/// Takes the block device of a volume or snapshot away.
///
/// Detaching it again answers not_attached, which a caller that retries may take as success.
#[utoipa::path(
    delete, path = "/v1/ublk/{name}", tag = "ublk",
    params(
        ("name" = String, Path, description = "Name of the volume, or VOLUME@SNAPSHOT"),
        ("force" = Option<bool>, Query, description = "Even while it is mounted or part of another device: whoever uses it gets errors"),
    ),
    responses(
        (status = 204, description = "Detached"),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found, not_attached", body = ErrorBody),
        (status = 409, description = "volume_in_use, ublk_refused", body = ErrorBody),
        (status = 501, description = "ublk_unavailable: the kernel has no ublk, or an old one", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn detach(
    State(context): State<Context>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    check_either(&name)?;
    context.backend.detach(name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn check_either(name: &str) -> Result<(), ApiError> {
    if name.contains('@') { check_snapshot_name(name) } else { check_name(name) }
}
