//! What the folder holds before, during and after, and who may write to it.

mod common;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use common::{Fault, Server, bytes, fetch, files};
use millrace_fetch::{Checksum, Event, FetchError};

const MB: usize = 1_000_000;

#[tokio::test]
async fn one_of_several_processes_fills_the_folder_and_the_others_wait() {
    let model = [
        ("a", bytes(1, MB)),
        ("b", bytes(2, MB)),
        ("c", bytes(3, MB)),
    ];
    let (server, checksum) = Server::start(&model).await;
    server.fail("a", [Fault::Silent]); // long enough for all to have come
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, dir.path());
    let waiting = AtomicUsize::new(0);
    let observer = |event: Event<'_>| {
        waiting.fetch_add(
            usize::from(matches!(event, Event::Waiting)),
            Ordering::Relaxed,
        );
    };
    let one = || millrace_fetch::fetch(&config, &observer);
    let (a, b, c) = tokio::join!(one(), one(), one());
    let mut bytes: Vec<u64> = [a, b, c].map(|it| it.unwrap().bytes).to_vec();
    bytes.sort();
    assert_eq!(bytes, [0, 0, 3 * MB as u64]);
    assert_eq!(waiting.into_inner(), 2);
    assert_eq!(
        server.requests(),
        5,
        "the list, three files and the silence"
    );
}

#[tokio::test]
async fn the_lock_is_held_until_nobody_writes_any_more() {
    let (server, checksum) = Server::start(&[("w", bytes(4, 5 * MB))]).await;
    server.fail("w", [Fault::Cut(4_000_000)]);
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, dir.path());
    // Stopped at any moment, and the next begins at once.
    for milliseconds in [0, 1, 2, 4, 8, 16, 32, 64] {
        let _ = tokio::time::timeout(Duration::from_millis(milliseconds), fetch(&config)).await;
        assert!(
            files(dir.path())
                .iter()
                .all(|name| name != "w" || whole(dir.path(), 4, 5 * MB))
        );
    }
    fetch(&config).await.unwrap();
    assert!(whole(dir.path(), 4, 5 * MB));
}

fn whole(dir: &std::path::Path, seed: u8, len: usize) -> bool {
    std::fs::read(dir.join("w")).unwrap() == bytes(seed, len)
}

#[tokio::test]
async fn damage_of_the_same_length_is_found_when_asked_for() {
    let (server, checksum) = Server::start(&[("a", bytes(5, MB)), ("b", bytes(6, MB))]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = server.config(checksum, dir.path());
    fetch(&config).await.unwrap();
    let path = dir.path().join("b");
    let modified = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, bytes(7, MB)).unwrap();
    std::fs::File::open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(fetch(&config).await.unwrap().kept, 2);
    config.verify = true;
    let summary = fetch(&config).await.unwrap();
    assert_eq!((summary.kept, summary.bytes as usize), (1, MB));
    assert_eq!(std::fs::read(&path).unwrap(), bytes(6, MB));
}

#[tokio::test]
async fn what_changed_or_went_is_fetched_again_and_only_that() {
    let model = [
        ("a", bytes(8, MB)),
        ("b", bytes(9, MB)),
        ("c/d", bytes(10, MB)),
    ];
    let (server, checksum) = Server::start(&model).await;
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, dir.path());
    std::fs::write(dir.path().join("a"), bytes(8, MB)).unwrap(); // brought by somebody else, and right
    std::fs::write(dir.path().join("b"), bytes(8, MB)).unwrap(); // and wrong
    assert_eq!(fetch(&config).await.unwrap().kept, 1);
    std::fs::remove_file(dir.path().join("c/d")).unwrap();
    let summary = fetch(&config).await.unwrap();
    assert_eq!((summary.kept, summary.bytes as usize), (2, MB));
}

#[tokio::test]
async fn another_list_replaces_what_was_fetched_and_nothing_else() {
    let (server, old) = Server::start(&[
        ("same", bytes(11, MB)),
        ("old/x/y", bytes(12, 9)),
        ("n", bytes(13, 9)),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    fetch(&server.config(old, dir.path())).await.unwrap();
    std::fs::write(dir.path().join("notes"), "mine").unwrap();
    let new = server.publish(&[
        ("same", bytes(11, MB)),
        ("n/m", bytes(14, 9)),
        ("old", bytes(15, 9)),
    ]);
    let summary = fetch(&server.config(new, dir.path())).await.unwrap();
    assert_eq!((summary.kept, summary.bytes), (1, 18));
    assert_eq!(
        files(dir.path()),
        ["SHA256SUMS", "n/m", "notes", "old", "same"]
    );
}

#[tokio::test]
async fn parts_that_are_damaged_or_of_another_list_are_no_hindrance() {
    let (server, checksum) = Server::start(&[("w", bytes(16, MB))]).await;
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join(".millrace-fetch");
    std::fs::create_dir(&ours).unwrap();
    std::fs::write(ours.join("0-1.part"), "of another list").unwrap();
    let part = ours.join(format!("{}-1.part", Checksum::of(&bytes(16, MB)).hex()));
    for damaged in [bytes(17, 1000), bytes(17, MB), bytes(17, 2 * MB)] {
        std::fs::write(&part, damaged).unwrap();
        fetch(&server.config(checksum, dir.path())).await.unwrap();
        assert!(whole(dir.path(), 16, MB));
        std::fs::remove_file(dir.path().join("w")).unwrap();
    }
    assert!(
        std::fs::read_dir(&ours)
            .unwrap()
            .all(|it| !it.unwrap().path().ends_with(".part"))
    );
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let (server, checksum) = Server::start(&[("w", bytes(18, 9))]).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = fetch(&server.config(checksum, &dir.path().join("file/m")))
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Io { .. }), "{error}");
    assert!(error.to_string().contains("file/m"), "{error}");
}
