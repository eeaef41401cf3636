//! Which of QEMU's accelerators runs the guest: KVM where an ordinary kernel starts under it, which
//! takes trying, or emulation.
//!
//! `/dev/kvm` alone says little: on a machine that is itself virtual it may be there and stop at
//! instructions that it does not know.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Trouble;
use super::cache::Cache;

/// The processor is emulated: slow, and works everywhere.
pub const EMULATION: &str = "tcg,thread=multi";
const KVM: &str = "kvm";

/// How long a kernel may take to say that it lives; it takes one second or two where KVM works.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

/// What the first process says when it is asked whether it lives.
const ALIVE: &str = "LAB-ALIVE";

/// What to use on this machine. What was tried is noted, and counts until the machine is started
/// again.
pub fn choose(place: &Path, cache: &Cache) -> Result<&'static str, Trouble> {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualizes = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    if !virtualizes || kvm.is_err() {
        return Ok(EMULATION);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (works, fails) = (format!("{KVM} {boot}"), format!("{EMULATION} {boot}"));
    let note = place.join("accelerator");
    let known = fs::read_to_string(&note).unwrap_or_default();
    if known == works {
        return Ok(KVM);
    }
    if known == fails {
        return Ok(EMULATION);
    }
    let alive = probe(cache).map_err(|error| Trouble::Failed(format!("qemu: {error}")))?;
    // Not noted means tried again, no more.
    let _ = fs::write(&note, if alive { works } else { fails });
    Ok(if alive { KVM } else { EMULATION })
}

/// Whether the kernel starts under KVM.
fn probe(cache: &Cache) -> std::io::Result<bool> {
    let said = std::env::temp_dir().join(format!("flagstone-lab-probe-{}", std::process::id()));
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-M", "q35", "-accel", KVM, "-cpu", "host"]);
    qemu.args(["-m", "512", "-display", "none", "-no-reboot", "-append"]);
    qemu.arg("console=ttyS0 quiet panic=-1 lab.probe");
    qemu.arg("-kernel").arg(cache.kernel()).arg("-initrd").arg(cache.archive());
    qemu.arg("-serial").arg(format!("file:{}", said.display()));
    let mut child = qemu.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let start = Instant::now();
    let mut alive = false;
    while !alive && start.elapsed() < PROBE_LIMIT && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(50));
        alive = fs::read_to_string(&said).is_ok_and(|text| text.contains(ALIVE));
    }
    // It may have said it and ended between two looks.
    alive = alive || fs::read_to_string(&said).is_ok_and(|text| text.contains(ALIVE));
    let _ = child.kill();
    child.wait()?;
    let _ = fs::remove_file(&said);
    Ok(alive)
}
