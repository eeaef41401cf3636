//! A kernel of Debian's, as packages: fetched, unpacked, and made ready to be started often.
//!
//! The packages come from the mirror that this machine's apt already uses, through an apt state of
//! its own: neither the machine's sources nor what is installed on it changes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Trouble;

/// Whose signatures on the lists of packages count.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Modules that are kept, by directory: what storage needs. The rest is nine tenths of the packages.
const KEPT: [&str; 15] = [
    "arch",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char",
    "drivers/dax",
    "drivers/md",
    "drivers/nvdimm",
    "drivers/nvme",
    "drivers/scsi",
    "drivers/virtio",
    "fs",
    "lib",
    "mm",
    "net/9p",
];

/// What is the same for every package of a kernel.
struct Apt {
    options: Vec<String>,
    suite: String,
}

/// Fetches the newest kernel of `suite`. In `to` there are then `kernel`, a file that QEMU starts,
/// and `guest/lib/modules`; its version is returned.
pub fn fetch(suite: &str, to: &Path) -> Result<String, Trouble> {
    let apt = Apt::new(suite, &to.join("apt"))?;
    let version = apt.newest()?;
    let packages = apt.packages(&version)?;
    eprintln!("lab: fetching {}", packages.join(" "));
    let (archives, tree) = (to.join("archives"), to.join("tree"));
    for directory in [&archives, &tree] {
        fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    }
    let mut download = apt.command("apt-get");
    download.arg("download").args(&packages).current_dir(&archives);
    output(download).map_err(Trouble::Unavailable)?;
    for file in list(&archives)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(&file).arg(&tree);
        output(unpack).map_err(Trouble::Failed)?;
    }
    // Newer packages have it beside its modules.
    let places = [format!("boot/vmlinuz-{version}"), format!("usr/lib/modules/{version}/vmlinuz")];
    let packed = places.iter().map(|place| tree.join(place)).find(|path| path.is_file());
    let packed = packed.ok_or_else(|| Trouble::Failed(format!("no kernel in {packages:?}")))?;
    unpack_kernel(&packed, &to.join("kernel"))?;
    take_modules(&tree, &version, &to.join("guest"))?;
    for directory in [to.join("apt"), archives, tree] {
        fs::remove_dir_all(&directory).map_err(|error| failed(&directory, &error))?;
    }
    Ok(version)
}

impl Apt {
    /// A state in `directory`, with fresh lists of `suite` and of what it builds on.
    fn new(suite: &str, directory: &Path) -> Result<Self, Trouble> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).map_err(|error| failed(&part, &error))?;
        }
        let mirror = mirror()?;
        let mut sources = String::new();
        for name in [suite.trim_end_matches("-backports"), suite] {
            let line = format!("deb [signed-by={KEYRING}] {mirror} {name} main\n");
            if !sources.contains(&line) {
                sources += &line;
            }
        }
        let list = directory.join("sources.list");
        fs::write(&list, sources).map_err(|error| failed(&list, &error))?;
        let at = directory.display();
        let options = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            // What the machine prefers is about what it installs.
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={at}/lists"),
            format!("Dir::Cache={at}/cache"),
            // The user that apt drops to may not be able to write here.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        let apt = Self { options: options.to_vec(), suite: suite.to_owned() };
        let mut update = apt.command("apt-get");
        // Without this a list that can't be fetched is a warning.
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        output(update).map_err(Trouble::Unavailable)?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq").args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }

    /// The version of the kernel that the suite's package "the newest kernel" depends on.
    fn newest(&self) -> Result<String, Trouble> {
        let name = format!("linux-image-amd64/{}", self.suite);
        let depends = self.depends(&name).map_err(Trouble::Unavailable)?;
        let version = depends.iter().find_map(|package| package.strip_prefix("linux-image-"));
        let none = || Trouble::Unavailable(format!("{}: no kernel in {depends:?}", self.suite));
        version.map(str::to_owned).ok_or_else(none)
    }

    /// The packages of one kernel: newer ones are split, and each names the others.
    fn packages(&self, version: &str) -> Result<Vec<String>, Trouble> {
        let mut packages = vec![format!("linux-image-{version}")];
        let mut next = 0;
        while let Some(package) = packages.get(next) {
            let depends = self.depends(package).map_err(Trouble::Unavailable)?;
            for name in depends {
                let is_part = name.starts_with("linux-") && name.ends_with(version);
                if is_part && !packages.contains(&name) {
                    packages.push(name);
                }
            }
            next += 1;
        }
        Ok(packages)
    }

    fn depends(&self, package: &str) -> Result<Vec<String>, String> {
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions", package]);
        Ok(depends(&output(show)?))
    }
}

/// The names in a package's first `Depends` line, without versions and alternatives.
fn depends(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or("");
    let name = |part: &str| part.split_whitespace().next().map(str::to_owned);
    line.split(',').filter_map(name).collect()
}

/// Where this machine gets Debian's packages from.
fn mirror() -> Result<String, Trouble> {
    let ask = || {
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", "$(SITE)"]);
        targets.args(["Created-By: Packages", "Label: Debian"]);
        let said = output(targets).unwrap_or_default();
        said.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
    };
    if let Some(mirror) = ask() {
        return Ok(mirror);
    }
    // What a mirror calls itself is known only once its lists are there.
    crate::tools::update_lists().map_err(Trouble::Unavailable)?;
    ask().ok_or_else(|| Trouble::Unavailable("apt knows no mirror of Debian".to_owned()))
}

