//! Differences of volumes and snapshots: what answers look like, and the endpoint.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody, ErrorCode};
use super::routes::{Context, Query};
use crate::name::{check_name, split_snapshot_name};
use crate::node;
use crate::node::limits::DIFF_EXTENTS;

/// What a stretch that differs is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiffKind {
    /// Data.
    Data,
    /// Zeroes: it was data, and was discarded or zeroed, or lies behind the end.
    Zero,
}

/// A stretch in which every block of 4096 bytes differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffExtent {
    /// Bytes from the beginning, a multiple of 4096.
    pub offset_bytes: u64,
    /// How long it is, a multiple of 4096.
    pub length_bytes: u64,
    /// What it is in the newer of the two.
    pub kind: DiffKind,
}

/// A volume or snapshot that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffSide {
    /// Its name; a snapshot's is `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Its identity: if it is another than on the page before, this is another volume or snapshot of the
    /// same name.
    pub uuid: String,
    /// Its size in bytes. What lies behind the end of the smaller of the two is zeroes there.
    pub size_bytes: u64,
}

/// One page of differences, in the order of their offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffPage {
    /// The older of the two; absent if it was compared with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<DiffSide>,
    /// The newer.
    pub newer: DiffSide,
    /// What differs, from the beginning of the page on.
    pub extents: Vec<DiffExtent>,
    /// Where the next page begins: `from` of the request for it. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// What to compare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The older of the two: a volume or snapshot. Without it everything that is mapped differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<String>,
    /// The newer: a volume or snapshot of the same pool.
    pub newer: String,
    /// Where to begin, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// How many extents at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Tells what differs between two volumes or snapshots, in blocks of 4096 bytes.
///
/// From what says where their blocks lie; no data is read, and it takes the longer the more differs, however
/// large they are. Two blocks differ if one was written, zeroed or discarded since; blocks that read as
/// zeroes in both don't. One that was overwritten with the same bytes does. They need not be related, but of
/// one pool. A volume that is written meanwhile is compared, part by part, as it is when the walk comes
/// there: what was answered before the first page was asked for is told. Take a snapshot first to have one
/// moment.
#[utoipa::path(
    get, path = "/v1/diff", tag = "snapshots",
    params(
        ("older" = Option<String>, Query, description = "The older of the two, VOLUME@SNAPSHOT or VOLUME; without it, everything that is mapped is told"),
        ("newer" = String, Query, description = "The newer, VOLUME or VOLUME@SNAPSHOT"),
        ("from" = Option<u64>, Query, description = "Where to begin, in bytes: `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "How many extents at most, 1 to 4096, which is the default"),
    ),
    responses(
        (status = 200, description = "What differs; `next` if there may be more", body = DiffPage),
        (status = 400, description = "invalid_name, invalid_query", body = ErrorBody),
        (status = 404, description = "volume_not_found, snapshot_not_found", body = ErrorBody),
        (status = 409, description = "different_pools", body = ErrorBody),
        (status = 500, description = "map_damaged", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn diff(
    State(context): State<Context>,
    Query(query): Query<DiffQuery>,
) -> Result<axum::Json<DiffPage>, ApiError> {
    check_target(&query.newer)?;
    query.older.as_deref().map_or(Ok(()), check_target)?;
    let limit = query.limit.unwrap_or(DIFF_EXTENTS as u32);
    if !(1..=DIFF_EXTENTS as u32).contains(&limit) {
        let text = format!("limit is from 1 to {DIFF_EXTENTS}, not {limit}");
        return Err(ApiError::new(ErrorCode::InvalidQuery, text));
    }
    context.backend.diff(query).await.map(axum::Json)
}

pub(super) fn check_target(name: &str) -> Result<(), ApiError> {
    let checked = match name.contains('@') {
        true => split_snapshot_name(name).map(drop).map_err(|error| error.to_string()),
        false => check_name(name).map_err(|error| error.to_string()),
    };
    checked.map_err(|text| ApiError::new(ErrorCode::InvalidName, text))
}

impl From<DiffQuery> for node::DiffQuery {
    fn from(query: DiffQuery) -> Self {
        Self {
            older: query.older.map(node::DiffTarget::Name),
            newer: node::DiffTarget::Name(query.newer),
            from: query.from.unwrap_or(0),
            limit: query.limit.map_or(DIFF_EXTENTS, |limit| limit as usize),
        }
    }
}

impl From<node::DiffPage> for DiffPage {
    fn from(page: node::DiffPage) -> Self {
        let side = |side: node::DiffSide| DiffSide {
            name: side.name,
            uuid: uuid::Uuid::from_bytes(side.uuid).hyphenated().to_string(),
            size_bytes: side.size_bytes,
        };
        let extent = |extent: node::DiffExtent| DiffExtent {
            offset_bytes: extent.offset,
            length_bytes: extent.len,
            kind: match extent.kind {
                node::DiffKind::Data => DiffKind::Data,
                node::DiffKind::Zero => DiffKind::Zero,
            },
        };
        Self {
            older: page.older.map(side),
            newer: side(page.newer),
            extents: page.extents.into_iter().map(extent).collect(),
            next: page.next,
        }
    }
}
