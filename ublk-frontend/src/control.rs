//! The control device, `/dev/ublk-control`: adding, starting, stopping, recovering and deleting devices.
//!
//! Its commands may wait for long: starting a device reads its partition table through us, stopping one waits
//! for whoever has it open. So they are given by a thread that serves nobody, through a ring of its own, and each has a time-out: a
//! kernel that does not answer costs one leaked buffer and an error, not the process.

use crate::error::ControlError;
use crate::features::Features;
use crate::info::DeviceInfo;
use crate::params::Params;
use crate::uapi::{
    CMD_ADD_DEV, CMD_DEL_DEV, CMD_END_USER_RECOVERY, CMD_GET_DEV_INFO2, CMD_GET_FEATURES,
    CMD_GET_PARAMS, CMD_QUIESCE_DEV, CMD_SET_PARAMS, CMD_START_DEV, CMD_START_USER_RECOVERY,
    CMD_STOP_DEV, CMD_UPDATE_SIZE, CTRL_CMD_BYTES, DEV_INFO_BYTES, PARAMS_BYTES, ctrl_cmd, put_u16,
    put_u32, put_u64,
};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const PATH: &str = "/dev/ublk-control";
/// How long a command may take that only changes what the kernel knows.
const SHORT: Duration = Duration::from_secs(10);
/// And one that waits for requests to be served.
const LONG: Duration = Duration::from_secs(60);

/// A device's number: the N of `/dev/ublkbN`.
pub type DeviceNumber = u32;

/// The control device. One thread at a time uses it.
pub struct Control {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: OwnedFd,
    /// Of the last command; completions of earlier ones come too late for anybody.
    sequence: u64,
    features: Features,
}

