//! Scrubs: what the API says of them, and its endpoints.

use axum::extract::State;
use axum::http::StatusCode;
use flagstone_block::{BLOCK_SIZE, split_offset};
use flagstone_engine::{ScrubFinding, ScrubPlace, ScrubReport, ScrubState as Engines};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::{ApiError, ErrorBody};
use super::routes::{Context, OptionalJson, Path};
use crate::node::ScrubAction;
use crate::pool::explain;

/// Bytes per second that a scrub reads unless told otherwise: little beside what a disk can do.
pub const RATE_DEFAULT: u64 = 64 << 20;

/// How a scrub is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartScrub {
    /// Bytes per second that it may read; 0 for no bound. Without it 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<u64>,
}

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// There was none since the daemon started.
    #[default]
    Never,
    /// It reads and verifies.
    Running,
    /// All is read; damaged metadata is being written anew.
    Repairing,
    /// It came to its end.
    Finished,
    /// It was ended, by a request or because the daemon stops.
    Cancelled,
    /// The pool's device failed.
    Failed,
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Damaged {
    /// A superblock copy.
    Superblock,
    /// A journal block.
    Journal,
    /// A copy of a metadata page.
    MetadataPage,
    /// A page of a volume's map.
    LeafPage,
    /// The copy of a segment's summary, in a pool of several devices.
    SummaryCopy,
    /// A segment's summary: the segment can be read, but not be cleaned.
    Summary,
    /// Data.
    Data,
    /// Something that only a newer daemon knows.
    #[serde(other)]
    Other,
}

/// Damage, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What is damaged.
    pub what: Damaged,
    /// The volume, of data and of pages of its map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// First byte in the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_offset_bytes: Option<u64>,
    /// Bytes in a row, on the device and, of data, in the volume.
    pub bytes: u64,
    /// Number of the device in its pool.
    #[serde(default)]
    pub device: u32,
    /// First byte on the device.
    pub device_offset_bytes: u64,
    /// Segment, if it lies in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u32>,
    /// What is wrong with it.
    pub reason: String,
    /// It has been written anew elsewhere.
    pub repaired: bool,
}

/// A pool's scrub under way, or its last since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrub {
    /// How far it has come.
    pub state: ScrubState,
    /// Nothing that was read is damaged, or it has been repaired.
    pub sound: bool,
    /// Bytes per second that it may read; 0 for no bound.
    pub rate_bytes_per_second: u64,
    /// Bytes verified.
    pub done_bytes: u64,
    /// Bytes that there were to verify when it began.
    pub total_bytes: u64,
    /// Blocks of data verified.
    pub verified_blocks: u64,
    /// Blocks of data that are damaged.
    pub bad_blocks: u64,
    /// Damaged metadata.
    pub bad_metadata: u64,
    /// How much of that was written anew.
    pub repaired: u64,
    /// The first findings, a bounded number.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub unlisted: u64,
}

impl From<ScrubReport> for Scrub {
    fn from(report: ScrubReport) -> Self {
        Self {
            state: match report.state {
                Engines::Running => ScrubState::Running,
                Engines::Repairing => ScrubState::Repairing,
                Engines::Finished => ScrubState::Finished,
                Engines::Cancelled => ScrubState::Cancelled,
                Engines::Failed => ScrubState::Failed,
            },
            sound: report.is_sound(),
            rate_bytes_per_second: report.rate,
            done_bytes: report.done,
            total_bytes: report.total,
            verified_blocks: report.data_blocks,
            bad_blocks: report.bad_blocks,
            bad_metadata: report.bad_metadata,
            repaired: report.repaired,
            findings: report.findings.into_iter().map(Finding::from).collect(),
            unlisted: report.unlisted,
        }
    }
}

impl From<ScrubFinding> for Finding {
    fn from(finding: ScrubFinding) -> Self {
        let block = BLOCK_SIZE as u64;
        let (what, place) = match finding.place {
            ScrubPlace::Superblock => (Damaged::Superblock, None),
            ScrubPlace::Journal { .. } => (Damaged::Journal, None),
            ScrubPlace::MetadataPage { .. } => (Damaged::MetadataPage, None),
            ScrubPlace::LeafPage { volume, lba } => (Damaged::LeafPage, Some((volume, lba))),
            ScrubPlace::SummaryCopy { .. } => (Damaged::SummaryCopy, None),
            ScrubPlace::Summary => (Damaged::Summary, None),
            ScrubPlace::Data { volume, lba } => (Damaged::Data, Some((volume, lba))),
        };
        let (volume, lba) = place.unzip();
        Self {
            what,
            volume,
            volume_offset_bytes: lba.map(|lba| lba * block),
            bytes: u64::from(finding.blocks) * block,
            device: split_offset(finding.offset).0 as u32,
            device_offset_bytes: split_offset(finding.offset).1,
            segment: finding.segment,
            reason: finding.device.map_or_else(|| "checksum mismatch".to_owned(), explain),
            repaired: finding.repaired,
        }
    }
}

/// Begins a scrub: reads everything in the pool that counts, while it serves.
///
/// Metadata that is damaged is written anew; damaged data is reported.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/scrub", tag = "pools", request_body = Option<StartScrub>,
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 202, description = "Begun", body = Scrub),
        (status = 400, description = "malformed_json", body = ErrorBody),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 408, description = "request_timeout", body = ErrorBody),
        (status = 409, description = "scrub_running", body = ErrorBody),
        (status = 413, description = "body_too_large", body = ErrorBody),
        (status = 415, description = "unsupported_media_type", body = ErrorBody),
        (status = 422, description = "invalid_body", body = ErrorBody),
        (status = 503, description = "pool_failed, busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn start_scrub(
    State(context): State<Context>,
    Path(pool): Path<String>,
    OptionalJson(request): OptionalJson<StartScrub>,
) -> Result<(StatusCode, axum::Json<Scrub>), ApiError> {
    let rate = request.rate_bytes_per_second.unwrap_or(RATE_DEFAULT);
    let scrub = context.backend.scrub(pool, ScrubAction::Start { rate }).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(scrub)))
}

/// Shows the scrub under way, or the last one since the daemon started.
#[utoipa::path(
    get, path = "/v1/pools/{pool}/scrub", tag = "pools",
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 200, description = "The scrub", body = Scrub),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn show_scrub(
    State(context): State<Context>,
    Path(pool): Path<String>,
) -> Result<axum::Json<Scrub>, ApiError> {
    context.backend.scrub(pool, ScrubAction::Show).await.map(axum::Json)
}

/// Ends the scrub under way.
///
/// What it found so far stays. Without a scrub under way nothing changes, which is a success.
#[utoipa::path(
    delete, path = "/v1/pools/{pool}/scrub", tag = "pools",
    params(("pool" = String, Path, description = "UUID of the pool")),
    responses(
        (status = 200, description = "The scrub, which ends at once", body = Scrub),
        (status = 404, description = "pool_not_found", body = ErrorBody),
        (status = 503, description = "busy, stopping", body = ErrorBody),
    )
)]
pub(super) async fn cancel_scrub(
    State(context): State<Context>,
    Path(pool): Path<String>,
) -> Result<axum::Json<Scrub>, ApiError> {
    context.backend.scrub(pool, ScrubAction::Cancel).await.map(axum::Json)
}
