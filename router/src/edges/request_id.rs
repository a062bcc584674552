//! The id that a request carries through every log line, process and answer.

use crate::Frontend;

/// Longer ids would bloat every log line.
const LONGEST: usize = 128;

/// `offered` if it may be used as it is: 1 to 128 letters, digits or `-_.:/@+=`. Nothing that could
/// break a log line or a header passes.
pub(super) fn acceptable(offered: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&b);
    (1..=LONGEST).contains(&offered.len()) && offered.bytes().all(allowed)
}

/// The id a client sent in `x-request-id`, or a new one. An unusable id is replaced and not refused:
/// it is often a proxy's, and no reason to fail the client's request. The answer names the id used.
pub(super) fn choose(offered: Option<&str>) -> String {
    match offered {
        Some(id) if acceptable(id) => id.to_owned(),
        _ => Frontend::new_request_id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_usable_ids_and_replaces_others() {
        assert_eq!(choose(Some("abc-1:2/3")), "abc-1:2/3");
        for bad in ["", "a b", "a\nb", "é", "\"x\"", "a,b", &"x".repeat(129)] {
            let id = choose(Some(bad));
            assert_ne!(id, bad);
            assert!(acceptable(&id));
        }
        assert_ne!(choose(None), choose(None));
    }
}
