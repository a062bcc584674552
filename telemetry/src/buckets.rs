//! Histogram buckets, the same everywhere, so that panels can add up processes of all roles.
//!
//! A quantile is read off by assuming that a bucket's observations are spread evenly in it, so buckets
//! are narrow where objectives lie: from 200 ms to 5 s for a first token, from 3 ms to 100 ms for the
//! gap between two. `tests/buckets` says how far off quantiles are. Numbers that people choose as
//! objectives are bounds, where the share of requests that keep one is exact.

/// Seconds, 1 ms to 100 s: queueing, prefill, first tokens, whole requests.
pub const SECONDS: [f64; 33] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6,
    0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0,
];

/// Seconds, 10 us to 5 s: one engine step, what a transfer adds, one streamed token.
pub const SHORT_SECONDS: [f64; 31] = [
    0.00001, 0.00003, 0.0001, 0.0003, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006,
    0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2,
    0.3, 0.5, 1.0, 5.0,
];

/// Tokens, 1 to 131072 in powers of two: prompts, outputs, batches.
pub const TOKENS: [f64; 18] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0, 65536.0, 131072.0,
];
