//! Every bound of a session, and what a client meets when it reaches one.

/// Longest string of the protocol: an export name, a query. NBD proto, "Conventions".
pub const MAX_STRING_BYTES: usize = 4096;

/// Longest option data that is read as a whole. Longer data of a known option is skipped and
/// answered with `NBD_REP_ERR_TOO_BIG`.
pub const MAX_OPTION_BYTES: usize = 16 << 10;

/// Longest option data that is skipped; beyond it the connection is closed.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = 1 << 20;

/// Options that one handshake may send; one more closes the connection. Programs that list a server send a few
/// for each export.
pub const MAX_OPTIONS: u32 = 1 << 20;

/// Queries that one `NBD_OPT_{LIST,SET}_META_CONTEXT` may hold; more are answered with
/// `NBD_REP_ERR_TOO_BIG`.
pub const MAX_META_QUERIES: u32 = 64;

/// Contexts that tell what differs from a snapshot, of one connection; further ones are not selected.
pub const MAX_DIFFERENCES: usize = 7;

/// Longest name of a snapshot in the name of such a context.
pub const MAX_ORIGIN_BYTES: usize = 255;

/// Longest description that is sent of an export, in bytes; longer ones are cut.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;

/// Longest READ and WRITE, and the maximum payload that is advertised. NBD proto, "Block size
/// constraints": nothing up to this may be taken for an attack.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// Longest WRITE payload that is skipped when the request was refused; beyond it the connection
/// is closed.
pub const MAX_SKIPPED_PAYLOAD_BYTES: u32 = 64 << 20;

/// Longest READ with the "don't fragment" flag; a longer one gets `NBD_EOVERFLOW`.
/// NBD proto, "Request types": at least 65,536.
pub const MAX_UNFRAGMENTED_BYTES: u32 = 124 << 10;

/// Smallest addressable unit that is advertised, in bytes.
pub const MIN_BLOCK_BYTES: u32 = 1;

/// Received bytes that a caller must be able to hold: with this many a session always makes
/// progress.
pub const MAX_INPUT_BYTES: usize = 16 + MAX_OPTION_BYTES;

/// Room that [`crate::Session::receive`] wants in its reply buffer during the handshake. Enough
/// for the longest reply to one option, or for one entry of a list.
pub const HANDSHAKE_REPLY_BYTES: usize = 12 << 10;

const _: () = {
    assert!(MAX_UNFRAGMENTED_BYTES >= 65_536);
    assert!(MAX_SKIPPED_PAYLOAD_BYTES >= MAX_PAYLOAD_BYTES);
    assert!(MAX_OPTION_BYTES >= 2 * (4 + MAX_STRING_BYTES) + 4);
    // As many contexts as can be selected, and an acknowledgement.
    assert!(HANDSHAKE_REPLY_BYTES >= (MAX_DIFFERENCES + 1) * (20 + 4 + 32 + MAX_ORIGIN_BYTES) + 20);
    // Export, name, description, block size and acknowledgement, each behind a 20-byte header.
    assert!(
        HANDSHAKE_REPLY_BYTES
            >= 5 * 20 + 12 + 2 + MAX_STRING_BYTES + 2 + MAX_DESCRIPTION_BYTES + 14
    );
};
