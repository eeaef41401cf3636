//! Names of volumes and snapshots: what may be one.

/// Longest name of a volume, and of a snapshot without its volume's, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest name of a snapshot with its volume's and the `@` in between, in bytes.
pub const FULL_NAME_BYTES_MAX: usize = flagstone_engine::limits::NAME_BYTES;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name must have at least one character")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most 128 bytes; this one has {bytes}")]
    TooLong {
        /// Length given, in bytes.
        bytes: usize,
    },
    /// The first character is not a letter or digit.
    #[error("a name starts with a letter or digit, not with {found:?}")]
    BadStart {
        /// The character found.
        found: char,
    },
    /// `@`, which separates a volume from its snapshot.
    #[error("a name can't contain '@': VOLUME@SNAPSHOT names a snapshot")]
    Snapshot,
    /// A character outside the accepted set.
    #[error("a name consists of letters, digits, '.', '_' and '-'; {found:?} is none of them")]
    BadCharacter {
        /// The character found.
        found: char,
    },
}

/// Checks that `name` may be the name of a volume, or of a snapshot without its volume's: 1 to 128 of
/// `A-Z a-z 0-9 . _ -`, the first a letter or digit. This keeps names usable unquoted in paths, URIs, labels and shells.
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

/// Why the name of a snapshot was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotNameError {
    /// There is no `@`.
    #[error("a snapshot is named as VOLUME@SNAPSHOT; there is no '@'")]
    NoVolume,
    /// What stands before the `@`.
    #[error("before the '@': {0}")]
    Volume(NameError),
    /// What stands behind the `@`.
    #[error("behind the '@': {0}")]
    Snapshot(NameError),
    /// Longer than [`FULL_NAME_BYTES_MAX`] in all.
    #[error("VOLUME@SNAPSHOT has at most {FULL_NAME_BYTES_MAX} bytes in all; this one has {bytes}")]
    TooLong {
        /// Length given, in bytes.
        bytes: usize,
    },
}

/// Takes `VOLUME@SNAPSHOT` apart, two names as [`check_name`] allows them.
///
/// # Errors
/// [`SnapshotNameError`], the first thing that is wrong.
pub fn split_snapshot_name(name: &str) -> Result<(&str, &str), SnapshotNameError> {
    let (volume, snapshot) = name.split_once('@').ok_or(SnapshotNameError::NoVolume)?;
    check_name(volume).map_err(SnapshotNameError::Volume)?;
    check_name(snapshot).map_err(SnapshotNameError::Snapshot)?;
    if name.len() > FULL_NAME_BYTES_MAX {
        return Err(SnapshotNameError::TooLong { bytes: name.len() });
    }
    Ok((volume, snapshot))
}

/// For clap: checks and returns `VOLUME@SNAPSHOT`.
///
/// # Errors
/// As [`split_snapshot_name`].
pub fn parse_snapshot_name(name: &str) -> Result<String, SnapshotNameError> {
    split_snapshot_name(name)?;
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
    fn a_snapshot_is_named_with_its_volume() {
        assert_eq!(split_snapshot_name("vm-1@2026.1"), Ok(("vm-1", "2026.1")));
        assert_eq!(split_snapshot_name("vm"), Err(SnapshotNameError::NoVolume));
        assert_eq!(split_snapshot_name("@a"), Err(SnapshotNameError::Volume(NameError::Empty)));
        assert_eq!(split_snapshot_name("a@"), Err(SnapshotNameError::Snapshot(NameError::Empty)));
        let twice = Err(SnapshotNameError::Snapshot(NameError::Snapshot));
        assert_eq!(split_snapshot_name("a@b@c"), twice);
        let long = format!("{}@{}", "x".repeat(64), "y".repeat(FULL_NAME_BYTES_MAX - 64));
        let bytes = FULL_NAME_BYTES_MAX + 1;
        assert_eq!(split_snapshot_name(&long), Err(SnapshotNameError::TooLong { bytes }));
        assert!(split_snapshot_name(&long[1..]).is_ok());
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
