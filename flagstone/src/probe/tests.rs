//! The probe against what real tools leave behind. Where a tool is not installed its case is
//! skipped and says so; the table itself is tested in `signatures`.

use std::process::{Command, Stdio};

use super::*;

fn examine(path: &Path) -> Report {
    super::examine(path, kind(path).unwrap(), &mut |_| {}).unwrap()
}

fn sparse(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Runs a tool that formats `path`; false if it is not installed.
fn run(tool: &str, args: &[&str], path: &Path, stdin: &str) -> bool {
    use std::io::Write as _;
    let search = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let Some(program) = search.iter().map(|d| Path::new(d).join(tool)).find(|p| p.exists()) else {
        eprintln!("skipped: {tool} is not installed");
        return false;
    };
    let mut child = Command::new(program)
        .args(args)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{tool}");
    true
}

#[test]
fn knows_what_real_tools_leave_behind() {
    let dir = tempfile::tempdir().unwrap();
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("mkfs.ext2", &["-q", "-F"], "", "ext2"),
        ("mkfs.ext4", &["-q", "-F"], "", "ext4"),
        ("mkfs.xfs", &["-q", "-f"], "", "XFS"),
        ("mkfs.btrfs", &["-q", "-f"], "", "Btrfs"),
        ("mkfs.vfat", &["-F", "32"], "", "FAT"),
        ("mkfs.exfat", &[], "", "exFAT"),
        ("mkfs.ntfs", &["-F", "-Q"], "", "NTFS"),
        ("mkfs.f2fs", &["-f"], "", "F2FS"),
        ("mkfs.minix", &[], "", "Minix"),
        ("mkswap", &[], "", "swap"),
        ("sfdisk", &["-q", "--label", "gpt"], ",,L\n", "GPT"),
        ("sfdisk", &["-q", "--label", "dos"], ",,L\n", "DOS partition table"),
        (
            "cryptsetup",
            &["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
            "key",
            "LUKS",
        ),
    ];
    for (index, (tool, args, stdin, expected)) in cases.iter().enumerate() {
        let path = sparse(dir.path(), &format!("{index}"), 400 << 20);

        if run(tool, args, &path, stdin) {
            let report = examine(&path);
            assert!(report.describe().contains(expected), "{tool}: {}", report.describe());
        }
    }
}

#[test]
fn a_sparse_or_zeroed_file_is_blank() {
    let dir = tempfile::tempdir().unwrap();
    let path = sparse(dir.path(), "a", 64 << 20);
    assert!(examine(&path).is_blank());
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0; 3 << 20], 5 << 20).unwrap();
    assert!(examine(&path).is_blank());
    file.write_all_at(b"x", (7 << 20) + 5).unwrap();
    let report = examine(&path);
    assert_eq!(report, Report { found: Vec::new(), data_at: Some((7 << 20) + 5) });
    assert_eq!(report.describe(), "data of an unknown kind (at byte 7340037)");
}

#[test]
fn refuses_what_cannot_hold_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    let unsuitable = |path: &Path| match kind(path) {
        Err(ProbeError::Unsuitable { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(unsuitable(dir.path()), "a directory");
    assert_eq!(unsuitable(Path::new("/dev/null")), "a character device");
    let missing = kind(&dir.path().join("missing"));
    assert!(matches!(missing, Err(ProbeError::Io { source, .. })
        if source.kind() == io::ErrorKind::NotFound));
}

#[test]
fn describes_several_findings() {
    let found = |what| Found { what, offset: 0 };
    let report = Report { found: vec![found("a"), found("b"), found("c")], data_at: None };
    assert_eq!(report.describe(), "a, b and c");
    assert_eq!(Report::default().describe(), "nothing");
}
