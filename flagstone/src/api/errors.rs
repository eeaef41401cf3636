//! Errors as the API tells them: a stable code for programs, a sentence for people.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::exit::Exit;

/// What went wrong. Codes are never renamed or reused; new ones may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The body is not JSON.
    MalformedJson,
    /// The body is JSON, but not what the endpoint takes: a field is missing, unknown or of the
    /// wrong type.
    InvalidBody,
    /// The body is not declared as `application/json`.
    UnsupportedMediaType,
    /// The body is larger than the API takes.
    BodyTooLarge,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The query has an unknown parameter or a bad value.
    InvalidQuery,
    /// The name can't be a volume's.
    InvalidName,
    /// The size can't be a volume's.
    InvalidSize,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No volume of that name.
    VolumeNotFound,
    /// A volume of that name exists with another size, or in another pool.
    VolumeExists,
    /// Clients are connected to the volume.
    VolumeInUse,
    /// The volume has snapshots, which must be deleted first.
    VolumeHasSnapshots,
    /// No snapshot of that name.
    SnapshotNotFound,
    /// A snapshot of that name exists.
    SnapshotExists,
    /// Clients are connected to the snapshot.
    SnapshotInUse,
    /// That can't be done to a snapshot, which is only read.
    ReadOnlySnapshot,
    /// No snapshots were asked for, or too many to be one instant.
    SnapshotCount,
    /// What is to be one instant, or to be compared, lies in several pools.
    DifferentPools,
    /// A part of the map is damaged, and what is asked for can't be told.
    MapDamaged,
    /// The new size is smaller, and the volume must or can't shrink so.
    ShrinkRefused,
    /// The reservation can't be that volume's.
    InvalidReservation,
    /// The pool can't back the reservation.
    ReservationUnbacked,
    /// No such pool.
    PoolNotFound,
    /// The pool has no such device.
    DeviceNotFound,
    /// The file or device can't be added: it holds data, is in use, or can't be opened.
    DeviceUnfit,
    /// The pool can't do without the device, or not with it.
    DeviceRefused,
    /// The kernel has no ublk, or one that is too old.
    UblkUnavailable,
    /// The kernel refused to make, start or stop the block device.
    UblkRefused,
    /// The kernel's NBD client is not there.
    NbdUnavailable,
    /// The kernel's NBD client refused to make or end a device.
    NbdRefused,
    /// The volume or snapshot is not attached as a block device.
    NotAttached,
    /// A scrub of the pool is under way.
    ScrubRunning,
    /// The pool has no space left.
    PoolFull,
    /// The pool has as many volumes as it can have.
    TooManyVolumes,
    /// The pool's device failed.
    PoolFailed,
    /// A device of the pool is missing, and it is only read.
    PoolReadOnly,
    /// The daemon can't take the request now.
    Busy,
    /// The daemon is stopping.
    Stopping,
    /// A fault of the daemon.
    Internal,
    /// A code that a newer daemon has.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson
            | Self::InvalidQuery
            | Self::InvalidName
            | Self::InvalidSize
            | Self::InvalidReservation => StatusCode::BAD_REQUEST,
            Self::InvalidBody | Self::SnapshotCount => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotFound
            | Self::VolumeNotFound
            | Self::SnapshotNotFound
            | Self::PoolNotFound
            | Self::DeviceNotFound
            | Self::NotAttached => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::VolumeExists
            | Self::VolumeInUse
            | Self::VolumeHasSnapshots
            | Self::SnapshotExists
            | Self::SnapshotInUse
            | Self::ReadOnlySnapshot
            | Self::DifferentPools
            | Self::ShrinkRefused
            | Self::DeviceUnfit
            | Self::DeviceRefused
            | Self::UblkRefused
            | Self::NbdRefused
            | Self::ScrubRunning => StatusCode::CONFLICT,
            Self::UblkUnavailable | Self::NbdUnavailable => StatusCode::NOT_IMPLEMENTED,
            Self::PoolFull | Self::TooManyVolumes | Self::ReservationUnbacked => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::PoolFailed | Self::PoolReadOnly | Self::Busy | Self::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::MapDamaged | Self::Internal | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The exit status of a command that got this answer.
    #[must_use]
    pub const fn exit(self) -> Exit {
        match self {
            Self::NotFound
            | Self::VolumeNotFound
            | Self::SnapshotNotFound
            | Self::PoolNotFound
            | Self::DeviceNotFound
            | Self::NotAttached => Exit::NotFound,
            Self::Internal | Self::Unknown | Self::PoolFailed | Self::MapDamaged => Exit::Failure,
            Self::InvalidName | Self::InvalidSize | Self::InvalidReservation => Exit::Usage,
            _ => Exit::Refused,
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with this code and sentence.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// There is no volume `name`.
    #[must_use]
    pub fn volume_not_found(name: &str) -> Self {
        Self::new(
            ErrorCode::VolumeNotFound,
            format!("there is no volume \"{name}\"; `flagstone volume list` shows what there is"),
        )
    }

    /// There is no snapshot `name`.
    #[must_use]
    pub fn snapshot_not_found(name: &str) -> Self {
        Self::new(
            ErrorCode::SnapshotNotFound,
            format!(
                "there is no snapshot \"{name}\"; `flagstone snapshot list` shows what there is"
            ),
        )
    }

    /// The daemon is on its way out.
    #[must_use]
    pub fn stopping() -> Self {
        Self::new(ErrorCode::Stopping, "the daemon is stopping; try again when it runs again")
    }
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ApiError,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(ErrorBody { error: self })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_snake_case_and_survive_newer_daemons() {
        let text = serde_json::to_string(&ErrorCode::VolumeExists).unwrap();
        assert_eq!(text, "\"volume_exists\"");
        let code: ErrorCode = serde_json::from_str("\"from_the_future\"").unwrap();
        assert_eq!(code, ErrorCode::Unknown);
    }
}
