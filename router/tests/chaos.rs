//! Decode workers are killed and started again under many streams; no client sees an error or a
//! wrong token, and nothing is left behind.

mod common;

use common::worker::Worker;
use common::{Router, expected, limits, read_all, request, until};
use tokio::task::JoinSet;

const STREAMS: usize = 16;
const KILLS: usize = 10;
/// Tokens each worker generates between two kills.
const BETWEEN: usize = 40;
/// More than a stream that has a worker to itself gets before the last kill: every kill finds all streams.
const TOKENS: u32 = (KILLS * BETWEEN + 100) as u32;

#[tokio::test]
async fn no_stream_notices_that_workers_are_killed() {
    let router = Router::start(limits()).await;
    let mut workers = vec![
        Worker::decode_with(&router, "d0", 0).await,
        Worker::decode_with(&router, "d1", 0).await,
    ];
    router.until_workers(2, 0).await;

    let mut clients = JoinSet::new();
    for client in 0..STREAMS {
        let prompt = [100 + client as u32; 8];
        let stream = router.complete(request(&prompt, TOKENS)).await.unwrap();
        clients.spawn(async move { (prompt, read_all(stream, 1).await) });
    }
    for kill in 0..KILLS {
        let generated = |router: &Router| router.metric("millrace_generation_tokens_total", "");
        let before = generated(&router);
        // All are with a worker, so each of them gets on before the next kill.
        let running = || workers.iter().map(Worker::running).sum::<usize>();
        until("every stream has a worker", || running() == STREAMS).await;
        let busy: Vec<&Worker> = workers.iter().filter(|w| w.running() > 0).collect();
        busy.iter()
            .for_each(|worker| worker.tokens.add_permits(BETWEEN));
        let after = before + (busy.len() * BETWEEN) as f64;
        until("tokens come", || generated(&router) >= after).await;
        // In turn the older and the younger one.
        let again = Worker::decode_with(&router, &format!("d{}", kill + 2), 0).await;
        std::mem::replace(&mut workers[kill % 2], again).kill();
    }
    workers
        .iter()
        .for_each(|worker| worker.tokens.add_permits(100_000));

    while let Some(client) = clients.join_next().await {
        let (prompt, answers) = client.unwrap();
        let answer = answers.unwrap().remove(0);
        assert_eq!(answer.token_ids, expected(&prompt, 7, TOKENS as usize));
        assert_eq!(
            answer.text,
            common::model().tokenizer.decode(&answer.token_ids, true)
        );
    }
    for worker in &workers {
        worker.until_idle().await;
    }
    router.until_workers(2, 0).await;
    assert!(router.metric("millrace_router_replays_total", "") >= 1.0);
    assert_eq!(router.metric("millrace_num_requests_running", ""), 0.0);
    assert_eq!(
        router.metric("millrace_generation_tokens_total", ""),
        f64::from(TOKENS) * STREAMS as f64
    );
}
