//! Splitting generated text into reasoning and answer at `<think>` and `</think>`.
//!
//! DeepSeek-R1 and its distills write `reasoning\n</think>\n\nanswer`, usually after a prompt that
//! already ends with `<think>\n`. As DeepSeek's own API does, and unlike a bare split at the tags,
//! the blank lines around the tags belong to neither part.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// New text of each part; either may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    pub reasoning: String,
    pub content: String,
}

/// Splits one sequence's text as it comes. However the text is cut into pieces, the parts joined
/// are the same.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    state: State,
    /// Text not yet decided: the beginning of a tag, or white space that may precede one.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before any text: is there an opening tag? `inside`: it is not needed.
    Start {
        inside: bool,
    },
    /// After the opening tag, before other text.
    ReasoningStart,
    Reasoning,
    /// After the closing tag, before other text.
    ContentStart,
    Content,
}

impl ReasoningSplitter {
    /// `starts_inside`: the prompt ended with an opened `<think>`. A further `<think>` at the
    /// very start is dropped then (some models repeat it). Otherwise text is reasoning only if it
    /// begins with `<think>`: tags later on are part of the answer, which may well talk about them.
    pub fn new(starts_inside: bool) -> ReasoningSplitter {
        ReasoningSplitter {
            state: State::Start {
                inside: starts_inside,
            },
            held: String::new(),
        }
    }

    /// Whether a prompt leaves generation inside a thinking block: its last tag is an opening one
    /// with nothing but white space after it.
    pub fn starts_inside(prompt: &str) -> bool {
        prompt.trim_end().ends_with(OPEN)
    }

    /// Whether what comes next is (still) reasoning.
    pub fn in_reasoning(&self) -> bool {
        matches!(
            self.state,
            State::Start { inside: true } | State::ReasoningStart | State::Reasoning
        )
    }

