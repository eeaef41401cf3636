//! Sixty-four clients that misbehave in ten ways, and one that doesn't: it keeps its data and most
//! of its speed, the daemon's memory stays bounded, and the daemon lives.
//!
//! `FLAGSTONE_HOSTILE_SECONDS` says for how long.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flagstone_tests::daemon::{Config, create_pool, directory};
use flagstone_tests::ledger::{Clock, Cut, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::nbd::{self, Address, Client, Request, Stream};
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, MIB, knob, process};

/// The first half of the volume belongs to the client that behaves, in blocks.
const HALF: u64 = 4096;

/// The daemon's `--memory`.
const MEMORY: u64 = 96 * MIB;

/// What the process may have beyond that: the program itself, stacks, tables, the volume maps.
const OVERHEAD: u64 = 32 * MIB;

const CLIENTS: usize = 64;

struct Attack<'a> {
    addresses: [Address; 2],
    over: &'a AtomicBool,
    rounds: &'a AtomicU64,
}

#[test]
fn hostile_clients() {
    let seconds = knob("FLAGSTONE_HOSTILE_SECONDS", 4);
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 2048 * MIB);
    let mut config = Config::new(&pool, dir.path());
    config.args = ["--memory", &MEMORY.to_string()].map(str::to_owned).to_vec();
    config.tcp = true;
    let mut daemon = config.start();
    daemon.create_volume("v", 2 * HALF * BLOCK as u64);

    let (clock, stop) = (Clock::default(), AtomicBool::new(false));
    let shared = Shared { clock: &clock, stop: &stop, position: &|| 0 };
    let mut ledger = Ledger::default();
    let mut behave = |requests: u64, seed| {
        let plan = Plan { connections: 2, depth: 8, blocks: HALF, requests, seed };
        let start = Instant::now();
        let end = load::run(&plan, &daemon.address(), "v", &shared, &mut ledger).unwrap();
        assert_eq!(end, load::End::Answered);
        start.elapsed()
    };
    let alone = behave(500, 1);
    let (before, _) = process::memory(daemon.pid());

    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let addresses = [daemon.address(), Address::Tcp(daemon.tcp_address())];
    let attack = Attack { addresses, over: &over, rounds: &rounds };
    let mut besieged = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let attack = &attack;
            scope.spawn(move || attack.run(client));
        }
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < deadline {
            besieged.push(behave(500, 2 + besieged.len() as u64));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(daemon.is_alive());
    let (after, peak) = process::memory(daemon.pid());
    let slowest = besieged.iter().max().unwrap();
    println!(
        "{} rounds of {CLIENTS} hostile clients; 1000 requests took {alone:?} alone, at most \
         {slowest:?} under attack; resident {before} before, {after} after, {peak} at most",
        rounds.load(Ordering::Relaxed)
    );
    assert!(rounds.load(Ordering::Relaxed) > CLIENTS as u64, "the attack took place");
    // The attackers, and whatever else runs here, burn this machine's cores as well, so time is a
    // rough measure only: starvation slows down every run, and far more than that.
    let fastest = besieged.iter().min().unwrap();
    assert!(*fastest < alone * 10 + Duration::from_secs(5), "the client that behaves starves");
    assert!(peak <= MEMORY + OVERHEAD, "{peak} bytes resident, with --memory {MEMORY}");

    // All of them are gone: every slot can be taken again, and the data is as it was written.
    let found = load::read_all(&daemon.address(), "v").unwrap();
    ledger.verify(&found[..(HALF as usize) * BLOCK], Cut::Process).unwrap();
    let again: Vec<_> = (0..100).map(|_| daemon.connect("v")).collect();
    drop(again);
    daemon.stop_cleanly();
    flagstone_tests::daemon::check_pool(&pool);
}

