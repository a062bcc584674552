//! Answers what is wanted of rows of logits, on the device that has them.

use millrace_kernels::{Backend, Draw, Edits, LogProbs, Scored};

/// What is wanted of a row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Want<'a> {
    /// Before a token is chosen.
    pub edits: Option<Edits<'a>>,
    pub token: Token,
    /// The token's log-prob, and those of so many others, in the row as it was.
    pub log_probs: Option<usize>,
}

/// Which token of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token {
    /// This one, whatever its logit.
    Given(u32),
    /// The one with the largest logit.
    Best,
    Drawn(Draw),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub token: Result<u32, NotFinite>,
    /// Where they were wanted of a token that there is.
    pub log_probs: Option<LogProbs>,
}

/// A logit was NaN, or no token can be chosen at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub struct NotFinite;

impl Want<'_> {
    /// Most [`rows`](Self::rows) that one needs.
    pub const MOST_ROWS: usize = 2;

    /// The token with the largest logit and nothing else.
    pub fn best() -> Want<'static> {
        Want {
            edits: None,
            token: Token::Best,
            log_probs: None,
        }
    }

    /// How often the row is needed: what is edited is lost to log-probs.
    pub fn rows(&self) -> usize {
        match (&self.edits, self.log_probs) {
            (Some(_), Some(_)) => Want::MOST_ROWS,
            _ => 1,
        }
    }
}

/// Answers `wants` in order. `logits` has as many equal rows for each as it [needs](Want::rows), one after another.
pub fn answer<'a, B: Backend>(
    backend: &B,
    logits: &mut B::Tensor,
    wants: impl Iterator<Item = &'a Want<'a>>,
) -> Vec<Answer> {
    let mut next = 0;
    let placed: Vec<(usize, &Want<'_>)> = wants
        .map(|want| {
            next += want.rows();
            (next - want.rows(), want)
        })
        .collect();
    assert_eq!(backend.rows(logits), next, "a row for each");

    let edit = |(row, want): &(usize, &'a Want<'a>)| Some((*row, want.edits.as_ref()?));
    let edits: Vec<(usize, &Edits<'_>)> = placed.iter().filter_map(edit).collect();
    backend.edit(logits, &edits);

    let draw = |(row, want): &(usize, &Want<'_>)| match want.token {
        Token::Drawn(draw) => Some((*row, draw)),
        _ => None,
    };
    let draws: Vec<(usize, Draw)> = placed.iter().filter_map(draw).collect();
    let (mut drawn, mut best) = (Vec::new(), Vec::new());
    backend.draw(logits, &draws, &mut drawn);
    if placed.iter().any(|(_, want)| want.token == Token::Best) {
        backend.arg_max(logits, &mut best);
    }

    let finite = |(token, largest): (u32, f32)| largest.is_finite().then_some(token);
    let mut drawn = drawn.into_iter();
    let mut scored = Vec::new();
    let mut answers = Vec::with_capacity(placed.len());
    for (row, want) in &placed {
        let token = match want.token {
            Token::Given(token) => Some(token),
            Token::Best => finite(best[*row]),
            Token::Drawn(_) => finite(drawn.next().expect("one for each draw")),
        };
        if let (Some(token), Some(count)) = (token, want.log_probs) {
            // The last of its rows, which is not edited.
            let row = row + want.rows() - 1;
            scored.push(Scored { row, token, count });
        }
        answers.push(Answer {
            token: token.ok_or(NotFinite),
            log_probs: None,
        });
    }

    let mut log_probs = Vec::with_capacity(scored.len());
    backend.log_probs(logits, &scored, &mut log_probs);
    let wanted = answers.iter_mut().zip(&placed);
    let wanted =
        wanted.filter(|(answer, (_, want))| answer.token.is_ok() && want.log_probs.is_some());
    for ((answer, _), log_probs) in wanted.zip(log_probs) {
        answer.log_probs = Some(log_probs);
    }
    answers
}
