//! Real ranks with tiny-r1, over real sockets, under a router that does as the test says: whatever
//! becomes of the group, the tokens are those of a worker on its own.

mod common;

use common::{group::*, *};
use millrace_experts::Placement;

#[tokio::test]
async fn any_number_of_ranks_says_what_one_worker_says() {
    let requests = requests(6, 16);
    let expected = alone(&requests).await;
    for count in [1, 2, 4] {
        let (router, ranks, shape) = group(count, 4).await;
        let all: Vec<usize> = (0..count).collect();
        assert!(ranks[0].get("/ready").await.starts_with("HTTP/1.1 503"));
        router
            .commit(&all, Placement::initial(shape).unwrap(), true)
            .await;
        for rank in &ranks {
            rank.until("group_member", "", |member| member == 1.0).await;
        }
        while !ranks[0].get("/ready").await.starts_with("HTTP/1.1 200") {
            a_moment().await;
        }
        // Together, so that ranks have rows at different times and in different numbers.
        assert_all(spread(&ranks, &requests).await, &expected).await;
        // And one alone, the others taking part with nothing of their own.
        assert_all(spread(&ranks[..1], &requests[..1]).await, &expected).await;
        for rank in &ranks {
            rank.until_idle().await;
        }
        for name in ["expert_choices_total", "expert_products_total"] {
            assert!(ranks[0].metric(name, "layer=\"3\"").await > 0.0, "{name}");
        }
        // Every choice was computed by somebody.
        router
            .until("the counts agree", |ranks| {
                let sum = |of: fn(&Attached) -> u64| ranks.values().map(of).sum::<u64>();
                let chosen = sum(|a| a.chosen);
                chosen > 0 && chosen == sum(|a| a.computed)
            })
            .await;
    }
}

#[tokio::test]
async fn an_idle_group_takes_no_steps_and_still_adopts() {
    let (router, ranks, shape) = group(2, 0).await;
    router
        .commit(&[0, 1], Placement::initial(shape).unwrap(), true)
        .await;
    router.change(1, &[0, 1], placement(shape, 1)).await;
    a_moment().await;
    for rank in &ranks {
        assert_eq!(rank.metric("group_epoch", "").await, 2.0);
        assert_eq!(rank.metric("group_adoptions_total", "").await, 2.0);
        assert_eq!(rank.metric("group_steps_total", COMPLETE).await, 0.0);
    }
    // The experts that moved came out of the other rank's memory.
    for rank in &ranks {
        let source = "source=\"peer\"";
        assert!(rank.metric("group_staged_bytes_total", source).await > 0.0);
    }
}

#[tokio::test]
async fn placements_change_under_load_and_no_token_does() {
    let requests = requests(8, 120);
    let expected = alone(&requests).await;
    let (router, ranks, shape) = group(2, 4).await;
    router
        .commit(&[0, 1], Placement::initial(shape).unwrap(), true)
        .await;
    let mut changes = 0;
    while changes < 8 {
        let answers = spread(&ranks, &requests).await;
        while answers.iter().any(|answer| !answer.is_finished()) {
            changes += 1;
            router
                .change(changes, &[0, 1], placement(shape, changes))
                .await;
        }
        assert_all(answers, &expected).await;
    }
    for rank in &ranks {
        assert_eq!(rank.metric("group_steps_total", DROPPED).await, 0.0);
    }
}

#[tokio::test]
async fn the_others_go_on_without_a_rank_that_dies_and_it_comes_back() {
    let requests = requests(4, 200);
    let expected = alone(&requests).await;
    // Every rank has room for every expert.
    let (router, mut ranks, shape) = group(2, 32).await;
    let first = Placement::initial(shape).unwrap();
    router.commit(&[0, 1], first.clone(), true).await;
    let answers = spread(&ranks[..1], &requests).await;
    under_way(&ranks[0]).await;
    ranks[1].kill();
    let attached = router
        .until("rank 0 lost rank 1", |ranks| {
            !ranks[&0].report.lost.is_empty()
        })
        .await;
    assert_eq!(attached[&0].report.lost[0].rank, 1);
    router
        .until("rank 1 is gone", |ranks| ranks.len() == 1)
        .await;
    router.commit(&[0], first.clone(), true).await;
    assert_all(answers, &expected).await;

    // Another life of it joins by agreement, while requests run.
    let again = spread(&ranks[..1], &requests).await;
    ranks[1] = rank(&router, 1, 2, 32).await;
    router.until_linked(2).await;
    router.change(7, &[0, 1], placement(shape, 7)).await;
    assert_all(again, &expected).await;
    assert_all(spread(&ranks, &requests).await, &expected).await;
}

