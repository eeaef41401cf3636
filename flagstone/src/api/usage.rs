//! What volumes and snapshots have alone: what answers look like, and the endpoint.

use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::diff::check_target;
use super::errors::{ApiError, ErrorBody};
use super::routes::Context;
use crate::node;

/// What a volume or snapshot takes of its pool, and shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Its name; a snapshot's is `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Its identity, which never comes back.
    pub uuid: String,
    /// Bytes of data that no other volume or snapshot has.
    pub exclusive_bytes: u64,
    /// Bytes of data that others have too: what it has mapped is these and the exclusive ones.
    pub shared_bytes: u64,
    /// Bytes that come back to the pool when it is deleted, of a volume kept zeroes among them. Of a
    /// snapshot that is needed by several clones, none before all but one of them are gone.
    pub frees_bytes: u64,
}

/// Counts what a volume or snapshot has alone, and what deleting it would give back.
///
/// Exactly, block by block, from what is known in memory; the larger it is the longer that takes,
/// seconds per TiB of data. One that is written meanwhile is counted, part by part, as it is then.
#[utoipa::path(
    get, path = "/v1/usage/{name}", tag = "snapshots",
    params(("name" = String, Path, description = "Name of the volume, or VOLUME@SNAPSHOT")),
    responses(
        (status = 200, description = "What it has", body = Usage),
        (status = 400, description = "invalid_name", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn usage(
    State(context): State<Context>,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<axum::Json<Usage>, ApiError> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    check_target(&name)?;
    context.backend.usage(name).await.map(axum::Json)
}

impl From<node::Usage> for Usage {
    fn from(usage: node::Usage) -> Self {
        Self {
            name: usage.name,
            uuid: uuid::Uuid::from_bytes(usage.uuid).hyphenated().to_string(),
            exclusive_bytes: usage.exclusive_bytes,
            shared_bytes: usage.shared_bytes,
            frees_bytes: usage.frees_bytes,
        }
    }
}
