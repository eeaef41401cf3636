//! Micro-benchmarks and comparisons with other servers.
