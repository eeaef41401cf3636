//! `flagstone export` and `flagstone import`: images of a running daemon's volumes, to and from files and pipes.

pub mod export;
mod file;
pub mod import;
mod interrupt;
mod remote;

use serde::Serialize;

use super::Failure;
use crate::exit::Exit;
use crate::image::ImageError;
use crate::image::format::Header;
use crate::size::Human;
use remote::RemoteError;

/// What an image is of, for JSON.
#[derive(Debug, Serialize)]
struct About {
    name: String,
    volume_uuid: String,
    snapshot_uuid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_uuid: Option<String>,
    size_bytes: u64,
    data_bytes: u64,
}

impl From<&Header> for About {
    fn from(header: &Header) -> Self {
        let uuid = |uuid| uuid::Uuid::from_bytes(uuid).hyphenated().to_string();
        let base = header.base.as_ref();
        Self {
            name: header.name.clone(),
            volume_uuid: uuid(header.volume_uuid),
            snapshot_uuid: uuid(header.snapshot_uuid),
            base: base.map(|base| base.name.clone()),
            base_uuid: base.map(|base| uuid(base.uuid)),
            size_bytes: header.size_bytes,
            data_bytes: header.data_bytes,
        }
    }
}

/// What an image is of, in words.
fn about(header: &Header) -> String {
    let from = match &header.base {
        None => "all of it".to_owned(),
        Some(base) => format!("what changed since {}", base.name),
    };
    let (data, size) = (Human(header.data_bytes), Human(header.size_bytes));
    format!("{} ({size}), {from}: {data} of data", header.name)
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Api(error) => error.into(),
            error => Self::new(Exit::Failure, error),
        }
    }
}

/// A stream at `place` that was refused.
fn unusable(place: &str, error: &ImageError) -> Failure {
    let (exit, code) = match error {
        ImageError::Read(_) => (Exit::Failure, Exit::Failure.code()),
        ImageError::NotAnImage => (Exit::Damaged, "not_an_image"),
        ImageError::Version { .. } => (Exit::Damaged, "image_version"),
        ImageError::Truncated { .. } => (Exit::Damaged, "image_truncated"),
        ImageError::Damaged { .. } | ImageError::Trailing { .. } => {
            (Exit::Damaged, "image_damaged")
        }
    };
    Failure::coded(exit, code, format!("{place}: {error}"))
}
