//! `flagstone pool create`: formats a file or block device.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::output;
use crate::pool::create::{self, CreateOptions};
use crate::size::{Human, parse_block_size};

/// Format files or block devices as a pool
///
/// With several, files and devices of any size, what is written is spread over all of them: nothing
/// is kept twice, so what lies on one that is lost is lost. A device that fails takes only that with it,
/// unless it is the one with the journal: the first, until that is removed and the journal moves to
/// another. A file that does not exist is made, sparse unless --preallocate is given. The target is
/// refused if it holds anything: a file system, a partition table, a RAID, LVM, LUKS or ZFS
/// member, swap, another pool, or (a file) data of any kind. --force formats over such things;
/// nothing formats over what is mounted, used for swap, part of another device, or open in
/// another process.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool create pool.flagstone --size 10G
  flagstone pool create /srv/pool.flagstone --size 500G --preallocate
  flagstone pool create /dev/sdb
  flagstone pool create /dev/nvme0n1 /dev/nvme1n1 /dev/nvme2n1")]
pub struct Args {
    /// The files or block devices, up to 32; the journal goes to the first
    #[arg(value_name = "PATH", required = true, num_args = 1..=32)]
    paths: Vec<PathBuf>,

    /// Size of each file that is made, of one at least 64M; block devices are used as they are
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_block_size)]
    size: Option<u64>,

    /// Size of a segment: a power of two from 1M to 64M
    ///
    /// Space is reused in whole segments. The default, 4M and below 1G of pool 1M, suits SSDs and
    /// files; large segments suit large slow disks.
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_segment_size)]
    segment_size: Option<u32>,

    /// Allocate and zero the whole file now
    ///
    /// Slow to make and takes its full size at once; afterwards no write waits for the file
    /// system, and the file system can't run full under the pool.
    #[arg(long)]
    preallocate: bool,

    /// Format even if the target holds data, which is lost
    #[arg(long)]
    force: bool,
}

fn parse_segment_size(text: &str) -> Result<u32, String> {
    let bytes = parse_block_size(text).map_err(|error| error.to_string())?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() && (1 << 20..=64 << 20).contains(&bytes) => Ok(bytes),
        _ => Err("a segment has a power of two from 1M to 64M".to_owned()),
    }
}

/// Runs the command.
pub fn run(args: Args, json: bool) -> Result<(), Failure> {
    let mut paths = args.paths.into_iter();
    let path = paths.next().unwrap_or_default();
    let options = CreateOptions {
        path,
        more: paths.collect(),
        size_bytes: args.size,
        segment_bytes: args.segment_size,
        preallocate: args.preallocate,
        force: args.force,
        quiet: json,
    };
    let pool = create::create(&options).map_err(|error| Failure::new(error.exit(), error))?;
    if json {
        return Ok(output::json(&pool)?);
    }
    let mut text = format!(
        "created pool {}, {}, {} segments of {}\nuuid {}",
        pool.path.display(),
        Human(pool.size_bytes),
        pool.segments,
        Human(u64::from(pool.segment_bytes)),
        pool.uuid,
    );
    if pool.devices.len() > 1 {
        for device in &pool.devices {
            let (path, size) = (device.path.display(), Human(device.size_bytes));
            text.push_str(&format!("\non {path}, {size}"));
        }
    }
    if let Some(what) = &pool.overwritten {
        text.push_str(&format!("\noverwritten: {what}"));
    }
    Ok(output::line(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::create::SEGMENT_BYTES_DEFAULT;

    #[test]
    fn segment_sizes() {
        assert_eq!(parse_segment_size("4M"), Ok(SEGMENT_BYTES_DEFAULT));
        assert_eq!(parse_segment_size("64M"), Ok(64 << 20));
        for text in ["512K", "3M", "128M", "8G", "x"] {
            parse_segment_size(text).unwrap_err();
        }
    }
}
