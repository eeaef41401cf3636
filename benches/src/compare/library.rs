//! The library, driven in a process of its own: `flagstone bench pool`.

use std::path::Path;

use flagstone_loadgen::{Limits, Pattern, Workload};

use super::{CompareError, Plan, tool};

/// Runs a job on a volume of a pool; its report, in JSON.
pub(super) fn run(
    plan: &Plan,
    pool: &Path,
    volume: &str,
    workload: &Workload,
    limits: &Limits,
) -> Result<String, CompareError> {
    let mut arguments: Vec<String> = vec!["bench".into(), "pool".into()];
    arguments.push(pool.display().to_string());
    arguments.push(volume.into());
    let mut option = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
    option("create", plan.span_bytes.to_string());
    option("block-size", workload.block_size.to_string());
    option("depth", workload.depth.to_string());
    option("mix", workload.read_percent.to_string());
    let pattern = match workload.pattern {
        Pattern::Random => "random",
        Pattern::Sequential => "sequential",
        Pattern::Shuffled => "shuffled",
    };
    option("pattern", pattern.into());
    option("seed", workload.seed.to_string());
    option("rampup", format!("{}ms", limits.rampup.as_millis()));
    if let Some(duration) = limits.duration {
        option("duration", format!("{}ms", duration.as_millis()));
    }
    if let Some(operations) = limits.operations {
        option("ops", operations.to_string());
    }
    arguments.push("--json".into());
    tool::output(&plan.flagstone, arguments)
}
