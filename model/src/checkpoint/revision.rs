//! A name for a checkpoint's contents that is cheap to compute.

use super::shard::Shard;

/// Shards with up to this much data are hashed whole.
const WHOLE: usize = 64 << 20;
/// Places read in a larger shard, evenly spread.
const SAMPLES: usize = 32;
const SAMPLE_BYTES: usize = 4096;

/// Hexadecimal digits of a revision.
const DIGITS: usize = 16;

/// Hashes `config` (the bytes of config.json) and each shard's name, length, header and data; of
/// shards above 64 MiB only 32 pages of data, so that 700 GB take a few thousand page reads.
/// A retrained or requantised checkpoint changes every page; an edit of a few values in a large
/// shard may go unseen.
pub(super) fn revision<'a>(
    config: &[u8],
    shards: impl Iterator<Item = (&'a str, &'a Shard)>,
) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("millrace checkpoint revision v1");
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(config);
    for (name, shard) in shards {
        let bytes = shard.bytes();
        let (header, data) = bytes.split_at(shard.header.bytes);
        part(name.as_bytes());
        part(&(bytes.len() as u64).to_le_bytes());
        part(header);
        if data.len() <= WHOLE {
            part(data);
        } else {
            // The first and the last page are among them.
            let at = |i| shard.header.bytes + (data.len() - SAMPLE_BYTES) * i / (SAMPLES - 1);
            shard.scattered(|file| (0..SAMPLES).for_each(|i| part(&file[at(i)..][..SAMPLE_BYTES])));
        }
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(DIGITS);
    hex
}
