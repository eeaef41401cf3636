//! One run: QEMU with the guest's disks and ports, its output as it comes, and how it ended.
//!
//! Three ports of a virtio console lead out of the guest: standard output, standard error, and one
//! on which it says that the command has started and how it ended. QEMU connects them to sockets
//! of this process, so nothing is lost when the guest ends, however it does.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::options::{Content, Options};
use super::{FAILED, POWER_CUT, TIMED_OUT, Trouble};

/// What QEMU ends with when the guest cuts its power: the device makes `2 * byte + 1` of the byte.
const CUT_FROM_INSIDE: i32 = 3;

/// How long the guest may take to switch itself off when it has said that it ends.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Lines of the console that are shown when the guest failed.
const LAST_WORDS: usize = 50;

/// What the guest says on the third port.
enum Word {
    Started,
    Status(u8),
}

/// How QEMU ended.
enum End {
    Itself(ExitStatus),
    Status(u8),
    TimedOut,
    Cut,
}

/// Runs the command; the status to leave with.
pub fn run(cache: &Cache, options: &Options) -> Result<u8, Trouble> {
    let place = Place::new()?;
    let directory = std::env::current_dir().map_err(|error| failed(Path::new("."), &error))?;
    place.write("directory", format!("{}\n", directory.display()))?;
    place.write("command", script(&directory, &options.command))?;
    let ports = ["out", "err", "control"].map(|name| Port::listen(&place.0.join(name)));
    let [out, err, control] = ports;
    let (out, err, control) = (out?, err?, control?);
    let (words, heard) = mpsc::channel();
    let paths = [&out, &err, &control].map(|port| port.path.clone());
    let readers = [
        out.serve(|stream| pour(stream, std::io::stdout())),
        err.serve(|stream| pour(stream, std::io::stderr())),
        control.serve(move |stream| listen(stream, &words)),
    ];
    let mut qemu = command(cache, options, &place, &directory)?;
    let log = place.0.join("qemu");
    let log = File::create(&log).map_err(|error| failed(&log, &error))?;
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| Trouble::Failed(format!("qemu: {error}")))?;
    let end = attend(&mut child, &heard, options);
    // On every way out of here it has ended.
    let _ = child.kill();
    let _ = child.wait();
    // A QEMU that ended early never connected: what waits for it gets an end instead.
    let _ = paths.map(UnixStream::connect);
    for reader in readers {
        let _ = reader.join();
    }
    let console = fs::read(place.0.join("console")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    if options.console {
        console.lines().for_each(|line| eprintln!("console: {line}"));
    }
    let end = end.map_err(|error| Trouble::Failed(format!("qemu: {error}")))?;
    let cut = match end {
        End::Status(status) if !options.expects_cut || status != 0 => return Ok(status),
        End::Status(_) => {
            eprintln!("lab: the command ended, and the power was to be cut");
            return Ok(FAILED);
        }
        End::TimedOut => {
            eprintln!("lab: ended after {} seconds", options.timeout.as_secs());
            return Ok(TIMED_OUT);
        }
        End::Cut => true,
        End::Itself(status) => status.code() == Some(CUT_FROM_INSIDE),
    };
    if cut {
        eprintln!("lab: power cut");
        return Ok(if options.expects_cut { 0 } else { POWER_CUT });
    }
    let said = fs::read_to_string(place.0.join("qemu")).unwrap_or_default();
    let lines: Vec<_> = console.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n");
    Err(Trouble::Failed(format!("the guest ended without a word of the command\n{said}{last}")))
}

/// Waits for the end, which comes from the guest, from the clock, or from the caller's wish.
fn attend(child: &mut Child, heard: &Receiver<Word>, options: &Options) -> std::io::Result<End> {
    let begin = Instant::now();
    let mut cut_at = None;
    let mut status = None;
    loop {
        match heard.recv_timeout(Duration::from_millis(10)) {
            Ok(Word::Started) => cut_at = options.cut_after.map(|after| Instant::now() + after),
            Ok(Word::Status(number)) => status = Some((number, Instant::now())),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // The port is closed: QEMU has ended, or is about to.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(ended) = child.try_wait()? {
            // It may have spoken since we last listened.
            while let Ok(word) = heard.try_recv() {
                if let Word::Status(number) = word {
                    status = Some((number, Instant::now()));
                }
            }
            return Ok(status.map_or(End::Itself(ended), |(number, _)| End::Status(number)));
        }
        if let Some((number, since)) = status {
            if since.elapsed() > END_LIMIT {
                eprintln!("lab: the guest does not switch itself off; what it kept back is lost");
                return Ok(End::Status(number));
            }
        } else if cut_at.is_some_and(|at| at <= Instant::now()) {
            child.kill()?;
            return Ok(End::Cut);
        } else if begin.elapsed() > options.timeout {
            return Ok(End::TimedOut);
        }
    }
}

