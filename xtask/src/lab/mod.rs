//! `cargo xtask lab`: a command as root on a real Debian kernel, with this machine's files.
//!
//! The kernel parts that volumes meet in earnest (the NBD client, ublk, NVMe, file systems, device
//! mapper) are often absent where the project is developed and tested, in containers above all. A
//! virtual machine has them, and it can be cut off without harm. No KVM is needed for that.
//!
//! What happens, in order: [`cache`] sees to the packages, the kernel and what it starts from;
//! [`options`] are what the caller wants; [`machine`] runs it. [`replay`] makes of recorded writes
//! what a power cut could have left.

mod accelerator;
mod archive;
mod cache;
mod kernel;
mod machine;
mod options;
mod replay;
mod writes;

use std::path::Path;
use std::process::ExitCode;

pub use cache::{Cache, NEWEST, STABLE};
pub use options::suite;

/// The lab, or what the machine needs for it, failed: nothing is known of the command.
const FAILED: u8 = 125;
/// The command did not end in time (as `timeout(1)` says it).
const TIMED_OUT: u8 = 124;
/// The power was cut (as a shell says of SIGKILL).
const POWER_CUT: u8 = 137;
/// This machine can't run the lab (as test harnesses say "skipped").
const UNAVAILABLE: u8 = 77;

const HELP: &str = "\
A command as root on a real Debian kernel in QEMU, with this machine's files

Usage: cargo xtask lab [OPTIONS] -- COMMAND [ARGUMENTS]
       cargo xtask lab setup [--kernel SUITE] [--refresh]
       cargo xtask lab replay LOG (--list | --base IMAGE --out IMAGE [OPTIONS])

The first use installs what is missing, as root, and fetches a kernel. Options of a run:

  --nvme SIZE[,PROPERTY=VALUE]...  an empty NVMe disk, gone afterwards; repeatable; 1G if no disk is named
  --disk FILE[,PROPERTY=VALUE]...  an NVMe disk that is kept in FILE; repeatable
                                   PROPERTY: of QEMU's nvme-ns; or unreadable=SECTOR, which can't be read,
                                   or recorded=FILE, as --log
  --log FILE                       record the writes, flushes and discards of the first disk
  --memory SIZE                    of the guest [1536M]
  --cpus N                         of the guest [2]
  --timeout SECONDS                for the whole run [300]
  --cut-after SECONDS              cut the power so long after COMMAND has started
  --expect-cut                     the power cut is the success: status 0 with it, 125 without
  --kernel SUITE                   Debian suite of the kernel [trixie-backports]
  --accelerator tcg|kvm            instead of what works here
  --append ARGUMENTS               further arguments of the kernel
  --console                        show the kernel's console at the end

Options of replay:

  --at N            the power fails before entry N of the log [at its end]
  --from N          all before entry N is there, whatever happens [0]
  --seed N          chooses what is lost [0]
  --torn 512|4096   writes are kept or lost in pieces of so many bytes, not whole
  --reorder         what was not flushed reaches the disk in another order
  --ignore-flushes  a disk that lies: a flush keeps nothing

Status: COMMAND's; 77 if the lab can't run on this machine, 124 after the time-out, 125 if the lab or
its kernel failed, 137 after a power cut. docs/operations/lab.md says the rest.";

/// Why nothing came of a run.
#[derive(Debug)]
pub enum Trouble {
    /// The command line makes no sense.
    Usage(String),
    /// This machine can't run the lab; nothing is wrong with the project.
    Unavailable(String),
    /// Something that should work did not.
    Failed(String),
}

/// The task: `args` are what stands behind its name.
pub fn run(root: &Path, args: &[String]) -> ExitCode {
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(0)
        }
        ["setup", rest @ ..] => set_up(root, rest),
        ["replay", rest @ ..] => replay::run(rest).map(|()| 0),
        rest => options::parse(rest).and_then(|wanted| {
            let cache = Cache::ready(root, &wanted.suite, false)?;
            machine::run(&cache, &wanted)
        }),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(Trouble::Usage(why)) => {
            eprintln!("error: {why}\n\n{HELP}");
            ExitCode::from(2)
        }
        Err(Trouble::Unavailable(why)) => {
            eprintln!("SKIPPED: the lab can't run here: {why}");
            ExitCode::from(UNAVAILABLE)
        }
        Err(Trouble::Failed(why)) => {
            eprintln!("lab: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn set_up(root: &Path, args: &[&str]) -> Result<u8, Trouble> {
    let (mut suite, mut refresh) = (NEWEST.to_owned(), false);
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        match arg {
            "--refresh" => refresh = true,
            "--kernel" => suite = options::suite(args.next().copied())?,
            _ => return Err(Trouble::Usage(format!("setup has no {arg:?}"))),
        }
    }
    let cache = Cache::ready(root, &suite, refresh)?;
    println!("{}", cache.describe());
    Ok(0)
}
