//! The tokens before one that is chosen.

use millrace_kernels::Seen;

/// As penalties see them. Kept only for requests that have penalties.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Ordered by token.
    seen: Vec<Seen>,
}

impl History {
    pub fn new(prompt: &[u32], output: &[u32]) -> History {
        let mut prompt = prompt.to_vec();
        prompt.sort_unstable();
        prompt.dedup();
        let seen = |token| Seen { token, count: 0 };
        let mut history = History {
            seen: prompt.into_iter().map(seen).collect(),
        };
        for &token in output {
            history.push(token);
        }
        history
    }

    /// Notes a generated token.
    pub fn push(&mut self, token: u32) {
        match self.seen.binary_search_by_key(&token, |seen| seen.token) {
            Ok(at) => self.seen[at].count += 1,
            Err(at) => self.seen.insert(at, Seen { token, count: 1 }),
        }
    }

    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// What they were if `token` came after them.
    pub fn seen_with(&self, token: u32) -> Vec<Seen> {
        let mut history = self.clone();
        history.push(token);
        history.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_there_once() {
        let mut history = History::new(&[5, 2, 5, 9], &[9, 1, 9]);
        let seen = |history: &History| -> Vec<(u32, u32)> {
            let seen = history.seen().iter();
            seen.map(|seen| (seen.token, seen.count)).collect()
        };
        assert_eq!(seen(&history), [(1, 1), (2, 0), (5, 0), (9, 2)]);
        let with = history.seen_with(2);
        history.push(2);
        assert_eq!(seen(&history), [(1, 1), (2, 1), (5, 0), (9, 2)]);
        assert_eq!(with, history.seen());
    }
}
