//! For tests, simulators and fuzz targets: a client that checks what it is told, and the fuzz
//! entry points. Allocates freely; not for the data path.

mod client;
pub mod encode;
mod fuzz;

pub use client::{Client, Event, Outcome, Violation};
pub use fuzz::{fuzz_handshake, fuzz_transmission};

use crate::export::{Export, Exports};

/// Exports in a vector; the handle is the index.
#[derive(Clone, Debug, Default)]
pub struct ExportList(pub Vec<ListedExport>);

/// One entry of an [`ExportList`].
#[derive(Clone, Debug)]
pub struct ListedExport {
    /// [`Export::name`].
    pub name: String,
    /// [`Export::description`].
    pub description: String,
    /// [`Export::size`], bytes.
    pub size: u64,
    /// [`Export::read_only`].
    pub read_only: bool,
}

impl ExportList {
    /// One writable export.
    #[must_use]
    pub fn one(name: &str, size: u64) -> Self {
        Self::default().with(name, size, false)
    }

    /// Adds an export.
    #[must_use]
    pub fn with(mut self, name: &str, size: u64, read_only: bool) -> Self {
        let description = format!("volume {name}");
        self.0.push(ListedExport { name: name.into(), description, size, read_only });
        self
    }
}

impl Exports for ExportList {
    fn find(&self, name: &str) -> Option<Export<'_>> {
        self.nth(self.position(name)?)
    }

    fn after(&self, name: Option<&str>) -> Option<Export<'_>> {
        match name {
            None => self.nth(0),
            Some(name) => self.nth(self.position(name)? + 1),
        }
    }

    fn origin(&self, export: u64, name: &str) -> Option<u64> {
        let of = self.nth(export as usize)?.name.split('@').next()?;
        let own = self.position(&format!("{of}@{name}"));
        own.or_else(|| self.position(name).filter(|_| name.contains('@'))).map(|at| at as u64)
    }

    fn origin_after(&self, export: u64, after: Option<&str>) -> Option<&str> {
        let of = self.nth(export as usize)?.name.split('@').next()?;
        let own = |name: &'_ str| name.strip_prefix(of)?.strip_prefix('@').map(str::len);
        let names = self.0.iter().filter_map(|export| {
            own(&export.name).map(|len| &export.name[export.name.len() - len..])
        });
        names.filter(|name| after.is_none_or(|after| *name > after)).min()
    }
}

impl ExportList {
    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|export| export.name == name)
    }

    fn nth(&self, index: usize) -> Option<Export<'_>> {
        self.0.get(index).map(|export| Export {
            handle: index as u64,
            name: &export.name,
            description: &export.description,
            size: export.size,
            read_only: export.read_only,
        })
    }
}
