//! JSON values that OpenAI lets take several forms.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::api::Prompt;

/// `stop`: one string or several.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Stop(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stop, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Stop;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stop, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = seq.next_element()? {
                    all.push(text);
                }
                Ok(Stop(all))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// `seed`: any 64-bit integer; OpenAI's may be negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seed(pub(super) u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seed, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Seed;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Seed, E> {
                Ok(Seed(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Seed, E> {
                Ok(Seed(value.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// A key of `logit_bias`: a token id, which JSON writes as a string there.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey(pub(super) u32);

impl<'de> Deserialize<'de> for TokenKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenKey, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = TokenKey;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a token id in quotes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TokenKey, E> {
                text.parse()
                    .map(TokenKey)
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Form)
    }
}

/// `prompt`: a string, an array of strings, one prompt's token ids, or an array of those.
#[derive(Debug, PartialEq)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

/// One element of a `prompt` array.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Element, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
                let id = u32::try_from(id)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &self))?;
                Ok(Element::Id(id))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prompts, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Prompts;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, an array of strings, an array of token ids or an array of arrays of token ids")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mixed = || {
                    de::Error::custom(
                        "a `prompt` array holds strings, token ids or arrays of them, and not a mixture",
                    )
                };
                match seq.next_element()? {
                    None => Err(de::Error::invalid_length(0, &self)),
                    Some(Element::Id(first)) => {
                        let mut ids = vec![first];
                        while let Some(element) = seq.next_element()? {
                            let Element::Id(id) = element else {
                                return Err(mixed());
                            };
                            ids.push(id);
                        }
                        Ok(Prompts(vec![Prompt::Tokens(ids)]))
                    }
                    Some(first) => {
                        let texts = matches!(first, Element::Text(_));
                        let mut prompts = Vec::new();
                        let mut next = Some(first);
                        while let Some(element) = next {
                            prompts.push(match element {
                                Element::Text(text) if texts => Prompt::Text(text),
                                Element::Ids(ids) if !texts => Prompt::Tokens(ids),
                                _ => return Err(mixed()),
                            });
                            next = seq.next_element()?;
                        }
                        Ok(Prompts(prompts))
                    }
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts() {
        let parse = |json: &str| serde_json::from_str::<Prompts>(json).map(|it| it.0);
        assert_eq!(parse(r#""hi""#).unwrap(), [Prompt::Text("hi".into())]);
        assert_eq!(
            parse(r#"["a","b"]"#).unwrap(),
            [Prompt::Text("a".into()), Prompt::Text("b".into())]
        );
        assert_eq!(parse("[1,2]").unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(
            parse("[[1],[2,3],[]]").unwrap(),
            [
                Prompt::Tokens(vec![1]),
                Prompt::Tokens(vec![2, 3]),
                Prompt::Tokens(vec![])
            ]
        );
        for bad in [
            "[]",
            "3",
            "null",
            "[1,\"a\"]",
            "[\"a\",[1]]",
            "[[1],2]",
            "[-1]",
            "[4294967296]",
            "[1.5]",
            "[[\"a\"]]",
            "[[[1]]]",
            "{}",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn stops_and_seeds() {
        let stop = |json: &str| serde_json::from_str::<Stop>(json).map(|it| it.0);
        assert_eq!(stop(r#""x""#).unwrap(), ["x"]);
        assert_eq!(stop(r#"["x","y"]"#).unwrap(), ["x", "y"]);
        assert!(stop("1").is_err() && stop("[1]").is_err());
        let seed = |json: &str| serde_json::from_str::<Seed>(json).map(|it| it.0);
        assert_eq!(seed("7").unwrap(), 7);
        assert_eq!(seed("-1").unwrap(), u64::MAX);
        assert_eq!(seed("18446744073709551615").unwrap(), u64::MAX);
        assert!(
            seed("1.5").is_err() && seed("\"1\"").is_err() && seed("18446744073709551616").is_err()
        );
    }
}