impl Attack<'_> {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One client: the same misbehaviour again and again. That the daemon closes the connection is
    /// what it should do, so errors only end a round.
    fn run(&self, client: usize) {
        let mut random = Random::new(client as u64);
        let address = &self.addresses[client / 10 % 2];
        let ways = [
            Self::says_nothing,
            Self::greets_in_part,
            Self::sends_garbage_for_options,
            Self::sends_endless_options,
            Self::asks_in_part,
            Self::writes_slowly,
            Self::never_reads,
            Self::sends_garbage_for_requests,
            Self::vanishes_in_a_write,
            Self::asks_for_too_much,
        ];
        while !self.over() {
            let _ = ways[client % ways.len()](self, address, &mut random);
            self.rounds.fetch_add(1, Ordering::Relaxed);
            // An attacker's pace, so that it is the daemon that is tested and not the machine.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Holds a connection open for a while.
    fn linger(&self) {
        let end = Instant::now() + Duration::from_secs(1);
        while !self.over() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn says_nothing(&self, address: &Address, _: &mut Random) -> std::io::Result<()> {
        let _stream = connect(address)?;
        self.linger();
        Ok(())
    }

    fn greets_in_part(&self, address: &Address, _: &mut Random) -> std::io::Result<()> {
        let mut stream = connect(address)?;
        stream.write_all(&[0, 0])?;
        self.linger();
        Ok(())
    }

    fn sends_garbage_for_options(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut stream = connect(address)?;
        nbd::begin(&mut stream)?;
        let mut garbage = vec![0; 1 + r.below(100_000) as usize];
        r.fill(&mut garbage);
        stream.write_all(&garbage)?;
        stream.read_exact(&mut [0; 4096])
    }

    fn sends_endless_options(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut stream = connect(address)?;
        nbd::begin(&mut stream)?;
        if r.chance(50) {
            // An option that says it has four gigabytes of data, and sends on and on.
            let mut head = nbd::option(7, &[]);
            head[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
            stream.write_all(&head)?;
            let more = vec![0; 65536];
            while !self.over() {
                stream.write_all(&more)?;
            }
            return Ok(());
        }
        // As many options as fit, with no reply ever read.
        let list = nbd::option(3, &[]);
        while !self.over() {
            stream.write_all(&list)?;
        }
        Ok(())
    }

    fn asks_in_part(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        let request = read(0, 4096);
        client.stream().write_all(&request.header(1)[..1 + r.below(27) as usize])?;
        self.linger();
        Ok(())
    }

    fn writes_slowly(&self, address: &Address, _: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        let length = 1 << 20;
        let request =
            Request { kind: nbd::WRITE, flags: 0, offset: upper(0), length, payload: &[] };
        client.stream().write_all(&request.header(1))?;
        while !self.over() {
            client.stream().write_all(&[0x5a; 100])?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn never_reads(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        // The daemon stops reading when it can't answer; the sending then ends by the time limit.
        let length = [4096, 1 << 20, 16 << 20][r.below(3) as usize];
        for cookie in 0..2000 {
            if self.over() {
                break;
            }
            client.stream().write_all(&read(0, length).header(cookie))?;
        }
        self.linger();
        Ok(())
    }

    fn sends_garbage_for_requests(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        let mut garbage = vec![0; 28 + r.below(100_000) as usize];
        r.fill(&mut garbage);
        if r.chance(50) {
            // The first request is almost one.
            garbage[..28].copy_from_slice(&read(0, 4096).header(1));
            garbage[4..8].copy_from_slice(&r.number().to_be_bytes()[..4]);
        }
        client.stream().write_all(&garbage)?;
        client.stream().read_exact(&mut [0; 65536])
    }

    fn vanishes_in_a_write(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        let payload = vec![0xa5; 1 + r.below(256 << 10) as usize];
        let offset = upper(r.below(1 << 20));
        let length = payload.len() as u32;
        let request = Request { kind: nbd::WRITE, flags: 0, offset, length, payload: &payload };
        client.stream().write_all(&request.header(1))?;
        client.stream().write_all(&payload[..r.below(payload.len() as u64) as usize])
    }

    fn asks_for_too_much(&self, address: &Address, r: &mut Random) -> std::io::Result<()> {
        let mut client = client(address)?;
        let kinds = [nbd::READ, nbd::WRITE, nbd::TRIM, nbd::WRITE_ZEROES, nbd::FLUSH, 99];
        let kind = kinds[r.below(6) as usize];
        let offset = [0, client.size - 1, u64::MAX - 5][r.below(3) as usize];
        let length = [u32::MAX, 1 << 30, (32 << 20) + 1][r.below(3) as usize];
        let request = Request { kind, flags: r.number() as u16, offset, length, payload: &[] };
        client.stream().write_all(&request.header(1))?;
        client.stream().read_exact(&mut [0; 16])
    }
}

/// How long an attacker waits for the daemon, which may have nothing to say to what it got.
const PATIENCE: Duration = Duration::from_millis(300);

fn connect(address: &Address) -> std::io::Result<Stream> {
    let stream = Stream::connect(address)?;
    stream.set_timeout(PATIENCE)?;
    Ok(stream)
}

fn client(address: &Address) -> std::io::Result<Client> {
    let mut client = Client::connect(address, "v")?;
    client.stream().set_timeout(PATIENCE)?;
    Ok(client)
}

fn read(offset: u64, length: u32) -> Request<'static> {
    Request { kind: nbd::READ, flags: 0, offset, length, payload: &[] }
}

/// A place in the half of the volume that the hostile clients may write to.
const fn upper(offset: u64) -> u64 {
    HALF * BLOCK as u64 + offset
}
