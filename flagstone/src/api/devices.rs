//! The devices of a pool: added, emptied and removed, kept after all.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody};
use super::routes::{Context, Json, Path};
use super::types::Pool;

/// A file or block device that is to be added to a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// Where it is, for the daemon. A file that does not exist is made.
    pub path: String,
    /// Size of a file that does not exist or is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Add it even if it holds something, which is lost.
    #[serde(default)]
    pub force: bool,
}

/// What becomes of a device that a pool has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceAction {
    /// It is emptied and removed.
    Remove,
    /// It is used again.
    Keep,
}

/// Adds a file or block device to a pool.
///
/// What is written is spread over it from now on; what is there is not moved to it.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/devices", tag = "pools", request_body = AddDevice,
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 200, description = "The pool as it is now, durable", body = Pool),
        (status = 400, description = "malformed_json", body = ErrorBody),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "device_unfit: it holds data, is in use, or can't be used; \
            device_refused", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn add_device(
    State(context): State<Context>,
    Path(pool): Path<String>,
    Json(request): Json<AddDevice>,
) -> Result<axum::Json<Pool>, ApiError> {
    context.backend.add_device(pool, request).await.map(axum::Json)
}

/// Empties a device of a pool, and removes it when it is empty.
///
/// Answered when that has begun and is durable: it goes on by itself, and after a restart. The pool's
/// `devices` show how far it is; once it is gone from there the device is free for something else.
#[utoipa::path(
    delete, path = "/v1/pools/{pool}/devices/{device}", tag = "pools",
    params(
        ("pool" = String, Path, description = "UUID of the pool"),
        ("device" = String, Path, description = "UUID of the device"),
    ),
    responses(
        (status = 200, description = "The pool as it is now", body = Pool),
        (status = 404, description = "pool_not_found, device_not_found", body = ErrorBody),
        (status = 409, description = "device_refused: the others have no room for what is on it",
            body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn remove_device(
    State(context): State<Context>,
    Path((pool, device)): Path<(String, String)>,
) -> Result<axum::Json<Pool>, ApiError> {
    context.backend.change_device(pool, device, DeviceAction::Remove).await.map(axum::Json)
}

/// Ends the emptying of a device: it is used again.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/devices/{device}/keep", tag = "pools",
    params(
        ("pool" = String, Path, description = "UUID of the pool"),
        ("device" = String, Path, description = "UUID of the device"),
    ),
    responses(
        (status = 200, description = "The pool as it is now, durable", body = Pool),
        (status = 404, description = "pool_not_found, device_not_found", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn keep_device(
    State(context): State<Context>,
    Path((pool, device)): Path<(String, String)>,
) -> Result<axum::Json<Pool>, ApiError> {
    context.backend.change_device(pool, device, DeviceAction::Keep).await.map(axum::Json)
}
