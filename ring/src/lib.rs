//! The reactor: io_uring, registered buffers, devices, sockets, timers.