/// The line that starts QEMU.
fn command(
    cache: &Cache,
    options: &Options,
    place: &Place,
    directory: &Path,
) -> Result<Command, Trouble> {
    let accelerator = match options.accelerator.as_deref() {
        Some("kvm") => "kvm",
        Some(_) => super::accelerator::EMULATION,
        None => cache.accelerator,
    };
    // It must not outlive this process, however that ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    qemu.args(["-nodefaults", "-no-user-config", "-M", "q35", "-display", "none", "-no-reboot"]);
    qemu.args(["-accel", accelerator, "-cpu", if accelerator == "kvm" { "host" } else { "max" }]);
    qemu.args(["-m", &format!("{}M", options.memory_bytes >> 20)]);
    qemu.args(["-smp", &options.cpus.to_string()]);
    qemu.arg("-kernel").arg(cache.kernel()).arg("-initrd").arg(cache.archive());
    let append = format!("console=ttyS0 quiet panic=-1 mitigations=off {}", options.append);
    qemu.args(["-append", append.trim_end()]);
    qemu.args(["-serial", &format!("file:{}", value(&place.0.join("console")))]);
    qemu.args(["-device", "isa-debug-exit", "-device", "virtio-rng-pci"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for (number, name) in (1..).zip(["out", "err", "control"]) {
        let path = value(&place.0.join(name));
        qemu.args(["-chardev", &format!("socket,id={name},path={path}")]);
        qemu.args(["-device", &format!("virtserialport,chardev={name},nr={number}")]);
    }
    let guest = cache.guest();
    let shares: [(&Path, &str, &str); 4] = [
        (Path::new("/"), "host", ",readonly=on"),
        (&guest, "lab", ",readonly=on"),
        (&place.0, "run", ",readonly=on"),
        (directory, "directory", ""),
    ];
    for (path, tag, access) in shares {
        let path = value(path);
        let share = format!("local,path={path},mount_tag={tag}{access},security_model=none");
        qemu.args(["-virtfs", &format!("{share},multidevs=remap")]);
    }
    for (number, disk) in options.disks.iter().enumerate() {
        let file = match &disk.content {
            Content::Kept(path) if path.is_file() => path.clone(),
            Content::Kept(path) => {
                return Err(Trouble::Usage(format!("{}: no such file", path.display())));
            }
            Content::Empty { bytes } => place.disk(number, *bytes)?,
        };
        let log = options.log.as_deref().filter(|_| number == 0).map(Path::to_owned);
        let property = disk.properties.split(',').find_map(|p| p.strip_prefix(RECORDED));
        let log = log.or_else(|| property.map(|log| directory.join(log)));
        add_disk(&mut qemu, number, &file, &disk.properties, log.as_deref())?;
    }
    Ok(qemu)
}

/// A property of our own: a sector of 512 bytes that can't be read.
const UNREADABLE: &str = "unreadable=";
/// Another: where the writes to the disk are recorded.
const RECORDED: &str = "recorded=";

/// One NVMe controller with one namespace.
fn add_disk(
    qemu: &mut Command,
    number: usize,
    file: &Path,
    properties: &str,
    log: Option<&Path>,
) -> Result<(), Trouble> {
    let file = value(file);
    let mut node = format!("disk{number}");
    qemu.args([
        "-blockdev",
        &format!("driver=file,node-name={node},filename={file},discard=unmap"),
    ]);
    if let Some(log) = log {
        File::create(log).map_err(|error| failed(log, &error))?;
        let log = value(log);
        let name = format!("log{number}");
        qemu.args(["-blockdev", &format!("driver=file,node-name={name},filename={log}")]);
        node = format!("recorder{number}");
        // The number of entries is kept up to date, so that it is right whenever the power is cut.
        let how = format!("discard=unmap,log-super-update-interval=1,log={name}");
        let recorder = format!("driver=blklogwrites,node-name={node},file=disk{number},{how}");
        qemu.args(["-blockdev", &recorder]);
    }
    let sectors = properties.split(',').filter_map(|property| property.strip_prefix(UNREADABLE));
    for sector in sectors {
        let image = std::mem::replace(&mut node, format!("faulty{number}"));
        let rule = format!(
            "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector={sector}"
        );
        let faulty = format!("driver=blkdebug,node-name={node},image={image},{rule}");
        qemu.args(["-blockdev", &faulty]);
    }
    let mut namespace = format!("nvme-ns,bus=nvme{number},drive={node},nsid=1");
    let ours = |property: &&str| {
        property.is_empty() || [UNREADABLE, RECORDED].iter().any(|own| property.starts_with(own))
    };
    for property in properties.split(',').filter(|property| !ours(property)) {
        namespace += &format!(",{property}");
        // QEMU refuses a physical block that is smaller than a logical one.
        if let Some(size) = property.strip_prefix("logical_block_size=")
            && !properties.contains("physical_block_size=")
        {
            namespace += &format!(",physical_block_size={size}");
        }
    }
    let controller = format!("nvme,id=nvme{number},serial=lab{number},max_ioqpairs=8");
    qemu.args(["-device", &controller, "-device", &namespace]);
    Ok(())
}

/// A path as a value in QEMU's options, where commas are doubled.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// What the guest's shell runs: this process's environment and directory, and the command.
fn script(directory: &Path, command: &[String]) -> String {
    let mut text = String::new();
    let is_name = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for (name, value) in std::env::vars_os() {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && is_name(name)
        {
            text += &format!("export {name}={}\n", quote(value));
        }
    }
    text += &format!("cd {} || exit 125\nexec", quote(&directory.to_string_lossy()));
    for word in command {
        text += &format!(" {}", quote(word));
    }
    text + "\n"
}

/// One word for a shell, whatever is in it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A socket that QEMU connects a port to.
struct Port {
    listener: UnixListener,
    path: PathBuf,
}

impl Port {
    fn listen(path: &Path) -> Result<Self, Trouble> {
        let listener = UnixListener::bind(path).map_err(|error| failed(path, &error))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    fn serve(self, read: impl FnOnce(UnixStream) + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            if let Ok((stream, _)) = self.listener.accept() {
                read(stream);
            }
        })
    }
}

/// Shows what comes, as it comes.
fn pour(mut stream: impl Read, mut to: impl Write) {
    let mut buffer = [0; 1 << 14];
    while let Ok(bytes) = stream.read(&mut buffer) {
        if bytes == 0 {
            return;
        }
        // Output that nobody reads any more doesn't end the guest.
        let _ = to.write_all(&buffer[..bytes]).and_then(|()| to.flush());
    }
}

/// Hears what the guest says and answers its last word.
fn listen(stream: UnixStream, words: &Sender<Word>) {
    let Ok(mut answers) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if line == "started" {
            let _ = words.send(Word::Started);
        } else if let Some(status) = line.strip_prefix("status ").and_then(|s| s.parse().ok()) {
            let _ = words.send(Word::Status(status));
            let _ = answers.write_all(b"good\n");
        }
    }
}

/// A directory for what a run needs, gone afterwards.
struct Place(PathBuf);

/// What such directories are called, before the number of their process.
const PLACE: &str = "flagstone-lab-run-";

impl Place {
    fn new() -> Result<Self, Trouble> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        let path = parent.join(format!("{PLACE}{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(|error| failed(&path, &error))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: String) -> Result<(), Trouble> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|error| failed(&path, &error))
    }

    fn disk(&self, number: usize, bytes: u64) -> Result<PathBuf, Trouble> {
        let path = self.0.join(format!("disk{number}"));
        let made = File::create(&path).and_then(|file| file.set_len(bytes));
        made.map(|()| path.clone()).map_err(|error| failed(&path, &error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what runs left that were killed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PLACE));
        let ended = |number: &str| !Path::new("/proc").join(number).exists();
        if process.is_some_and(ended) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        let word = "a 'b' $(c) \\ \"d\"\n";
        let output =
            Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output();
        assert_eq!(output.unwrap().stdout, word.as_bytes());
    }

    #[test]
    fn commas_in_paths_are_no_separators() {
        assert_eq!(value(Path::new("/a,b")), "/a,,b");
    }
}
