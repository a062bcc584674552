use super::super::model::test_model;
use super::*;
use crate::dispatch::First;

fn style() -> Style {
    Style {
        stop: Vec::new(),
        include_stop: false,
        keep_special_tokens: false,
        min_tokens: 0,
        logprobs: false,
        reasoning: None,
        hide_output: false,
        echo: String::new(),
    }
}

fn tokens(text: &str) -> Vec<u32> {
    test_model().tokenizer.encode(text, false).unwrap()
}

fn update(ids: &[u32], end: Option<End>) -> Update {
    let token = |&id: &u32| Token {
        id,
        logprob: Some(-(id as f32)),
        top: vec![Candidate {
            id: id + 1,
            logprob: -9.0,
        }],
    };
    Update {
        tokens: ids.iter().map(token).collect(),
        first: None,
        end,
    }
}

const LENGTH: Option<End> = Some(End {
    reason: FinishReason::Length,
    stop_token: None,
});

/// Feeds `ids` in pieces of `step`, joining the events up to the one with `finish`.
fn joined(style: Style, ids: &[u32], step: usize, end: Option<End>) -> Event {
    let mut choice = Choice::new(test_model(), style, 0, Arc::from([1, 2, 3]));
    let mut all = Event::default();
    let pieces = ids.chunks(step).count();
    for (at, piece) in ids.chunks(step).enumerate() {
        let event = choice.push(update(piece, end.filter(|_| at + 1 == pieces)));
        all.text.push_str(&event.text);
        all.reasoning.push_str(&event.reasoning);
        all.token_ids.extend(event.token_ids);
        all.logprobs.extend(event.logprobs);
        if event.finish.is_some() {
            all.finish = event.finish;
            break;
        }
    }
    all
}

#[test]
fn text_and_usage_add_up_however_tokens_come() {
    let text = "Grüße, 世界! 12 apples.";
    let ids = tokens(text);
    for step in 1..=ids.len() {
        let event = joined(style(), &ids, step, LENGTH);
        assert_eq!(event.text, text);
        assert_eq!(event.token_ids, ids);
        let finish = event.finish.unwrap();
        assert_eq!((finish.reason, finish.stop), (FinishReason::Length, None));
        assert_eq!(finish.usage.prompt_tokens, 3);
        assert_eq!(finish.usage.completion_tokens as usize, ids.len());
    }
}

#[test]
fn a_stop_string_cuts_text_tokens_and_logprobs_alike() {
    let ids = tokens("one two three four");
    let expected = joined(
        Style {
            stop: vec!["three".into()],
            ..style()
        },
        &ids,
        1,
        LENGTH,
    );
    assert_eq!(expected.text, "one two ");
    let finish = expected.finish.clone().unwrap();
    assert_eq!(finish.stop, Some(StopMatch::Text("three".into())));
    assert!(
        expected.token_ids.len() < ids.len(),
        "tokens after the match are not part of it"
    );
    assert_eq!(
        finish.usage.completion_tokens as usize,
        expected.token_ids.len()
    );
    for step in 1..=ids.len() {
        for include_stop in [false, true] {
            let style = Style {
                stop: vec!["three".into()],
                logprobs: true,
                include_stop,
                ..style()
            };
            let event = joined(style, &ids, step, LENGTH);
            assert_eq!(
                event.text,
                if include_stop {
                    "one two three"
                } else {
                    "one two "
                }
            );
            assert_eq!(event.token_ids, expected.token_ids);
            assert_eq!(event.logprobs.len(), event.token_ids.len());
            assert_eq!(event.finish, Some(finish.clone()));
        }
    }
}

#[test]
fn stop_strings_wait_for_min_tokens() {
    let ids = tokens("stop and stop");
    let early = ids.len() as u32 - 1;
    let style = Style {
        stop: vec!["stop".into()],
        min_tokens: early,
        ..style()
    };
    let event = joined(style, &ids, 1, LENGTH);
    assert!(event.text.starts_with("stop and"), "{}", event.text);
}

#[test]
fn the_token_that_ends_an_answer_has_no_text() {
    let mut ids = tokens("done");
    let comma = tokens(",")[0];
    ids.push(comma);
    let end = Some(End {
        reason: FinishReason::Stop,
        stop_token: Some(comma),
    });
    let event = joined(style(), &ids, 1, end);
    assert_eq!(event.text, "done");
    assert_eq!(event.token_ids, ids, "but it was generated");
    assert_eq!(event.finish.unwrap().stop, Some(StopMatch::Token(comma)));
    let event = joined(
        Style {
            include_stop: true,
            ..style()
        },
        &ids,
        1,
        end,
    );
    assert_eq!(event.text, "done,");
}

#[test]
fn reasoning_is_split_from_the_answer() {
    let ids = tokens("2 + 2 is 4\n</think>\n\nfour");
    for step in 1..=ids.len() {
        let event = joined(
            Style {
                reasoning: Some(true),
                ..style()
            },
            &ids,
            step,
            LENGTH,
        );
        assert_eq!(
            (event.reasoning.as_str(), event.text.as_str()),
            ("2 + 2 is 4", "four")
        );
    }
    let event = joined(
        Style {
            reasoning: Some(false),
            ..style()
        },
        &tokens("four"),
        1,
        LENGTH,
    );
    assert_eq!(
        (event.reasoning.as_str(), event.text.as_str()),
        ("", "four")
    );
}

#[test]
fn the_first_event_has_the_prompt_and_its_echo() {
    let echo = Style {
        echo: "1 2 3".into(),
        ..style()
    };
    let mut choice = Choice::new(test_model(), echo.clone(), 0, Arc::from([1, 2, 3]));
    let scored = |logprob| PromptToken {
        logprob,
        top: Vec::new(),
    };
    let first = First {
        cached_tokens: 2,
        prompt: vec![scored(None), scored(Some(-1.0)), scored(Some(-2.0))],
        timing: None,
    };
    let event = choice.push(Update {
        first: Some(first),
        ..Update::default()
    });
    assert_eq!(event.text, "1 2 3");
    let prompt = event.prompt.unwrap();
    assert_eq!(prompt.token_ids, [1, 2, 3]);
    assert_eq!(prompt.logprobs[0], None);
    assert_eq!(prompt.logprobs[2].as_ref().unwrap().chosen.logprob, -2.0);
    let event = choice.push(update(&tokens("x"), LENGTH));
    assert_eq!((event.text.as_str(), event.prompt), ("x", None));
    assert_eq!(event.finish.unwrap().usage.cached_tokens, 2);
}

#[test]
fn a_scored_prompt_has_no_output() {
    let hide = Style {
        hide_output: true,
        echo: "p".into(),
        ..style()
    };
    let event = joined(hide, &tokens("x")[..1], 1, LENGTH);
    assert_eq!((event.text.as_str(), event.token_ids.len()), ("p", 0));
    let finish = event.finish.unwrap();
    assert_eq!(
        (finish.reason, finish.usage.completion_tokens),
        (FinishReason::Length, 0)
    );
}

#[test]
fn logprobs_name_the_bytes_of_their_tokens() {
    let ids = tokens("世");
    let event = joined(
        Style {
            logprobs: true,
            ..style()
        },
        &ids,
        1,
        LENGTH,
    );
    let bytes: Vec<u8> = event
        .logprobs
        .iter()
        .flat_map(|l| l.chosen.bytes.clone())
        .collect();
    assert_eq!(bytes, "世".as_bytes());
    assert_eq!(event.logprobs[0].top.len(), 1);
}
