//! The flagstone library and binary: daemon, command line, control API.
