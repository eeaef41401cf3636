//! Devices of the kernel's NBD client: volumes and snapshots attached to the daemon's machine, where there is no ublk.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::routes::{Context, Json, Path, Query};
use super::types::DeleteQuery;
use super::ublk::{AttachedState, check_either};
use crate::kernel_nbd::NUMBER_MAX;

/// Asks for a device of the kernel's NBD client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachNbd {
    /// Name of the volume, or of a snapshot, `VOLUME@SNAPSHOT`, which can only be read.
    #[schema(example = "demo")]
    pub volume: String,
    /// The N of `/dev/nbdN`, 0 to 32767; without it, the next that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
}

/// A volume or snapshot as a device of the kernel's NBD client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NbdAttached {
    /// Where it is.
    #[schema(example = "/dev/nbd0")]
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
    /// `live` if this daemon serves it; `waiting` if not, or another does; `dead` if it was detached and somebody still has it open.
    pub state: AttachedState,
}

/// Devices of the kernel's NBD client, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NbdAttachedList {
    /// All of this machine that Flagstone has made.
    pub devices: Vec<NbdAttached>,
}

/// Attaches a volume or a snapshot as `/dev/nbdN` of the daemon's machine.
///
/// If it is one already, that is a success (200) that changes nothing. The device outlives the daemon: when it stops, or
/// dies, requests wait until it is back, for a day at most.
#[utoipa::path(
    post, path = "/v1/nbd", tag = "nbd", request_body = AttachNbd,
    responses(
        (status = 201, description = "Attached", body = NbdAttached),
        (status = 200, description = "It was attached already", body = NbdAttached),
        (status = 400, description = "invalid_name, malformed_json", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found; not_attached: somebody took it away at once", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "volume_in_use: it is attached by ublk; nbd_refused: the kernel does not make such a device, or the one that there is can't be served", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 501, description = "nbd_unavailable: the kernel's NBD client is not there, or too old", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn attach_nbd(
    State(context): State<Context>,
    Json(request): Json<AttachNbd>,
) -> Result<Response, ApiError> {
    check_either(&request.volume)?;
    if request.number.is_some_and(|number| number > NUMBER_MAX) {
        let text = format!("number is from 0 to {NUMBER_MAX}");
        return Err(ApiError::new(ErrorCode::InvalidBody, text));
    }
    let (attached, new) = context.backend.attach_nbd(request).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(attached)).into_response())
}

/// Lists the `/dev/nbdN` that Flagstone has made on the daemon's machine.
#[utoipa::path(
    get, path = "/v1/nbd", tag = "nbd",
    responses(
        (status = 200, description = "Devices, by number", body = NbdAttachedList),
        (status = 409, description = "nbd_refused: the kernel does not tell which there are", body = ErrorBody),
        (status = 503, description = "stopping", body = ErrorBody),
    )
)]
pub(super) async fn list_nbd(
    State(context): State<Context>,
) -> Result<axum::Json<NbdAttachedList>, ApiError> {
    let devices = context.backend.attached_nbd().await?;
    Ok(axum::Json(NbdAttachedList { devices }))
}

/// Takes the `/dev/nbdN` of a volume or snapshot away.
///
/// Detaching it again answers not_attached, which a caller that retries may take as success.
#[utoipa::path(
    delete, path = "/v1/nbd/{name}", tag = "nbd",
    params(
        ("name" = String, Path, description = "Name of the volume, or VOLUME@SNAPSHOT"),
        ("force" = Option<bool>, Query, description = "Even while it is mounted or otherwise in use: whoever uses it gets errors"),
    ),
    responses(
        (status = 204, description = "Detached"),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found, not_attached", body = ErrorBody),
        (status = 409, description = "volume_in_use, nbd_refused", body = ErrorBody),
        (status = 501, description = "nbd_unavailable: the kernel's NBD client is not there", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn detach_nbd(
    State(context): State<Context>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    check_either(&name)?;
    context.backend.detach_nbd(name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}
