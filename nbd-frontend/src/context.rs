//! Metadata contexts: what BLOCK_STATUS tells, as it was negotiated.
//!
//! * `base:allocation`: what is data, zero, a hole;
//! * `x-flagstone:diff:SNAPSHOT`: what differs from a snapshot, and whether it is zeroes now;
//! * `qemu:dirty-bitmap:SNAPSHOT`: what differs from it, as QEMU's server tells of a bitmap, since backup
//!   programs know that name.
//!
//! Source: NBD proto, "Metadata querying"; QEMU, `docs/interop/nbd.txt`.

use crate::limits::{MAX_DIFFERENCES, MAX_ORIGIN_BYTES};
use crate::proto::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, BASE_WILDCARD, FLAGSTONE_DIFF, FLAGSTONE_WILDCARD,
    QEMU_BITMAP, QEMU_WILDCARD,
};

/// A context that tells what differs from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// [`crate::Export::handle`] of the snapshot.
    pub origin: u64,
    /// `x-flagstone:diff:`, which tells of zeroes too.
    pub zeroes: bool,
}

/// One context that was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// What differs from a snapshot.
    Difference(Difference),
}

/// The contexts that a client selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    pub(crate) allocation: bool,
    differences: [Option<Difference>; MAX_DIFFERENCES],
}

impl Contexts {
    /// `base:allocation` alone.
    pub const ALLOCATION: Self = Self { allocation: true, differences: [None; MAX_DIFFERENCES] };

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nth(0).is_none()
    }

    /// The context number `n` and its identifier.
    #[must_use]
    pub fn nth(&self, n: usize) -> Option<(Context, u32)> {
        let n = match (self.allocation, n) {
            (true, 0) => return Some((Context::Allocation, BASE_ALLOCATION_ID)),
            (true, n) => n - 1,
            (false, n) => n,
        };
        let difference = self.differences.get(n).copied().flatten()?;
        Some((Context::Difference(difference), BASE_ALLOCATION_ID + 1 + n as u32))
    }

    /// Selects one, if it is not; false if there is no room for it.
    pub(crate) fn takes(&mut self, difference: Difference) -> bool {
        self.differences.contains(&Some(difference)) || self.select(difference).is_some()
    }

    /// Selects one more; its identifier, if it was not selected already and there is room.
    pub(crate) fn select(&mut self, difference: Difference) -> Option<u32> {
        let n = self.differences.iter().position(Option::is_none)?;
        if self.differences.contains(&Some(difference)) {
            return None;
        }
        self.differences[n] = Some(difference);
        Some(BASE_ALLOCATION_ID + 1 + n as u32)
    }
}

/// What one query names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Query<'a> {
    Allocation,
    /// All of the namespace `base`.
    Base,
    /// All differences, of one kind.
    All {
        zeroes: bool,
    },
    /// Those from this snapshot.
    Difference {
        origin: &'a str,
        zeroes: bool,
    },
    /// Nothing there is; it must be ignored.
    Unknown,
}

impl<'a> Query<'a> {
    pub(crate) fn of(text: &'a [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(text) else { return Self::Unknown };
        match text {
            BASE_ALLOCATION => return Self::Allocation,
            BASE_WILDCARD => return Self::Base,
            FLAGSTONE_WILDCARD | FLAGSTONE_DIFF => return Self::All { zeroes: true },
            QEMU_WILDCARD | QEMU_BITMAP => return Self::All { zeroes: false },
            _ => {}
        }
        let named = |prefix| text.strip_prefix(prefix).filter(|o| o.len() <= MAX_ORIGIN_BYTES);
        match (named(FLAGSTONE_DIFF), named(QEMU_BITMAP)) {
            (Some(origin), _) => Self::Difference { origin, zeroes: true },
            (_, Some(origin)) => Self::Difference { origin, zeroes: false },
            _ => Self::Unknown,
        }
    }
}

/// The beginning of such a context's name.
pub(crate) const fn prefix(zeroes: bool) -> &'static str {
    if zeroes { FLAGSTONE_DIFF } else { QEMU_BITMAP }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_numbered_as_they_are_selected() {
        let mut contexts = Contexts::default();
        assert!(contexts.is_empty());
        let difference = |origin| Difference { origin, zeroes: false };
        for i in 0..MAX_DIFFERENCES as u32 {
            assert_eq!(contexts.select(difference(u64::from(i))), Some(2 + i));
            assert_eq!(contexts.select(difference(u64::from(i))), None);
        }
        assert_eq!(contexts.select(difference(99)), None);
        assert_eq!(contexts.nth(0), Some((Context::Difference(difference(0)), 2)));
        contexts.allocation = true;
        assert_eq!(contexts.nth(0), Some((Context::Allocation, 1)));
        assert_eq!(contexts.nth(1), Some((Context::Difference(difference(0)), 2)));
        assert_eq!(contexts.nth(MAX_DIFFERENCES + 1), None);
    }

    #[test]
    fn queries_are_told_apart() {
        let origin = "a".repeat(MAX_ORIGIN_BYTES + 1);
        let long = format!("qemu:dirty-bitmap:{origin}");
        for (text, query) in [
            ("base:allocation", Query::Allocation),
            ("base:", Query::Base),
            ("qemu:", Query::All { zeroes: false }),
            ("x-flagstone:diff:", Query::All { zeroes: true }),
            ("qemu:dirty-bitmap:a", Query::Difference { origin: "a", zeroes: false }),
            ("x-flagstone:diff:v@a", Query::Difference { origin: "v@a", zeroes: true }),
            ("qemu:allocation-depth", Query::Unknown),
            ("base:alloc", Query::Unknown),
            ("", Query::Unknown),
            (&long, Query::Unknown),
        ] {
            assert_eq!(Query::of(text.as_bytes()), query, "{text}");
        }
        assert_eq!(Query::of(b"qemu:dirty-bitmap:\xff"), Query::Unknown);
    }
}