/// A command: its code, its name for people, and how long it may take.
type Command = (u32, &'static str, Duration);

impl Control {
    /// Opens the control device and asks what the kernel can do.
    ///
    /// # Errors
    /// `NoUblk`, `NotPermitted`, `Os`; `Lacks` if the kernel can't even be asked.
    pub fn open() -> Result<Self, ControlError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(PATH, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Err(ControlError::NoUblk),
            Err(Errno::ACCESS | Errno::PERM) => return Err(ControlError::NotPermitted),
            Err(errno) => return Err(ControlError::Os { call: "open /dev/ublk-control", errno }),
        };
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .dontfork()
            .build(4)
            .map_err(|error| os("io_uring_setup", &error))?;
        let mut control = Self { ring, file, sequence: 0, features: Features::default() };
        control.features = control.ask_features()?;
        Ok(control)
    }

    /// What the kernel can do.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    fn ask_features(&mut self) -> Result<Features, ControlError> {
        let lacks = ControlError::Lacks { feature: "UBLK_U_CMD_GET_FEATURES" };
        let command = (CMD_GET_FEATURES, "GET_FEATURES", SHORT);
        let mut bytes = vec![0; 8];
        match self.call(command, u32::MAX, 0, 0, &mut bytes) {
            Err(ControlError::Refused { errno: Errno::OPNOTSUPP | Errno::INVAL, .. }) => Err(lacks),
            Err(error) => Err(error),
            Ok(()) => Ok(Features(crate::uapi::get_u64(&bytes, 0))),
        }
    }

    /// Makes a device, with the next free number if `wanted.number` is `u32::MAX`. There is a character device then, but
    /// no block device yet.
    ///
    /// # Errors
    /// `Refused`, `TimedOut`; `NotPermitted` without the right to.
    pub fn add(&mut self, wanted: &DeviceInfo) -> Result<DeviceInfo, ControlError> {
        let mut bytes = wanted.encode().to_vec();
        let command = (CMD_ADD_DEV, "ADD_DEV", SHORT);
        self.call(command, wanted.number, 0, 0, &mut bytes)?;
        Ok(info_of(&bytes))
    }

    /// What the kernel knows of a device.
    ///
    /// # Errors
    /// `NoDevice` if there is none with this number.
    pub fn info(&mut self, number: DeviceNumber) -> Result<DeviceInfo, ControlError> {
        let mut bytes = path_of(number);
        let path_len = bytes.len();
        bytes.resize(path_len + DEV_INFO_BYTES, 0);
        let command = (CMD_GET_DEV_INFO2, "GET_DEV_INFO2", SHORT);
        self.call(command, number, 0, path_len, &mut bytes)?;
        Ok(info_of(&bytes[path_len..]))
    }

    /// Sets a device's parameters, before it is started.
    ///
    /// # Errors
    /// `Refused` if the kernel does not like them.
    pub fn set_params(&mut self, device: &DeviceInfo, params: &Params) -> Result<(), ControlError> {
        self.on_device((CMD_SET_PARAMS, "SET_PARAMS", SHORT), device, 0, &params.encode()).map(drop)
    }

    /// A device's parameters.
    ///
    /// # Errors
    /// `Params` if they are not what a device of ours has.
    pub fn params(&mut self, device: &DeviceInfo) -> Result<Params, ControlError> {
        let command = (CMD_GET_PARAMS, "GET_PARAMS", SHORT);
        let answer = self.on_device(command, device, 0, &Params::question())?;
        let mut bytes = [0; PARAMS_BYTES];
        bytes.copy_from_slice(&answer);
        Params::decode(&bytes).map_err(|error| ControlError::Params(error, device.number))
    }

    /// Makes the block device. All requests must be being fetched by then: the kernel reads the partition table before this returns.
    ///
    /// # Errors
    /// `Refused`, `TimedOut`.
    pub fn start(&mut self, device: &DeviceInfo) -> Result<(), ControlError> {
        let pid = u64::from(std::process::id());
        self.on_device((CMD_START_DEV, "START_DEV", LONG), device, pid, &[]).map(drop)
    }

    /// Takes the block device away. What is asked of it from now on, and what waits, fails.
    ///
    /// # Errors
    /// `Refused`, `TimedOut`.
    pub fn stop(&mut self, device: &DeviceInfo) -> Result<(), ControlError> {
        self.on_device((CMD_STOP_DEV, "STOP_DEV", LONG), device, 0, &[]).map(drop)
    }

    /// Stops and forgets a device. Its character device must be closed by everybody before this returns.
    ///
    /// # Errors
    /// `Refused`, `TimedOut`.
    pub fn delete(&mut self, device: &DeviceInfo) -> Result<(), ControlError> {
        self.on_device((CMD_DEL_DEV, "DEL_DEV", LONG), device, 0, &[]).map(drop)
    }

    /// Begins to take over a device whose process is gone: from now on its requests may be fetched again.
    ///
    /// # Errors
    /// `Refused` with `EBUSY` as long as the kernel has not done with the old process.
    pub fn start_recovery(&mut self, device: &DeviceInfo) -> Result<(), ControlError> {
        let command = (CMD_START_USER_RECOVERY, "START_USER_RECOVERY", SHORT);
        self.on_device(command, device, 0, &[]).map(drop)
    }

    /// All requests are being fetched again; those that waited come.
    ///
    /// # Errors
    /// `Refused`, `TimedOut`.
    pub fn end_recovery(&mut self, device: &DeviceInfo) -> Result<(), ControlError> {
        let pid = u64::from(std::process::id());
        let command = (CMD_END_USER_RECOVERY, "END_USER_RECOVERY", SHORT);
        self.on_device(command, device, pid, &[]).map(drop)
    }

    /// Changes a device's size while it is in use, where [`Features::UPDATE_SIZE`] says so.
    ///
    /// # Errors
    /// `Lacks`, `Refused`.
    pub fn update_size(&mut self, device: &DeviceInfo, bytes: u64) -> Result<(), ControlError> {
        if !self.features.has(Features::UPDATE_SIZE) {
            return Err(ControlError::Lacks { feature: "UBLK_F_UPDATE_SIZE" });
        }
        let sectors = bytes / crate::request::SECTOR_BYTES;
        self.on_device((CMD_UPDATE_SIZE, "UPDATE_SIZE", SHORT), device, sectors, &[]).map(drop)
    }

    /// Has a device's requests wait for another process, where [`Features::QUIESCE`] says so: those that are fetched and not
    /// begun come back as not coming, the others have to be ended within `limit`.
    ///
    /// # Errors
    /// `Lacks`; `Refused` with `EBUSY` if they were not.
    pub fn quiesce(&mut self, device: &DeviceInfo, limit: Duration) -> Result<(), ControlError> {
        if !self.features.has(Features::QUIESCE) {
            return Err(ControlError::Lacks { feature: "UBLK_F_QUIESCE" });
        }
        let command = (CMD_QUIESCE_DEV, "QUIESCE_DEV", limit + SHORT);
        self.on_device(command, device, limit.as_millis() as u64, &[]).map(drop)
    }

    /// A command for a device that there is. Whoever made it without privilege is asked for the way to it, to be checked.
    fn on_device(
        &mut self,
        command: Command,
        device: &DeviceInfo,
        data: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>, ControlError> {
        let unprivileged = device.features.has(Features::UNPRIVILEGED_DEV);
        let mut bytes = if unprivileged { path_of(device.number) } else { Vec::new() };
        let path_len = bytes.len();
        bytes.extend_from_slice(payload);
        self.call(command, device.number, data, path_len, &mut bytes)?;
        Ok(bytes.split_off(path_len))
    }

    /// Gives one command and waits for its end. The first `path_len` bytes of `bytes` are a path; the rest goes to the kernel and comes
    /// back.
    fn call(
        &mut self,
        (code, name, limit): Command,
        number: DeviceNumber,
        data: u64,
        path_len: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ControlError> {
        self.sequence += 1;
        let mut header = [0; 80];
        const _: () = assert!(CTRL_CMD_BYTES <= 80);
        put_u32(&mut header, ctrl_cmd::DEV_ID, number);
        // "must be -1 if the cmd isn't for queue"
        put_u16(&mut header, ctrl_cmd::QUEUE_ID, u16::MAX);
        put_u16(&mut header, ctrl_cmd::LEN, bytes.len() as u16);
        let address = if bytes.is_empty() { 0 } else { bytes.as_mut_ptr() as u64 };
        put_u64(&mut header, ctrl_cmd::ADDR, address);
        put_u64(&mut header, ctrl_cmd::DATA, data);
        put_u16(&mut header, ctrl_cmd::DEV_PATH_LEN, path_len as u16);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, code).cmd(header).build().user_data(self.sequence);
        // SAFETY: the kernel reads and writes `bytes.len()` bytes at the address of `bytes`, which is borrowed until
        // this returns: with the completion, or without it after `bytes` was leaked below.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| ControlError::Os { call: "io_uring", errno: Errno::BUSY })?;
        let give_up = Instant::now() + limit;
        let mut submitted = false;
        loop {
            let sequence = self.sequence;
            let mut completions = self.ring.completion();
            if let Some(own) = completions.find(|completion| completion.user_data() == sequence) {
                return judge(name, number, own.result());
            }
            drop(completions);
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() && submitted {
                // The kernel may still write there, whenever it likes.
                std::mem::forget(std::mem::take(bytes));
                return Err(ControlError::TimedOut { command: name, number, limit });
            }
            let left = types::Timespec::from(left.max(Duration::from_millis(1)));
            let args = types::SubmitArgs::new().timespec(&left);
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => submitted = true,
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    // Submitting comes before waiting, and these are about waiting.
                    Some(Errno::TIME | Errno::INTR) => submitted = true,
                    Some(Errno::AGAIN | Errno::BUSY) if !submitted => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    _ => {
                        std::mem::forget(std::mem::take(bytes));
                        return Err(os("io_uring_enter", &error));
                    }
                },
            }
        }
    }
}

