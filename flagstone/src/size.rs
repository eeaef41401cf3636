//! Sizes as people type and read them: `4096`, `512M`, `10GiB`.
//!
//! Units are binary (`K` = 1024) because devices, blocks and segments are; the decimal spellings
//! (`KB`, `GB`) mean different things to different tools, so they are refused rather than guessed.
//! Fractions are refused too: `1.5G` is easy to mistype, and `1536M` says the same exactly.

use std::fmt;

use flagstone_block::BLOCK_SIZE;

/// The largest size that a file offset can express.
const SIZE_MAX: u64 = i64::MAX as u64;

const UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Why a size was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Nothing was given.
    #[error("a size is missing; write for example 10G, 512MiB or 4096 (bytes)")]
    Empty,
    /// It does not start with a digit, or holds something between number and unit.
    #[error(
        "\"{text}\" is not a size; write a whole number and a unit, for example 10G, 512MiB \
         or 4096 (bytes)"
    )]
    NotANumber {
        /// As given.
        text: String,
    },
    /// A fraction such as `1.5G`.
    #[error(
        "\"{text}\" has a fraction; write a whole number of a smaller unit, for example 1536M for 1.5G"
    )]
    Fraction {
        /// As given.
        text: String,
    },
    /// `KB`, `MB`, ... which are decimal to some tools and binary to others.
    #[error("\"{unit}\" can mean 1000 or 1024; write \"{binary}\" (powers of 1024)")]
    AmbiguousUnit {
        /// As given.
        unit: String,
        /// The spelling that is accepted.
        binary: String,
    },
    /// No such unit.
    #[error("unknown unit \"{unit}\"; use K, M, G, T or P (or KiB, MiB, ...), powers of 1024")]
    UnknownUnit {
        /// As given.
        unit: String,
    },
    /// More than a file offset can express.
    #[error("\"{text}\" is too large; the largest size is 8 EiB - 1")]
    TooLarge {
        /// As given.
        text: String,
    },
    /// Zero where something is needed.
    #[error("the size must be more than 0")]
    Zero,
    /// Not whole blocks.
    #[error(
        "{bytes} bytes is not a multiple of 4096, the block size; the nearest sizes are \
         {below} and {above}"
    )]
    NotBlocks {
        /// The size given, in bytes.
        bytes: u64,
        /// The next smaller multiple of 4096 (of at least one block).
        below: u64,
        /// The next larger multiple of 4096.
        above: u64,
    },
}

/// Parses a size in bytes: a whole number, then nothing, `B`, or one of K, M, G, T, P in either
/// case, alone or followed by `iB`.
///
/// # Errors
/// [`SizeError`] names what is wrong and what to write instead.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SizeError::Empty);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err(SizeError::NotANumber { text: text.to_owned() });
    }
    if unit.starts_with(['.', ',']) {
        return Err(SizeError::Fraction { text: text.to_owned() });
    }
    let shift = unit_shift(unit)?;
    let too_large = || SizeError::TooLarge { text: text.to_owned() };
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes <= SIZE_MAX).ok_or_else(too_large)
}

fn unit_shift(unit: &str) -> Result<u32, SizeError> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Ok(0);
    }
    let mut rest = unit.chars();
    let letter = rest.next().map(|c| c.to_ascii_uppercase());
    let rest = rest.as_str();
    for (name, shift) in UNITS {
        if letter != name.chars().next() {
            continue;
        }
        if rest.is_empty() || rest.eq_ignore_ascii_case("ib") {
            return Ok(shift);
        }
        if rest.eq_ignore_ascii_case("b") {
            return Err(SizeError::AmbiguousUnit {
                unit: unit.to_owned(),
                binary: format!("{name}iB"),
            });
        }
    }
    Err(SizeError::UnknownUnit { unit: unit.to_owned() })
}

/// Parses a size that must be whole blocks and more than zero: of a volume, a pool, a segment.
///
/// # Errors
/// As [`parse_size`], and [`SizeError::Zero`], [`SizeError::NotBlocks`].
pub fn parse_block_size(text: &str) -> Result<u64, SizeError> {
    let bytes = parse_size(text)?;
    check_blocks(bytes)?;
    Ok(bytes)
}