#[tokio::test]
async fn experts_that_died_with_a_rank_come_from_the_checkpoint() {
    let requests = requests(3, 100);
    let expected = alone(&requests).await;
    // Three ranks with room for half as many replicas again: two of them can hold every expert.
    let (router, mut ranks, shape) = group(3, 16).await;
    router
        .commit(&[0, 1, 2], Placement::initial(shape).unwrap(), true)
        .await;
    let answers = spread(&ranks[..2], &requests).await;
    under_way(&ranks[0]).await;
    ranks[2].kill();
    router
        .until("rank 2 is gone", |ranks| ranks.len() == 2)
        .await;
    // Ranks 0 and 1 share all experts; what is in rank 2's slots does not matter.
    let layer = (0..3 * shape.slots).map(|place| (place % shape.experts) as u32);
    let table = layer.collect::<Vec<u32>>().repeat(shape.layers);
    let repaired = Placement::new(shape, table).unwrap();
    router.commit(&[0, 1], repaired, true).await;
    assert_all(answers, &expected).await;
    let mut staged = 0.0;
    for rank in &ranks[..2] {
        staged += rank.metric("group_staged_bytes_total", CHECKPOINT).await;
    }
    assert!(staged > 0.0);
}

#[tokio::test]
async fn a_rank_that_is_left_out_ends_its_requests_and_is_let_in_again() {
    let requests = requests(2, 1000);
    let (router, ranks, shape) = group(2, 32).await;
    let first = Placement::initial(shape).unwrap();
    router.commit(&[0, 1], first.clone(), true).await;
    let mut answers = spread(&ranks, &requests).await;
    ranks[1]
        .until("num_requests_running", "", |n| n > 0.0)
        .await;
    router.commit(&[0], first.clone(), true).await;
    let evicted = answers.pop().unwrap().await.unwrap().unwrap_err();
    assert_eq!(evicted.code(), tonic::Code::Unavailable, "{evicted:?}");
    assert!(
        evicted.message().contains("without this rank"),
        "{evicted:?}"
    );
    router
        .until("it says so", |ranks| {
            ranks[&1].outside && ranks[&1].adopted() == 0
        })
        .await;
    assert!(ranks[1].get("/ready").await.starts_with("HTTP/1.1 503"));
    let mut client = ranks[1].client().await;
    let refused = generate(&mut client, requests[1].clone()).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable);

    // The same life joins again, the other's request still running.
    router.until_linked(2).await;
    router.change(3, &[0, 1], placement(shape, 3)).await;
    let short = self::requests(2, 16);
    let expected = alone(&short).await;
    assert_all(spread(&ranks, &short).await, &expected).await;
    let first = answers.pop().unwrap().await.unwrap().unwrap();
    assert_eq!(tokens(&first).len(), 1000);
}

#[tokio::test]
async fn ranks_take_prompts_that_a_prefill_worker_computed() {
    let whole = requests(8, 40);
    let expected = alone(&whole).await;
    let prefill = Running::prefill(prefill_config()).await;
    let (router, ranks, shape) = group(2, 4).await;
    router
        .commit(&[0, 1], Placement::initial(shape).unwrap(), true)
        .await;
    let split: Vec<_> = whole
        .iter()
        .map(|whole| split(whole, prefill.addresses.grpc))
        .collect();
    let answers = spread(&ranks, &split).await;
    // Not while pages are written alone: at any time.
    for change in 1..4 {
        router
            .change(change, &[0, 1], placement(shape, change))
            .await;
    }
    assert_all(answers, &expected).await;
    for rank in &ranks {
        assert!(rank.metric("remote_prefills_total", "").await > 0.0);
        rank.until_idle().await;
    }
}
