//! Stop strings in text that comes in pieces.
//!
//! Reading character by character, the first moment at which the text ends with a stop string ends
//! the sequence; if it ends with several, the longest counts. However the text is cut into pieces,
//! the outcome is the same, so it does not depend on how many tokens a worker sends at once.

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// Text that can be shown: nothing in it is part of a stop string. The rest is held back.
    Clear(String),
    /// The text before the stop string, and which one it was. The matcher is done.
    Matched { before: String, stop: String },
}

/// Looks for stop strings. Holds back only what may turn out to be the beginning of one.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// None of them empty.
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub fn new(stops: Vec<String>) -> StopMatcher {
        StopMatcher {
            stops,
            held: String::new(),
        }
    }

    pub fn push(&mut self, text: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Clear(text.to_owned());
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            let stop = stop.to_owned();
            self.held.truncate(start);
            return Scan::Matched {
                before: std::mem::take(&mut self.held),
                stop,
            };
        }
        let clear = self.held.len() - self.undecided();
        let rest = self.held.split_off(clear);
        Scan::Clear(std::mem::replace(&mut self.held, rest))
    }

    /// The text has ended: what was held back is no stop string after all.
    pub fn finish(self) -> String {
        self.held
    }

    /// The match that ends first, and of those the one that starts first.
    fn first_match(&self) -> Option<(usize, &str)> {
        let matches = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        let first = matches.min_by_key(|&(start, stop)| (start + stop.len(), start));
        first.map(|(start, stop)| (start, stop.as_str()))
    }

    /// Length of the longest end of the text that begins a stop string.
    fn undecided(&self) -> usize {
        let longest_of = |stop: &String| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most)
                .rev()
                .find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n]))
        };
        self.stops.iter().filter_map(longest_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(stops: &[String], pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut shown = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Scan::Clear(text) => shown.push_str(&text),
                Scan::Matched { before, stop } => return (shown + &before, Some(stop)),
            }
        }
        (shown + &matcher.finish(), None)
    }

    /// The definition, word for word.
    fn plainly(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = stops
                .iter()
                .filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["\n\nHuman:".into(), "END".into()]);
        assert_eq!(matcher.push("Hello"), Scan::Clear("Hello".into()));
        assert_eq!(matcher.push(" there.\n"), Scan::Clear(" there.".into()));
        assert_eq!(matcher.push("E"), Scan::Clear("\n".into()));
        assert_eq!(matcher.push("N"), Scan::Clear("".into()));
        assert_eq!(
            matcher.push("Dx"),
            Scan::Matched {
                before: "".into(),
                stop: "END".into()
            }
        );
    }

    #[test]
    fn characters_stay_whole() {
        let mut matcher = StopMatcher::new(vec!["é!".into()]);
        // `è` and `é` share their first byte, and only whole characters come out.
        assert_eq!(matcher.push("è"), Scan::Clear("è".into()));
        assert_eq!(matcher.push("é"), Scan::Clear("".into()));
        assert_eq!(matcher.push("?"), Scan::Clear("é?".into()));
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_reading_by_characters_gives(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,5}", 0..8),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(scan(&stops, &pieces), plainly(&stops, &pieces.concat()));
        }
    }
}
