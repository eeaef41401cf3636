//! A block device of the kernel (ublk) that does nothing: what the kernel's half of one costs by itself.
//!
//! Every request is answered at once, reads without data. Like a volume's device it has one queue of 128 requests, served by a
//! thread of its own. Ends, and takes the device away, on SIGINT or SIGTERM.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::mpsc;

use clap::Parser;
use flagstone_ring::{Event, Ring, RingConfig, SpinPolicy};
use flagstone_ublk::{
    Control, DeviceInfo, DeviceState, Features, IoCommand, Params, Queue, result_of,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const DEPTH: u16 = 128;
const MAX_IO_BYTES: u32 = 1 << 20;

/// Serve a block device that does nothing, and print its path
#[derive(Debug, Parser)]
struct Args {
    /// Its size in GiB
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    gib: u64,
}

fn main() -> ExitCode {
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut control = Control::open()?;
    let wanted = DeviceInfo {
        number: u32::MAX,
        queues: 1,
        depth: DEPTH,
        max_io_bytes: MAX_IO_BYTES,
        state: DeviceState::Dead,
        pid: 0,
        features: control.features().common(Features::USER_COPY),
        note: 0,
        owner_uid: 0,
        owner_gid: 0,
    };
    let device = control.add(&wanted)?;
    let params =
        Params { size_bytes: args.gib << 30, max_io_bytes: MAX_IO_BYTES, read_only: false };
    let (ready, is_ready) = mpsc::channel();
    let result = control.set_params(&device, &params).map_err(Box::from).and_then(|()| {
        // Not waited for: it ends with the device, or with this process.
        std::thread::spawn(move || {
            let ended = answer(&device, &ready);
            let _ = ready.send(ended.map_err(|error| error.to_string()));
        });
        is_ready.recv()??;
        control.start(&device)?;
        println!("/dev/ublkb{}", device.number);
        signals.forever().next();
        control.stop(&device)?;
        // The queue has ended when all its commands have.
        is_ready.recv()??;
        Ok(())
    });
    control.delete(&device)?;
    result
}

/// Answers requests until the device goes away. `ready` is told once that all of them are waited for.
fn answer(
    device: &DeviceInfo,
    ready: &mpsc::Sender<Result<(), String>>,
) -> Result<(), Box<dyn Error>> {
    let mut ring = Ring::new(RingConfig {
        entries: u32::from(DEPTH),
        arena_blocks: 1,
        spin: SpinPolicy::Never,
        max_sockets: 1,
        ..RingConfig::default()
    })?;
    let mut queue = Queue::open(device)?;
    let file = ring.add_command_file(queue.as_fd())?;
    for tag in 0..DEPTH {
        ring.submit_command(file, u32::from(tag), queue.begin(IoCommand::Fetch { tag }));
    }
    // Submits them without waiting for one.
    ring.submit_and_wait(Some(0))?;
    ready.send(Ok(()))?;
    while queue.under_way() > 0 {
        ring.submit_and_wait(None)?;
        while let Some(event) = ring.next_event() {
            let Event::Command { name, result, .. } = event else { continue };
            queue.ended();
            if !result_of(result) {
                continue;
            }
            let tag = u16::try_from(name)?;
            let bytes = queue.request(tag).map_or(0, |request| request.len);
            let result = i32::try_from(bytes)?;
            let command = queue.begin(IoCommand::CommitAndFetch { tag, result });
            ring.submit_command(file, name, command);
        }
    }
    Ok(())
}
