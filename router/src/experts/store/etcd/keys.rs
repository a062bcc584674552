//! The names of keys.

use super::super::Kind;

pub struct Keys {
    prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Store,
    Leader,
    Record(String, Kind),
}

impl Keys {
    /// `prefix` without a slash at its end.
    pub fn new(prefix: &str) -> Keys {
        Keys {
            prefix: prefix.to_owned(),
        }
    }

    /// All keys begin with this, and no other deployment's do.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    pub fn store(&self) -> String {
        format!("{}/store", self.prefix)
    }

    pub fn leader(&self) -> String {
        format!("{}/balancer", self.prefix)
    }

    pub fn epoch(&self, group: &str) -> String {
        format!("{}/groups/{group}/epoch", self.prefix)
    }

    pub fn plan(&self, group: &str) -> String {
        format!("{}/groups/{group}/plan", self.prefix)
    }

    /// `None`: not one of ours.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let key = std::str::from_utf8(key).ok()?;
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        match rest {
            "store" => Some(Key::Store),
            "balancer" => Some(Key::Leader),
            _ => {
                // A group's name may have slashes in it.
                let (group, kind) = rest.strip_prefix("groups/")?.rsplit_once('/')?;
                let kind = match kind {
                    "epoch" => Kind::Epoch,
                    "plan" => Kind::Plan,
                    _ => return None,
                };
                Some(Key::Record(group.to_owned(), kind))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_named_is_recognised() {
        let keys = Keys::new("/m");
        let parse = |key: String| keys.parse(key.as_bytes());
        assert_eq!(parse(keys.store()), Some(Key::Store));
        assert_eq!(parse(keys.leader()), Some(Key::Leader));
        let record = |kind| Some(Key::Record("a/b".into(), kind));
        assert_eq!(parse(keys.epoch("a/b")), record(Kind::Epoch));
        assert_eq!(parse(keys.plan("a/b")), record(Kind::Plan));
        for foreign in [
            "/m",
            "/m/other",
            "/m2/store",
            "/m/groups/a/b",
            "/m/groups/epoch",
        ] {
            assert_eq!(parse(foreign.into()), None, "{foreign}");
        }
    }
}
