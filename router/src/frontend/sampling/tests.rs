use super::super::model::test_model;
use super::*;

fn resolved(request: SamplingRequest) -> Result<Resolved, RequestError> {
    resolve(&request, &test_model(), 8, false, || 42)
}

/// The field to blame and the message.
fn refusal(request: SamplingRequest) -> (&'static str, String) {
    match resolved(request) {
        Err(RequestError::Invalid {
            param: Some(field),
            message,
        }) => (field, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_client_comes_before_the_checkpoint_and_that_before_vllm() {
    let defaults = resolved(SamplingRequest::default()).unwrap().sampling;
    // tiny-r1's generation_config.json says 0.6 and 0.95, and nothing of the others.
    assert_eq!((defaults.temperature, defaults.top_p), (0.6, 0.95));
    assert_eq!(
        (defaults.top_k, defaults.min_p, defaults.repetition_penalty),
        (0, 0.0, 1.0)
    );
    assert_eq!(defaults.seed, 42);
    let request = SamplingRequest {
        temperature: Some(0.0),
        top_p: Some(1.0),
        top_k: Some(-1),
        seed: Some(7),
        ..SamplingRequest::default()
    };
    let asked = resolved(request).unwrap().sampling;
    assert_eq!(
        (asked.temperature, asked.top_p, asked.top_k, asked.seed),
        (0.0, 1.0, 0, 7)
    );
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let base = SamplingRequest::default;
    let wrong = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5];
    for value in wrong {
        let cases = [
            (
                "temperature",
                SamplingRequest {
                    temperature: Some(value),
                    ..base()
                },
            ),
            (
                "top_p",
                SamplingRequest {
                    top_p: Some(value),
                    ..base()
                },
            ),
            (
                "min_p",
                SamplingRequest {
                    min_p: Some(value),
                    ..base()
                },
            ),
            (
                "repetition_penalty",
                SamplingRequest {
                    repetition_penalty: Some(value),
                    ..base()
                },
            ),
            (
                "frequency_penalty",
                SamplingRequest {
                    frequency_penalty: Some(4.0 * value),
                    ..base()
                },
            ),
            (
                "presence_penalty",
                SamplingRequest {
                    presence_penalty: Some(4.0 * value + 0.0),
                    ..base()
                },
            ),
            (
                "logit_bias",
                SamplingRequest {
                    logit_bias: [(1, 400.0 * value)].into(),
                    ..base()
                },
            ),
        ];
        for (field, request) in cases {
            // -0.5 times four is -2, which penalties allow.
            if value == -0.5 && field.ends_with("penalty") && field != "repetition_penalty" {
                assert!(resolved(request).is_ok());
                continue;
            }
            assert_eq!(refusal(request).0, field, "{value}");
        }
    }
    let cases = [
        (
            "top_p",
            SamplingRequest {
                top_p: Some(0.0),
                ..base()
            },
        ),
        (
            "top_k",
            SamplingRequest {
                top_k: Some(-2),
                ..base()
            },
        ),
        (
            "repetition_penalty",
            SamplingRequest {
                repetition_penalty: Some(0.0),
                ..base()
            },
        ),
        (
            "n",
            SamplingRequest {
                n: Some(0),
                ..base()
            },
        ),
        (
            "n",
            SamplingRequest {
                n: Some(9),
                ..base()
            },
        ),
        (
            "logprobs",
            SamplingRequest {
                logprobs: Some(21),
                ..base()
            },
        ),
        (
            "prompt_logprobs",
            SamplingRequest {
                prompt_logprobs: Some(21),
                ..base()
            },
        ),
        (
            "logit_bias",
            SamplingRequest {
                logit_bias: [(2048, 0.0)].into(),
                ..base()
            },
        ),
        (
            "stop_token_ids",
            SamplingRequest {
                stop_token_ids: vec![2048],
                ..base()
            },
        ),
        (
            "stop",
            SamplingRequest {
                stop: vec![String::new()],
                ..base()
            },
        ),
        (
            "stop",
            SamplingRequest {
                stop: vec!["x".into(); 17],
                ..base()
            },
        ),
        (
            "stop",
            SamplingRequest {
                stop: vec!["x".repeat(1025)],
                ..base()
            },
        ),
        (
            "max_tokens",
            SamplingRequest {
                max_tokens: Some(0),
                ..base()
            },
        ),
        (
            "min_tokens",
            SamplingRequest {
                min_tokens: Some(5),
                max_tokens: Some(4),
                ..base()
            },
        ),
    ];
    for (field, request) in cases {
        assert_eq!(refusal(request).0, field);
    }
    let (_, message) = refusal(SamplingRequest {
        temperature: Some(f32::NAN),
        ..base()
    });
    assert_eq!(
        message,
        "temperature must be a finite number of at least 0, not NaN"
    );
}

#[test]
fn what_does_not_fit_names_the_numbers() {
    let with = |max_tokens| {
        resolved(SamplingRequest {
            max_tokens,
            ..SamplingRequest::default()
        })
        .unwrap()
    };
    let message = |result: Result<Room, RequestError>| result.unwrap_err().to_string();
    let too_long = message(with(None).fit(4096, 4096, None));
    assert!(
        too_long.contains("4096 tokens, but the prompt has 4096"),
        "{too_long}"
    );
    let too_many = message(with(Some(100)).fit(4000, 4096, None));
    assert!(
        too_many.contains("4100 were asked for (4000 in the prompt, 100"),
        "{too_many}"
    );
    let generate = |max_tokens| Ok(Room::Generate { max_tokens });
    assert!(matches!(with(Some(96)).fit(4000, 4096, None), ok if ok.is_ok()));
    let rooms = [
        (with(None).fit(4000, 4096, None), generate(96)),
        (with(None).fit(4000, 4096, Some(16)), generate(16)),
        (with(None).fit(4090, 4096, Some(16)), generate(6)),
        (with(Some(5)).fit(4000, 4096, Some(16)), generate(5)),
    ];
    for (room, expected) in rooms {
        assert_eq!(
            room.unwrap(),
            expected.unwrap_or_else(|e: RequestError| panic!("{e}"))
        );
    }
}

#[test]
fn nothing_is_generated_only_where_the_prompt_is_scored() {
    let request = SamplingRequest {
        max_tokens: Some(0),
        ..SamplingRequest::default()
    };
    let resolved = resolve(&request, &test_model(), 8, true, || 1).unwrap();
    assert_eq!(resolved.fit(10, 4096, Some(16)).unwrap(), Room::ScorePrompt);
}
