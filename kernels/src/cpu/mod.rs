//! The plain form of every op, on the host.
