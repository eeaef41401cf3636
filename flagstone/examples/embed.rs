//! A pool inside a program, without a daemon: `cargo run -p flagstone --example embed [PATH]`.

use std::error::Error;

use flagstone::{CreateOptions, OpenOptions, Pool};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "embed.flagstone".into());

    // The file is made here; the next time, the pool that is there is opened.
    let pool = if std::fs::exists(&path)? {
        Pool::open(&path, &OpenOptions::default())?
    } else {
        let options = CreateOptions { size_bytes: Some(1 << 30), ..CreateOptions::default() };
        Pool::create(&path, &options)?
    };
    let volume = pool.create_volume("counter", 1 << 20)?;

    // Blocking, from any thread.
    let mut bytes = [0; 8];
    volume.read(0, &mut bytes)?;
    let runs = u64::from_le_bytes(bytes) + 1;
    volume.write(0, &runs.to_le_bytes())?;

    // Durable: it survives power loss from here on.
    volume.flush()?;
    println!("run number {runs}; {} bytes are in use", pool.status()?.used_bytes);

    // Closing makes the next opening quick; a crash instead would lose nothing.
    pool.close()?;
    Ok(())
}
