//! NBD handshake and transmission: bytes in, effects out.