fn judge(command: &'static str, number: u32, result: i32) -> Result<(), ControlError> {
    if result >= 0 {
        return Ok(());
    }
    match Errno::from_raw_os_error(-result) {
        // The way to a device that is just coming, or going, leads nowhere.
        Errno::NODEV | Errno::NOENT if number != u32::MAX => Err(ControlError::NoDevice { number }),
        Errno::PERM | Errno::ACCESS => Err(ControlError::NotPermitted),
        errno => Err(ControlError::Refused { command, number, errno }),
    }
}

/// Numbers of all ublk devices of this machine, in order.
///
/// # Errors
/// `NoUblk` if the kernel has none, and no module of it is loaded.
pub fn device_numbers() -> Result<Vec<DeviceNumber>, ControlError> {
    let entries = match std::fs::read_dir("/sys/class/ublk-char") {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ControlError::NoUblk);
        }
        Err(error) => return Err(os("readdir /sys/class/ublk-char", &error)),
    };
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("ublkc")?.parse().ok();
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| number(&entry.file_name())).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Of the character device, as `dev_path_len` wants it: with its zero.
fn path_of(number: DeviceNumber) -> Vec<u8> {
    format!("/dev/ublkc{number}\0").into_bytes()
}

fn info_of(bytes: &[u8]) -> DeviceInfo {
    let mut info = [0; DEV_INFO_BYTES];
    info.copy_from_slice(bytes);
    DeviceInfo::decode(&info)
}

fn os(call: &'static str, error: &std::io::Error) -> ControlError {
    ControlError::Os { call, errno: Errno::from_io_error(error).unwrap_or(Errno::IO) }
}
