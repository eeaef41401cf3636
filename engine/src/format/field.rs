//! A table of fields per structure, for documentation tests and `pool inspect`.

/// One field of an on-disk structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Byte offset from the start of the structure.
    pub offset: usize,
    /// Length in bytes.
    pub size: usize,
    /// Name as in `docs/formats`.
    pub name: &'static str,
}

/// A named structure and its fields in order.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Name as in `docs/formats`.
    pub name: &'static str,
    /// Fields by offset; gaps are reserved and zero.
    pub fields: &'static [Field],
}

/// The rows of the byte table below the heading `title` of a document of `docs/formats`: offset, size and
/// name of each field. For tests that compare them with a [`Layout`]; nothing without such a heading.
#[must_use]
pub fn documented<'a>(document: &'a str, title: &str) -> Vec<(usize, usize, &'a str)> {
    let mut sections = document.split("\n## ");
    let Some(section) = sections.find(|section| section.lines().next() == Some(title)) else {
        return Vec::new();
    };
    let row = |line: &'a str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        Some((cells.next()?.parse().ok()?, cells.next()?.parse().ok()?, cells.next()?))
    };
    section.lines().filter_map(row).collect()
}

/// Declares the offsets of a structure once: as constants for the code and as a table.
#[macro_export]
macro_rules! layout {
    ($(#[$doc:meta])* $table:ident, $title:literal { $($name:ident : $offset:literal, $size:literal;)* }) => {
        #[allow(dead_code)]
        pub(crate) mod at {
            $(pub(crate) const $name: usize = $offset;)*
        }
        $(#[$doc])*
        pub const $table: $crate::format::field::Layout = $crate::format::field::Layout {
            name: $title,
            fields: &[$($crate::format::field::Field {
                offset: $offset, size: $size, name: stringify!($name),
            },)*],
        };
        const _: () = {
            let mut end = 0;
            $(assert!($offset >= end, "fields overlap"); end = $offset + $size;)*
            assert!(end <= flagstone_block::BLOCK_SIZE);
        };
    };
}
pub(crate) use layout;
