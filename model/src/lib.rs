//! What a checkpoint is: its configuration, weights, tokenizer and chat template.
//!
//! Nothing here computes a forward pass or knows a device. The router uses the text half
//! ([`tokenizer`], [`chat`]), the workers the numeric half ([`config`], [`checkpoint`]), and both
//! [`blocks`], which names a prefix of tokens the same way everywhere.

pub mod blocks;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod files;
pub mod fp8;
pub mod matrix;
pub mod reasoning;
pub mod rope;
pub mod text;
pub mod tokenizer;
