use millrace_router::metrics::{Distribution, Traffic};
use millrace_router::overview::view::TrafficView;

use super::*;
use crate::top::window::Window;

fn worker(id: &str, role: Role, running: u32, unavailable: Option<&str>) -> WorkerView {
    WorkerView {
        worker_id: id.to_owned(),
        role,
        revision: String::new(),
        address: "127.0.0.1:1".to_owned(),
        draining: false,
        unavailable: unavailable.map(str::to_owned),
        group: None,
        running,
        waiting: 0,
        max_running: 16,
        waiting_tokens: 0,
        kv_pages: 100,
        free_pages: 75,
    }
}

fn answer(workers: Vec<WorkerView>) -> FleetAnswer {
    let times = Distribution {
        bounds: vec![0.1, 1.0],
        counts: vec![0, 4, 0],
        sum: 2.0,
    };
    FleetAnswer {
        fleet: FleetView {
            model: "tiny-r1".to_owned(),
            leading: true,
            waiting: 3,
            workers,
            refused: Vec::new(),
            groups: Vec::new(),
        },
        traffic: TrafficView {
            incarnation: "1".to_owned(),
            seconds: 200.0,
            sums: Traffic {
                arrived: 400,
                refused: 0,
                prompt_tokens: 4_000_000,
                cached_prompt_tokens: 1_000_000,
                generated_tokens: 300,
                updates: 200,
                queue_seconds: times.clone(),
                first_token_seconds: times.clone(),
                inter_token_seconds: times.clone(),
                prompt_length: times.clone(),
                generation_length: times,
            },
        },
    }
}

fn shown(workers: Vec<WorkerView>, rows: usize) -> String {
    let answer = answer(workers);
    let rates = Window::whole(&answer.traffic);
    text("host:8000", &answer, &rates, Style::Plain, rows)
}

#[test]
fn pools_add_up_and_troubled_workers_come_first() {
    let text = shown(
        vec![
            worker("p0", Role::Prefill, 1, None),
            worker("d0", Role::Decode, 5, None),
            worker("d1", Role::Decode, 7, None),
            worker("d2", Role::Decode, 0, Some("its group forms")),
        ],
        usize::MAX,
    );
    assert!(
        text.starts_with("tiny-r1 at host:8000, up 3 min\n"),
        "{text}"
    );
    let fields = |begins: &str| -> Vec<&str> {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(begins));
        line.expect(begins).split_whitespace().collect()
    };
    assert_eq!(
        fields("decode"),
        [
            "decode", "3", "2", "0", "12", "of", "48", "0", "0", "25", "%"
        ]
    );
    assert_eq!(fields("requests")[1], "2.00/s");
    assert_eq!(fields("tokens")[1..5], ["20.0k/s", "prompt", "25", "%"]);
    let order: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.contains("state"))
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(order, ["d2", "d1", "d0", "p0"]);
}

#[test]
fn it_fits_a_terminal_and_says_what_it_leaves_out() {
    let many = |n: usize| (0..n).map(|i| worker(&format!("d{i}"), Role::Decode, 1, None));
    for rows in 1..60 {
        let text = shown(many(40).collect(), rows);
        let least = shown(Vec::new(), 0).lines().count() + 1;
        assert!(text.lines().count() <= rows.max(least), "{rows}: {text}");
    }
    assert!(shown(many(40).collect(), 30).contains("more"));
    assert!(!shown(many(40).collect(), 90).contains("more"));
}

#[test]
fn numbers_keep_three_digits() {
    let said = [0.0, 0.5, 12.34, 123.4, 9999.0, 12_345.0, 1_234_567.0].map(number);
    assert_eq!(
        said,
        ["0", "0.50", "12.3", "123", "10.0k", "12.3k", "1.23M"]
    );
    assert_eq!(
        seconds(Some([0.0012, 0.25, f64::INFINITY])),
        ["1.2 ms", "250 ms", "> 100 s"]
    );
}