/// The kernel without the part that unpacks it, where QEMU can start that: unpacking takes half of
/// the start when the processor is emulated.
fn unpack_kernel(from: &Path, to: &Path) -> Result<(), Trouble> {
    let packed = fs::read(from).map_err(|error| failed(from, &error))?;
    let methods: [(&[u8], &str); 2] =
        [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz")];
    for (magic, program) in methods {
        let starts = packed.windows(magic.len()).enumerate().filter(|(_, bytes)| *bytes == magic);
        for (start, _) in starts {
            let unpacked = pipe(program, &packed[start..]).unwrap_or_default();
            if unpacked.starts_with(b"\x7fELF") {
                return fs::write(to, unpacked).map_err(|error| failed(to, &error));
            }
        }
    }
    fs::write(to, packed).map_err(|error| failed(to, &error))
}

/// What `program` unpacks from `bytes`; that something follows the end is no error.
fn pipe(program: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.arg("-dqc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (mut input, mut unpacked) = (child.stdin.take().expect("piped"), Vec::new());
    std::thread::scope(|scope| {
        // It stops reading when it has seen enough.
        scope.spawn(move || input.write_all(bytes).ok());
        child.stdout.take().expect("piped").read_to_end(&mut unpacked)
    })?;
    child.wait()?;
    Ok(unpacked)
}

/// Moves the modules that are kept to `guest/lib/modules/VERSION`, unpacked, and lists who needs whom.
fn take_modules(tree: &Path, version: &str, guest: &Path) -> Result<(), Trouble> {
    let places = ["usr/lib/modules", "lib/modules"].map(|place| tree.join(place).join(version));
    let from = places.iter().find(|place| place.is_dir());
    let from = from.ok_or_else(|| Trouble::Failed(format!("no modules of {version}")))?;
    let to = guest.join("lib/modules").join(version);
    for directory in KEPT {
        let (from, to) = (from.join("kernel").join(directory), to.join("kernel").join(directory));
        if from.is_dir() {
            let parent = to.parent().expect("below the modules' directory");
            fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
            fs::rename(&from, &to).map_err(|error| failed(&to, &error))?;
        }
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let (from, to) = (from.join(name), to.join(name));
        fs::rename(&from, &to).map_err(|error| failed(&from, &error))?;
    }
    for (suffix, program) in [("*.ko.xz", "xz"), ("*.ko.zst", "zstd")] {
        let mut unpack = Command::new("find");
        unpack.arg(&to).args(["-name", suffix, "-exec", program, "-dq"]);
        if program == "zstd" {
            unpack.arg("--rm");
        }
        unpack.args(["{}", "+"]);
        output(unpack).map_err(Trouble::Failed)?;
    }
    let depmod = crate::tools::find("depmod").unwrap_or_else(|| "depmod".into());
    let mut list = Command::new(depmod);
    list.arg("-b").arg(guest).arg(version);
    output(list).map(drop).map_err(Trouble::Failed)
}

/// The files of `module` and of what it needs, in the order in which they are to be loaded; none if
/// it is built into the kernel.
pub fn load_order(modules: &Path, module: &str) -> Result<Vec<PathBuf>, Trouble> {
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).map_err(|error| failed(&path, &error))
    };
    if let Some(files) = needs(&read("modules.dep")?, module) {
        return Ok(files.into_iter().map(|file| modules.join(file)).collect());
    }
    if read("modules.builtin")?.lines().any(|line| module_name(line) == module) {
        return Ok(Vec::new());
    }
    Err(Trouble::Failed(format!("the kernel has no module {module}")))
}

/// Of the text of `modules.dep`: a line has a file and what it needs, to be loaded from the right.
fn needs<'a>(dependencies: &'a str, module: &str) -> Option<Vec<&'a str>> {
    let (file, needs) = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(file, _)| module_name(file) == module)?;
    Some(needs.split_whitespace().rev().chain([file]).collect())
}

/// Modules say `_` where their files may say `-`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let entries = fs::read_dir(directory).map_err(|error| failed(directory, &error))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(|e| failed(directory, &e))).collect()
}

fn failed(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::Failed(format!("{}: {error}", path.display()))
}

/// Standard output of a command that must succeed; if not, what it said.
fn output(mut command: Command) -> Result<String, String> {
    let text = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{text}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{text}: {}: {said}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dependencies() {
        let text =
            "Package: a\nDepends: linux-image-6.12.1-amd64 (= 6.12.1-1), kmod | b, c\nSize: 1\n";
        assert_eq!(depends(text), ["linux-image-6.12.1-amd64", "kmod", "c"]);
        assert!(depends("Package: a\n").is_empty());
    }

    #[test]
    fn what_is_needed_is_loaded_first() {
        let text = "kernel/a/x-y.ko: kernel/b/z.ko kernel/c/w.ko\nkernel/c/w.ko:\n";
        let expected = ["kernel/c/w.ko", "kernel/b/z.ko", "kernel/a/x-y.ko"];
        assert_eq!(needs(text, "x_y").unwrap(), expected);
        assert_eq!(needs(text, "w").unwrap(), ["kernel/c/w.ko"]);
        assert_eq!(needs(text, "v"), None);
    }
}