/// Checks that `bytes` is whole blocks, more than zero and expressible as a file offset.
///
/// # Errors
/// [`SizeError::Zero`], [`SizeError::NotBlocks`] or [`SizeError::TooLarge`].
pub fn check_blocks(bytes: u64) -> Result<(), SizeError> {
    let block = BLOCK_SIZE as u64;
    if bytes == 0 {
        return Err(SizeError::Zero);
    }
    if bytes > SIZE_MAX {
        return Err(SizeError::TooLarge { text: bytes.to_string() });
    }
    if !bytes.is_multiple_of(block) {
        let below = bytes / block * block;
        return Err(SizeError::NotBlocks { bytes, below: below.max(block), above: below + block });
    }
    Ok(())
}

/// A size for people: exact with its largest whole unit (`10 GiB`, `1536 MiB`), else rounded to
/// two decimals (`1.21 GiB`), so that what looks exact is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = human(self.0);
        f.pad(&text)
    }
}

fn human(bytes: u64) -> String {
    let Some(&(name, shift)) = UNITS.iter().rev().find(|&&(_, shift)| bytes >> shift != 0) else {
        return format!("{bytes} B");
    };
    if bytes.trailing_zeros() >= shift {
        return format!("{} {name}iB", bytes >> shift);
    }
    // A few of the next smaller unit stay exact (1536 MiB), which is also how they are typed.
    if shift > 10 && bytes.trailing_zeros() >= shift - 10 && bytes >> (shift - 10) < 10_000 {
        let smaller = UNITS.iter().find(|&&(_, s)| s == shift - 10).map_or("", |&(name, _)| name);
        return format!("{} {smaller}iB", bytes >> (shift - 10));
    }
    let hundredths = (u128::from(bytes) * 100) >> shift;
    format!("{}.{:02} {name}iB", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_documented_spellings() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("0", 0),
            ("1K", 1024),
            ("1k", 1024),
            ("64KiB", 65536),
            ("512MiB", 512 << 20),
            ("512 MiB", 512 << 20),
            ("10G", 10 << 30),
            ("10gib", 10 << 30),
            ("3T", 3 << 40),
            ("7P", 7 << 50),
            (" 1M ", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        use SizeError as E;
        let text = |s: &str| s.to_owned();
        for (input, error) in [
            ("", E::Empty),
            ("  ", E::Empty),
            ("G", E::NotANumber { text: text("G") }),
            ("-1", E::NotANumber { text: text("-1") }),
            ("1.5G", E::Fraction { text: text("1.5G") }),
            ("1,5G", E::Fraction { text: text("1,5G") }),
            ("10GB", E::AmbiguousUnit { unit: text("GB"), binary: text("GiB") }),
            ("10mb", E::AmbiguousUnit { unit: text("mb"), binary: text("MiB") }),
            ("10X", E::UnknownUnit { unit: text("X") }),
            ("10Gi", E::UnknownUnit { unit: text("Gi") }),
            ("10G1", E::UnknownUnit { unit: text("G1") }),
            ("8192P", E::TooLarge { text: text("8192P") }),
            ("99999999999999999999", E::TooLarge { text: text("99999999999999999999") }),
        ] {
            assert_eq!(parse_size(input), Err(error), "{input:?}");
        }
    }

    #[test]
    fn block_sizes_are_whole_blocks() {
        assert_eq!(parse_block_size("4K"), Ok(4096));
        assert_eq!(parse_block_size("0"), Err(SizeError::Zero));
        assert_eq!(
            parse_block_size("5000"),
            Err(SizeError::NotBlocks { bytes: 5000, below: 4096, above: 8192 })
        );
        assert_eq!(
            parse_block_size("1"),
            Err(SizeError::NotBlocks { bytes: 1, below: 4096, above: 4096 })
        );
        assert!(check_blocks(u64::MAX - 4095).is_err());
    }

    #[test]
    fn human_is_exact_when_it_looks_exact() {
        for (bytes, text) in [
            (0, "0 B"),
            (1000, "1000 B"),
            (4096, "4 KiB"),
            (10 << 30, "10 GiB"),
            (1536 << 20, "1536 MiB"),
            ((1 << 30) + 1, "1.00 GiB"),
            (1_300_000_000, "1.21 GiB"),
            (u64::MAX, "16383.99 PiB"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }
}
