//! Volume names: what may be one, and how one is written in a URI.

/// Longest volume name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a volume name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a volume name must have at least one character")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a volume name has at most 128 bytes; this one has {bytes}")]
    TooLong {
        /// Length given, in bytes.
        bytes: usize,
    },
    /// The first character is not a letter or digit.
    #[error("a volume name starts with a letter or digit, not with {found:?}")]
    BadStart {
        /// The character found.
        found: char,
    },
    /// `@`, which separates a volume from its snapshot.
    #[error("a volume name can't contain '@': VOLUME@SNAPSHOT names a snapshot")]
    Snapshot,
    /// A character outside the accepted set.
    #[error(
        "a volume name consists of letters, digits, '.', '_' and '-'; {found:?} is none of them"
    )]
    BadCharacter {
        /// The character found.
        found: char,
    },
}

/// Checks that `name` may be a volume name: 1 to 128 of `A-Z a-z 0-9 . _ -`, the first a letter
/// or digit. This keeps names usable unquoted in paths, URIs, labels and shells.
///
/// # Errors
/// [`NameError`], the first thing that is wrong.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    if name.contains('@') {
        return Err(NameError::Snapshot);
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::BadStart { found: first });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|&c| !allowed(c)) {
        Some(found) => Err(NameError::BadCharacter { found }),
        None => Ok(()),
    }
}

/// For clap: checks and returns `name`.
///
/// # Errors
/// As [`check_name`].
pub fn parse_name(name: &str) -> Result<String, NameError> {
    check_name(name)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names() {
        for name in ["a", "demo", "pvc-0b7e.1_x", "9lives", &"x".repeat(128)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(&"x".repeat(129)), Err(NameError::TooLong { bytes: 129 }));
        assert_eq!(check_name("a@b"), Err(NameError::Snapshot));
        assert_eq!(check_name(".a"), Err(NameError::BadStart { found: '.' }));
        assert_eq!(check_name("-a"), Err(NameError::BadStart { found: '-' }));
        assert_eq!(check_name("a/b"), Err(NameError::BadCharacter { found: '/' }));
        assert_eq!(check_name("a b"), Err(NameError::BadCharacter { found: ' ' }));
        assert_eq!(check_name("a\0"), Err(NameError::BadCharacter { found: '\0' }));
        assert_eq!(check_name("zürich"), Err(NameError::BadCharacter { found: 'ü' }));
    }
}
