//! The log-structured store, without any I/O of its own.
