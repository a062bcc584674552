//! What travels on a link: frames of a fixed header and a body whose length the header's counts give.

mod greeting;
mod header;

pub(crate) use greeting::{Hello, MAX_GREETING};
pub(crate) use header::{HEADER, Header, Key, Kind, MOST_SHARED, Phase, WORK_BYTES};
