//! Runs inputs through a target without a fuzzer: `replay TARGET FILE...`. Says in words
//! what each does, where a target knows how to.

use flagstone_fuzz::TARGETS;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let target = args.first().and_then(|name| TARGETS.iter().find(|t| t.name == *name));
    let (Some(target), [_, files @ ..]) = (target, args.as_slice()) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: replay TARGET FILE...\ntargets: {}", names.join(" "));
        return ExitCode::from(2);
    };
    // What runs start from is made by the first one, and not worth telling.
    (0..16).for_each(|first| (target.run)(&[first]));
    flagstone_fuzz::trace::on();
    for file in files {
        match std::fs::read(file) {
            Ok(input) => {
                println!("{file}: {} bytes", input.len());
                let start = Instant::now();
                (target.run)(&input);
                println!("{file}: good, {:?}", start.elapsed());
            }
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
