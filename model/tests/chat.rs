//! Chat templates: tiny-r1's renders as its card says, and bad ones are clear errors.

use std::path::Path;

use millrace_model::chat::{ChatError, ChatTemplate, Message};
use millrace_model::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn tiny_r1() -> ChatTemplate {
    ChatTemplate::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1"))
        .unwrap()
        .unwrap()
}

fn render(template: &ChatTemplate, messages: &[(&str, &str)], generate: bool) -> String {
    let messages: Vec<Message> = messages
        .iter()
        .map(|&(role, text)| Message::new(role, text))
        .collect();
    template
        .render(&messages, None, generate, &Map::new())
        .unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(&Value::String(source.to_string()), Map::new()).unwrap()
}

fn failure(source: &str) -> ChatError {
    template(source)
        .render(&[Message::new("user", "x")], None, true, &Map::new())
        .unwrap_err()
}

#[test]
fn tiny_r1_renders_as_its_card_says() {
    let t = tiny_r1();
    assert_eq!(
        render(&t, &[("user", "What is 1 + 2?")], true),
        "<｜begin▁of▁sentence｜><｜User｜>What is 1 + 2?<｜Assistant｜><think>\n"
    );
    assert_eq!(
        render(&t, &[("system", "Be brief."), ("user", "Hi")], true),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜><think>\n"
    );
    assert_eq!(
        render(
            &t,
            &[("system", "A"), ("system", "B"), ("user", "Hi")],
            false
        ),
        "<｜begin▁of▁sentence｜>A\n\nB<｜User｜>Hi"
    );
}

#[test]
fn earlier_reasoning_is_dropped() {
    let turns = [
        ("user", "a"),
        ("assistant", "<think>\nhm\n</think>\n\n3"),
        ("user", "b"),
    ];
    assert_eq!(
        render(&tiny_r1(), &turns, true),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>\n\n3<｜end▁of▁sentence｜><｜User｜>b<｜Assistant｜><think>\n"
    );
    let plain = [("user", "a"), ("assistant", "3"), ("user", "b")];
    assert_eq!(
        render(&tiny_r1(), &plain, false),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>3<｜end▁of▁sentence｜><｜User｜>b"
    );
}

#[test]
fn a_rendered_prompt_has_one_token_for_each_marker() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
    let prompt = render(&tiny_r1(), &[("user", "Hi")], true);
    let ids = Tokenizer::from_dir(&dir)
        .unwrap()
        .encode(&prompt, false)
        .unwrap();
    assert_eq!(ids[..2], [0, 2044]);
    assert_eq!(ids[ids.len() - 3..ids.len() - 1], [2045, 2046]);
}

#[test]
fn blocks_and_loops_are_jinjas() {
    let source = "{% for m in messages %}\n    {% if loop.index0 == 1 %}{% break %}{% endif %}\n[{{ m.role }}]\n{% endfor %}\nend\n";
    assert_eq!(
        render(&template(source), &[("a", ""), ("b", ""), ("c", "")], false),
        "[a]\nend"
    );
    let source = "{{ messages[-1]['content'].strip().split(',')|join('+') }}{{ none }}{{ true }}{{ missing }}";
    assert_eq!(
        render(&template(source), &[("user", " a,b ")], false),
        "a+bNoneTrue"
    );
    let source = "{%- for m in messages -%}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}";
    assert_eq!(
        render(&template(source), &[("user", "x"), ("user", "y")], false),
        "xy"
    );
}

/// `features.txt` is what transformers 5.24 (jinja2 3.1.6) makes of `features.jinja` and
/// `features.json`: most of what published templates use.
#[test]
fn features_are_rendered_as_transformers_renders_them() {
    let case: Value = serde_json::from_str(include_str!("jinja/features.json")).unwrap();
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let rendered =
        template(include_str!("jinja/features.jinja")).render(&messages, None, false, &Map::new());
    assert_eq!(rendered.unwrap(), include_str!("jinja/features.txt"));
}