    /// Takes the next piece of text and returns what is decided by now.
    pub fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        let mut split = Split::default();
        while self.step(&mut split) {}
        split
    }

    /// The text has ended: returns what was held back in case a tag followed.
    pub fn finish(self) -> Split {
        let mut split = Split::default();
        match self.state {
            // White space that would have been dropped before more text is dropped at the end too.
            State::Start { inside: true } | State::ReasoningStart => {
                split.reasoning = self.held.trim_start().to_string()
            }
            State::Reasoning => split.reasoning = self.held,
            State::Start { inside: false } | State::Content => split.content = self.held,
            State::ContentStart => {}
        }
        split
    }

    /// Decides as much as it can in the current state; whether the state changed.
    fn step(&mut self, split: &mut Split) -> bool {
        match self.state {
            State::Start { inside } => self.start(inside, split),
            State::ReasoningStart => {
                self.drop_leading_space();
                let started = !self.held.is_empty();
                if started {
                    self.state = State::Reasoning;
                }
                started
            }
            State::Reasoning => self.reasoning(split),
            State::ContentStart => {
                self.drop_leading_space();
                let started = !self.held.is_empty();
                if started {
                    self.state = State::Content;
                }
                started
            }
            State::Content => {
                split.content.push_str(&self.held);
                self.held.clear();
                false
            }
        }
    }

    fn start(&mut self, inside: bool, split: &mut Split) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(OPEN) {
            self.held = rest.to_string();
            self.state = State::ReasoningStart;
            return true;
        }
        if OPEN.starts_with(text) {
            return false; // Empty, or perhaps the beginning of a tag.
        }
        if inside {
            self.state = State::ReasoningStart;
        } else {
            split.content.push_str(&self.held);
            self.held.clear();
            self.state = State::Content;
        }
        true
    }

    fn reasoning(&mut self, split: &mut Split) -> bool {
        if let Some(at) = self.held.find(CLOSE) {
            split.reasoning.push_str(self.held[..at].trim_end());
            self.held.drain(..at + CLOSE.len());
            self.state = State::ContentStart;
            return true;
        }
        // Hold back what may turn out to be the tag's beginning, and the space before it.
        let tag = (1..CLOSE.len())
            .rev()
            .find(|&n| self.held.ends_with(&CLOSE[..n]))
            .unwrap_or(0);
        let decided = self.held[..self.held.len() - tag].trim_end().len();
        split.reasoning.extend(self.held.drain(..decided));
        false
    }

    fn drop_leading_space(&mut self) {
        let space = self.held.len() - self.held.trim_start().len();
        self.held.drain(..space);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split<'a>(inside: bool, pieces: impl IntoIterator<Item = &'a str>) -> Split {
        let mut splitter = ReasoningSplitter::new(inside);
        let mut all = Split::default();
        let mut add = |s: Split| {
            all.reasoning.push_str(&s.reasoning);
            all.content.push_str(&s.content);
        };
        for piece in pieces {
            add(splitter.push(piece));
        }
        add(splitter.finish());
        all
    }

    fn parts(reasoning: &str, content: &str) -> Split {
        Split {
            reasoning: reasoning.to_string(),
            content: content.to_string(),
        }
    }

    #[test]
    fn r1s_form_is_split_without_the_blank_lines() {
        assert_eq!(
            split(true, ["a < b\nso\n</think>\n\n42"]),
            parts("a < b\nso", "42")
        );
        assert_eq!(
            split(true, ["<think>\nagain\n</think>\n\n42"]),
            parts("again", "42")
        );
        assert_eq!(
            split(false, ["<think>\nx\n</think>\n\n42\n"]),
            parts("x", "42\n")
        );
        assert_eq!(split(true, ["\n</think>\n\n42"]), parts("", "42"));
    }

    #[test]
    fn without_an_opening_tag_all_is_content() {
        assert_eq!(
            split(false, [" The tag <think> opens, </think> closes."]).content,
            " The tag <think> opens, </think> closes."
        );
        assert_eq!(split(false, ["  "]), parts("", "  "));
        assert_eq!(split(false, ["<thi"]), parts("", "<thi"));
    }

    #[test]
    fn only_the_first_closing_tag_counts() {
        assert_eq!(
            split(true, ["x</think>a</think><think>b"]),
            parts("x", "a</think><think>b")
        );
    }

    #[test]
    fn what_is_cut_off_is_not_lost() {
        assert_eq!(
            split(true, ["still thinking </thi"]),
            parts("still thinking </thi", "")
        );
        assert_eq!(
            split(true, ["still thinking\n"]),
            parts("still thinking\n", "")
        );
        assert_eq!(split(true, ["done</think>\n"]), parts("done", ""));
    }

    #[test]
    fn text_is_shown_as_soon_as_it_is_decided() {
        let mut splitter = ReasoningSplitter::new(true);
        assert_eq!(splitter.push("first "), parts("first", ""));
        assert_eq!(splitter.push("second <"), parts(" second", ""));
        assert_eq!(splitter.push("b> </"), parts(" <b>", ""));
        assert!(splitter.in_reasoning());
        assert_eq!(splitter.push("think>\n"), parts("", ""));
        assert!(!splitter.in_reasoning());
        assert_eq!(splitter.push("\nyes "), parts("", "yes "));
    }

    #[test]
    fn a_prompt_shows_where_generation_starts() {
        assert!(ReasoningSplitter::starts_inside("<｜Assistant｜><think>\n"));
        assert!(ReasoningSplitter::starts_inside("<think>"));
        assert!(!ReasoningSplitter::starts_inside("<think>\n</think>\n\n"));
        assert!(!ReasoningSplitter::starts_inside("<｜Assistant｜>"));
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("<"), Just("</"), Just("think>"), Just("\n"), Just(" "),
                    Just("word"), Just("é"), Just("\u{a0}"), Just("<th"), Just("\n\n"),
                ],
                0..12,
            ),
            cuts in proptest::collection::vec(0usize..64, 0..10),
            inside in any::<bool>(),
        ) {
            let text = words.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| text.is_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| &text[w[0]..w[1]]);
            let whole = split(inside, [text.as_str()]);
            prop_assert_eq!(split(inside, pieces), whole.clone());
            prop_assert_eq!(split(inside, text.split_inclusive(|_| true)), whole);
        }
    }
}
