//! Histogram buckets, the same everywhere, so that panels can add up processes of all roles.

/// Seconds, 1 ms to 100 s, about three a decade: queueing, prefill, whole requests.
pub const SECONDS: [f64; 16] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];

/// Seconds, 10 us to 1 s: one engine step, one write to a peer, one streamed token.
pub const SHORT_SECONDS: [f64; 16] = [
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
    0.2, 0.5, 1.0,
];

/// Tokens, 1 to 16384 in powers of two: prompts, outputs, batches.
pub const TOKENS: [f64; 15] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];