#[test]
fn tools_and_variables_reach_the_template() {
    let list = json!([
        {"name": "default", "template": "plain {{ enable_thinking }} {{ bos_token }} {{ messages|length }}"},
        {"name": "tool_use", "template": "{{ tools|tojson }}"},
    ]);
    let special = Map::from_iter([("bos_token".to_string(), json!("<s>"))]);
    let t = ChatTemplate::new(&list, special).unwrap();
    let kwargs = Map::from_iter([
        ("enable_thinking".to_string(), json!(false)),
        ("messages".to_string(), json!("no")),
    ]);
    let messages = [Message::new("user", "x")];
    assert_eq!(
        t.render(&messages, None, true, &kwargs).unwrap(),
        "plain False <s> 1"
    );
    let tools = json!([{"type": "function", "function": {"name": "f<"}}]);
    assert_eq!(
        t.render(&messages, Some(&tools), true, &kwargs).unwrap(),
        r#"[{"type": "function", "function": {"name": "f<"}}]"#
    );
}

#[test]
fn what_the_template_raises_is_the_clients_error() {
    let error = failure("{{ raise_exception('roles must alternate') }}");
    assert!(
        matches!(&error, ChatError::Refused { message } if message == "roles must alternate"),
        "{error}"
    );
    assert!(error.is_clients_fault());
    let error = failure("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}");
    assert!(
        matches!(&error, ChatError::Refused { message } if message == "deep"),
        "{error}"
    );
}

#[test]
fn failures_name_the_line() {
    let error = failure("line one\n{{ nothing.at.all }}");
    assert!(
        matches!(error, ChatError::Failed { line: 2, .. }),
        "{error}"
    );
    let broken = ChatTemplate::new(&json!("ok\n\n{% if %}"), Map::new()).unwrap_err();
    assert!(
        matches!(broken, ChatError::Broken { line: 3, .. }),
        "{broken}"
    );
    assert!(!broken.is_clients_fault());
    for form in [
        json!(5),
        json!([{"name": "default"}]),
        json!([{"name": "other", "template": "x"}]),
        json!([]),
    ] {
        assert!(
            matches!(ChatTemplate::new(&form, Map::new()), Err(ChatError::Form)),
            "{form}"
        );
    }
}

#[test]
fn endless_and_huge_renderings_stop() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(100000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10000000000 }}",
    ] {
        let error = failure(source);
        assert!(
            matches!(error, ChatError::TooMuchWork | ChatError::Failed { .. }),
            "{error}"
        );
    }
}

#[test]
fn folders_without_or_with_bad_templates() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"chat_template": "from config", "bos_token": "<s>"}"#,
    )
    .unwrap();
    let rendered = |dir: &Path| render(&ChatTemplate::from_dir(dir).unwrap().unwrap(), &[], false);
    assert_eq!(rendered(dir.path()), "from config");
    std::fs::write(
        dir.path().join("chat_template.jinja"),
        "{{ bos_token }}from file",
    )
    .unwrap();
    assert_eq!(rendered(dir.path()), "<s>from file");
    std::fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    assert!(
        ChatTemplate::from_dir(dir.path())
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"bos_token": 5}"#,
    )
    .unwrap();
    assert!(
        ChatTemplate::from_dir(dir.path())
            .unwrap_err()
            .to_string()
            .contains("`bos_token` must be")
    );
}

proptest! {
    #[test]
    fn no_template_source_panics(pieces in proptest::collection::vec(
        prop_oneof![
            Just("{%"), Just("%}"), Just("{{"), Just("}}"), Just("{%-"), Just("-%}"), Just("{#"), Just("#}"), Just(" if "),
            Just(" for "), Just(" endfor "), Just(" endif "), Just("generation"), Just("endgeneration"), Just("messages"), Just("m"),
            Just("|tojson"), Just("["), Just("]"), Just("("), Just(")"), Just("'"), Just("\n"), Just(" in "), Just("é"), Just("1"),
        ],
        0..24,
    )) {
        if let Ok(t) = ChatTemplate::new(&Value::String(pieces.concat()), Map::new()) {
            let _ = t.render(&[Message::new("user", "x")], None, true, &Map::new());
        }
    }

    #[test]
    fn any_text_stands_in_the_prompt_as_it_is(text in "[^<]{0,40}") {
        let rendered = render(&tiny_r1(), &[("user", &text)], false);
        prop_assert_eq!(rendered, format!("<｜begin▁of▁sentence｜><｜User｜>{text}"));
    }
}
