//! What a run is to be: the command line, checked before anything is fetched or started.

use std::path::PathBuf;
use std::time::Duration;

use super::Trouble;
use super::cache::NEWEST;

/// A run of the lab.
#[derive(Debug)]
pub struct Options {
    /// The disks, in the order in which the guest numbers them.
    pub disks: Vec<Disk>,
    /// Where the writes to the first disk are recorded.
    pub log: Option<PathBuf>,
    pub memory_bytes: u64,
    pub cpus: u32,
    pub timeout: Duration,
    /// When the power is cut, counted from the start of the command.
    pub cut_after: Option<Duration>,
    /// Whether the power cut is what the caller wants.
    pub expects_cut: bool,
    /// Debian suite of the kernel.
    pub suite: String,
    /// QEMU's accelerator, if the caller knows better.
    pub accelerator: Option<String>,
    /// Further arguments of the kernel.
    pub append: String,
    /// Show the console at the end.
    pub console: bool,
    /// The command and its arguments.
    pub command: Vec<String>,
}

/// One NVMe disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    pub content: Content,
    /// Properties of QEMU's `nvme-ns`, as given: `name=value`, with commas between.
    pub properties: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// So many zeroes, gone afterwards.
    Empty { bytes: u64 },
    /// What is in a file, and stays there.
    Kept(PathBuf),
}

/// Reads the arguments of a run.
pub fn parse(args: &[&str]) -> Result<Options, Trouble> {
    let mut options = Options {
        disks: Vec::new(),
        log: None,
        memory_bytes: 1536 << 20,
        cpus: 2,
        timeout: Duration::from_secs(300),
        cut_after: None,
        expects_cut: false,
        suite: NEWEST.to_owned(),
        accelerator: None,
        append: String::new(),
        console: false,
        command: Vec::new(),
    };
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| usage(format!("{arg} needs a value")));
        match arg {
            "--nvme" => options.disks.push(empty_disk(value()?)?),
            "--disk" => {
                let (path, properties) = split(value()?);
                options.disks.push(Disk { content: Content::Kept(path.into()), properties });
            }
            "--log" => options.log = Some(value()?.into()),
            "--memory" => options.memory_bytes = size(value()?)?,
            "--cpus" => options.cpus = number(arg, value()?)?,
            "--timeout" => options.timeout = seconds(arg, value()?)?,
            "--cut-after" => options.cut_after = Some(seconds(arg, value()?)?),
            "--expect-cut" => options.expects_cut = true,
            "--kernel" => options.suite = suite(args.next())?,
            "--accelerator" => match value()? {
                name @ ("tcg" | "kvm") => options.accelerator = Some(name.to_owned()),
                other => return Err(usage(format!("no accelerator {other:?}"))),
            },
            "--append" => options.append = value()?.to_owned(),
            "--console" => options.console = true,
            "--" => {
                options.command = args.by_ref().map(str::to_owned).collect();
                break;
            }
            _ => {
                return Err(usage(format!("unknown option {arg:?}; the command stands behind --")));
            }
        }
    }
    if options.command.is_empty() {
        return Err(usage("no command".to_owned()));
    }
    if options.disks.is_empty() {
        options.disks.push(empty_disk("1G")?);
    }
    Ok(options)
}

/// The name of a suite, which also becomes that of a directory.
pub fn suite(name: Option<&str>) -> Result<String, Trouble> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name {
        Some(name) if !name.is_empty() && name.chars().all(is_part) => Ok(name.to_owned()),
        _ => Err(usage("--kernel needs the name of a Debian suite".to_owned())),
    }
}

fn empty_disk(text: &str) -> Result<Disk, Trouble> {
    let (bytes, properties) = split(text);
    Ok(Disk { content: Content::Empty { bytes: size(bytes)? }, properties })
}

fn split(text: &str) -> (&str, String) {
    text.split_once(',').map_or((text, String::new()), |(first, rest)| (first, rest.to_owned()))
}

/// A whole number and a unit, as everywhere in the project.
fn size(text: &str) -> Result<u64, Trouble> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => Some(0),
        "K" | "KiB" => Some(10),
        "M" | "MiB" => Some(20),
        "G" | "GiB" => Some(30),
        "T" | "TiB" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| digits.parse::<u64>().ok()?.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(usage(format!("{text:?} is not a size, such as 512M or 2G"))),
    }
}

fn number(name: &str, text: &str) -> Result<u32, Trouble> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| usage(format!("{name} needs a number, not {text:?}")))
}

fn seconds(name: &str, text: &str) -> Result<Duration, Trouble> {
    let seconds = text.parse().ok().and_then(|number| Duration::try_from_secs_f64(number).ok());
    seconds.ok_or_else(|| usage(format!("{name} needs a number of seconds, not {text:?}")))
}

fn usage(why: String) -> Trouble {
    Trouble::Usage(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_behind_the_dashes_is_the_command() {
        let options = parse(&["--cpus", "1", "--", "sh", "-c", "--cpus"]).unwrap();
        assert_eq!(options.cpus, 1);
        assert_eq!(options.command, ["sh", "-c", "--cpus"]);
        let disk = Disk { content: Content::Empty { bytes: 1 << 30 }, properties: String::new() };
        assert_eq!(options.disks, [disk]);
    }

    #[test]
    fn disks_have_properties() {
        let args = ["--nvme", "2G,logical_block_size=4096,ms=8", "--disk", "a.img", "--", "true"];
        let options = parse(&args).unwrap();
        assert_eq!(options.disks[0].properties, "logical_block_size=4096,ms=8");
        assert_eq!(options.disks[1].content, Content::Kept("a.img".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["true"][..],
            &["--"],
            &["--nvme", "--", "true"],
            &["--memory", "1,5G", "--", "true"],
            &["--memory", "99999999999T", "--", "true"],
            &["--timeout", "-1", "--", "true"],
            &["--kernel", "../x", "--", "true"],
            &["--accelerator", "xen", "--", "true"],
        ] {
            assert!(matches!(parse(args), Err(Trouble::Usage(_))), "{args:?}");
        }
    }
}
