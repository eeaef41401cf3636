//! What a session asks about exports.

use crate::proto::{
    FLAG_CAN_MULTI_CONN, FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_SEND_CACHE, FLAG_SEND_DF,
    FLAG_SEND_FAST_ZERO, FLAG_SEND_FLUSH, FLAG_SEND_FUA, FLAG_SEND_TRIM, FLAG_SEND_WRITE_ZEROES,
};
use crate::reply::Style;

/// One export as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export<'a> {
    /// The owner's name for it; comes back in [`crate::Opened`]. Unique among the exports.
    pub handle: u64,
    /// Its name, at most [`crate::limits::MAX_STRING_BYTES`] bytes; a longer one can't be opened.
    pub name: &'a str,
    /// For humans; may be empty.
    pub description: &'a str,
    /// Bytes.
    pub size: u64,
    /// Writes get `NBD_EPERM`.
    pub read_only: bool,
}

/// What a server of such an export can do (NBD proto, "Transmission flags").
#[must_use]
pub fn transmission_flags(read_only: bool, style: Style) -> u16 {
    let mut flags = FLAG_HAS_FLAGS
        | FLAG_SEND_FLUSH
        | FLAG_SEND_FUA
        | FLAG_SEND_TRIM
        | FLAG_SEND_WRITE_ZEROES
        | FLAG_SEND_FAST_ZERO
        | FLAG_CAN_MULTI_CONN
        | FLAG_SEND_CACHE;
    if read_only {
        flags |= FLAG_READ_ONLY;
    }
    if style != Style::Simple {
        flags |= FLAG_SEND_DF;
    }
    flags
}

/// The exports there are, asked during the handshake only.
pub trait Exports {
    /// The export called `name`, exactly.
    fn find(&self, name: &str) -> Option<Export<'_>>;

    /// The export that comes behind the one called `name`, also if that is gone, or the first; `None`
    /// past the last. Their order doesn't change.
    fn after(&self, name: Option<&str>) -> Option<Export<'_>>;

    /// The snapshot called `name` that an export's differences can be told from: one of the same volume, or
    /// with its volume's name, `VOLUME@SNAPSHOT`, any. Its handle.
    fn origin(&self, _export: u64, _name: &str) -> Option<u64> {
        None
    }

    /// The name of such a snapshot of the same volume that comes behind `after`, also if that is gone, or
    /// the first; `None` past the last.
    fn origin_after(&self, _export: u64, _after: Option<&str>) -> Option<&str> {
        None
    }

    /// What the empty name stands for: the only export, if there is exactly one.
    fn default_export(&self) -> Option<Export<'_>> {
        let first = self.after(None)?;
        match self.after(Some(first.name)) {
            None => Some(first),
            Some(_) => None,
        }
    }

    /// What a client's name stands for.
    fn resolve(&self, name: &str) -> Option<Export<'_>> {
        self.find(name).or_else(|| if name.is_empty() { self.default_export() } else { None })
    }
}

impl<E: Exports + ?Sized> Exports for &E {
    fn find(&self, name: &str) -> Option<Export<'_>> {
        (**self).find(name)
    }

    fn after(&self, name: Option<&str>) -> Option<Export<'_>> {
        (**self).after(name)
    }

    fn origin(&self, export: u64, name: &str) -> Option<u64> {
        (**self).origin(export, name)
    }

    fn origin_after(&self, export: u64, after: Option<&str>) -> Option<&str> {
        (**self).origin_after(export, after)
    }
}
