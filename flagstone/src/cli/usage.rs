//! How commands show what volumes and snapshots have alone.

use serde::Serialize;

use super::Failure;
use super::api_args::ApiArgs;
use crate::api::client::ClientError;
use crate::api::errors::ErrorCode;
use crate::api::snapshots::{SnapshotInfo, SnapshotList};
use crate::api::usage::Usage;
use crate::output::{self, Table};
use crate::size::Human;

/// A volume or snapshot as the API tells it, and what it has alone.
#[derive(Debug, Serialize)]
pub struct WithUsage<T: Serialize> {
    /// The volume or snapshot.
    #[serde(flatten)]
    pub of: T,
    /// What it has alone.
    pub usage: Usage,
}

/// The lines that follow `exclusive`.
pub fn shared_lines(usage: &Usage) -> String {
    let (shared, frees) = (Human(usage.shared_bytes), Human(usage.frees_bytes));
    format!("shared       {shared}\nfrees        {frees}\n")
}

#[derive(Debug, Serialize)]
struct List {
    snapshots: Vec<WithUsage<SnapshotInfo>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Counts what each snapshot of a list has alone, and shows it.
pub fn list_usage(api: &ApiArgs, list: SnapshotList, json: bool) -> Result<(), Failure> {
    let SnapshotList { snapshots, next } = list;
    let counted = api.call(|client| async move {
        let mut counted = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            match client.usage(&snapshot.name).await {
                Ok(usage) => counted.push(WithUsage { of: snapshot, usage }),
                // It was deleted since it was listed.
                Err(ClientError::Refused(error)) if error.code == ErrorCode::SnapshotNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(counted)
    })?;
    if json {
        return Ok(output::json(&List { snapshots: counted, next })?);
    }
    let headers = ["NAME", "SIZE>", "MAPPED>", "EXCLUSIVE>", "SHARED>", "FREES>"];
    let mut table = Table::new(&headers);
    for WithUsage { of, usage } in counted {
        let bytes = |bytes| Human(bytes).to_string();
        table.row(vec![
            of.name,
            bytes(of.size_bytes),
            bytes(of.mapped_bytes),
            bytes(usage.exclusive_bytes),
            bytes(usage.shared_bytes),
            bytes(usage.frees_bytes),
        ]);
    }
    output::line(&table.render())?;
    if let Some(next) = next {
        output::line(&format!("there are more: --after {next}"))?;
    }
    Ok(())
}
