//! `flagstone pool status`: the pools of a running daemon, and how full they are.

use crate::api::types::{Pool, PoolDevice, PoolList, PoolState};
use crate::cli::Failure;
use crate::cli::api_args::ApiArgs;
use crate::output::{self, Table};
use crate::size::Human;

/// Percent of a pool's capacity from which a hint is printed, and the hint.
const HINTS: [(u64, &str); 3] = [
    (93, "nearly full: overwriting is slow now, and new blocks will soon be refused"),
    (85, "filling up: overwriting costs more from here on; discard, delete, or plan for more"),
    (75, "three quarters full: the time to plan for more"),
];

/// Show the pools of a running daemon: state, space, and what cleaning costs
///
/// USED is what volumes map and zeroes that are kept allocated; RESERVED what reservations hold back
/// beyond that; FREE what new blocks of other volumes may still take; DEBT what is dead but not
/// reclaimed yet.
/// PROVISIONED, the sum of the volumes' sizes, may exceed the capacity. AMPLIFICATION is how many
/// blocks were written per block that a client wrote since the pool was opened: the cleaner moves
/// live blocks to set segments free, and what lies scattered is written again in sequence when it
/// is read in sequence.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool status
  flagstone pool status --json | jq '.pools[] | .used_bytes / .capacity_bytes'")]
pub struct Args {
    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let pools = args.api.call(|client| async move { client.pools().await })?;
    if json {
        return Ok(output::json(&PoolList { pools })?);
    }
    let mut table = Table::new(&[
        "POOL",
        "STATE",
        "CAPACITY>",
        "USED>",
        "%>",
        "RESERVED>",
        "FREE>",
        "DEBT>",
        "PROVISIONED>",
        "VOLUMES>",
        "SEGMENTS FREE>",
        "AMPLIFICATION>",
    ]);
    for pool in &pools {
        table.row([
            pool.path.clone(),
            pool.state.as_str().to_owned(),
            Human(pool.capacity_bytes).to_string(),
            Human(pool.used_bytes).to_string(),
            percent(pool).to_string(),
            Human(pool.reserved_bytes).to_string(),
            Human(pool.free_bytes).to_string(),
            Human(pool.debt_bytes).to_string(),
            Human(pool.provisioned_bytes).to_string(),
            pool.volumes.to_string(),
            format!("{} of {}", pool.segments_free, pool.segments),
            amplification(pool),
        ]);
    }
    output::line(&table.render())?;
    let tells = |device: &PoolDevice| {
        device.data_path.as_deref().is_some_and(|path| path.starts_with("nvme"))
            || device.data_path_reason.is_some()
    };
    for pool in pools.iter().filter(|p| p.devices.len() > 1 || p.devices.iter().any(tells)) {
        let columns = ["DEVICE", "STATE", "DATA PATH", "SIZE>", "SEGMENTS EMPTY>", "UUID"];
        let mut table = Table::new(&columns);
        for device in &pool.devices {
            let journal = if device.journal { ", journal" } else { "" };
            table.row([
                device.path.clone(),
                format!("{}{journal}", device.state),
                device.data_path.as_deref().unwrap_or("-").to_owned(),
                Human(device.size_bytes).to_string(),
                format!("{} of {}", device.segments_empty, device.segments),
                device.uuid.clone(),
            ]);
        }
        output::line(&format!("\ndevices of {}:\n{}", pool.path, table.render()))?;
    }
    for device in pools.iter().flat_map(|pool| &pool.devices) {
        if let Some(reason) = &device.data_path_reason {
            let path = &device.path;
            output::line(&format!(
                "{path}: driven as a block device, not by NVMe commands: {reason}"
            ))?;
        }
    }
    for pool in &pools {
        if pool.waiting > 0 {
            let what = format!("{}: {} requests wait for space", pool.path, pool.waiting);
            output::line(&what)?;
        }
        if let Some(hint) = hint(pool) {
            output::line(&format!("{}: {hint}", pool.path))?;
        }
    }
    Ok(())
}

fn percent(pool: &Pool) -> u64 {
    (u128::from(pool.used_bytes) * 100 / u128::from(pool.capacity_bytes.max(1))) as u64
}

/// Blocks written per block that clients wrote; a dash while nothing was.
fn amplification(pool: &Pool) -> String {
    if pool.written_bytes == 0 {
        return "-".to_owned();
    }
    let again = pool.moved_bytes + pool.rewritten_bytes;
    format!("{:.2}", 1.0 + again as f64 / pool.written_bytes as f64)
}

fn hint(pool: &Pool) -> Option<String> {
    if pool.state != PoolState::Running {
        return Some(pool.reason.clone().unwrap_or_else(|| pool.state.as_str().to_owned()));
    }
    if pool.free_bytes == 0 {
        let waits = match pool.waiting {
            0 => String::new(),
            1 => ", and a request waits for space".to_owned(),
            n => format!(", and {n} requests wait for space"),
        };
        return Some(format!("full but for what is reserved{waits}: discard, delete, or grow it"));
    }
    let full = percent(pool);
    HINTS.iter().find(|(from, _)| full >= *from).map(|(_, hint)| (*hint).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(used_bytes: u64, written_bytes: u64, moved_bytes: u64) -> Pool {
        Pool {
            path: "/p".to_owned(),
            device_bytes: 2000,
            capacity_bytes: 1000,
            used_bytes,
            free_bytes: 1000 - used_bytes,
            provisioned_bytes: 5000,
            volumes: 1,
            direct_io: true,
            segments: 10,
            segments_free: 5,
            written_bytes,
            moved_bytes,
            ..Pool::default()
        }
    }

    #[test]
    fn hints_come_at_their_thresholds() {
        assert_eq!(hint(&pool(749, 0, 0)), None);
        let hints: Vec<_> = [750, 850, 930].map(|used| hint(&pool(used, 0, 0)).unwrap()).into();
        assert!(hints[0].starts_with("three quarters"), "{hints:?}");
        assert!(hints[1].starts_with("filling up"), "{hints:?}");
        assert!(hints[2].starts_with("nearly full"), "{hints:?}");
        // Reservations may fill a pool long before data does.
        let full = Pool { free_bytes: 0, waiting: 2, ..pool(400, 0, 0) };
        let hint_of_full = hint(&full).unwrap();
        assert!(hint_of_full.starts_with("full but") && hint_of_full.contains("2 requests"));
        let failed =
            Pool { state: PoolState::Failed, reason: Some("gone".into()), ..pool(0, 0, 0) };
        assert_eq!(hint(&failed).as_deref(), Some("gone"));
    }

    #[test]
    fn amplification_counts_what_was_moved() {
        assert_eq!(amplification(&pool(0, 0, 0)), "-");
        assert_eq!(amplification(&pool(0, 400, 0)), "1.00");
        assert_eq!(amplification(&pool(0, 400, 300)), "1.75");
        let scanned = Pool { rewritten_bytes: 100, ..pool(0, 400, 300) };
        assert_eq!(amplification(&scanned), "2.00");
    }
}
