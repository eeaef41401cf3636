//! Simulated disk and clock, scenarios by seed, planted bugs.
