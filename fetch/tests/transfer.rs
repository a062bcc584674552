//! Downloads over real connections that break in the ways connections break.

mod common;

use common::{Fault, Server, bytes, fetch, files};
use millrace_fetch::FetchError;

const MB: usize = 1_000_000;

#[tokio::test]
async fn a_folder_arrives_whole_and_is_not_asked_for_again() {
    let model = [
        ("config.json", b"{}".to_vec()),
        ("empty", Vec::new()),
        ("sub/a b+c%20=é.bin", bytes(1, MB)),
        ("sub/same.bin", bytes(1, MB)),
        ("large.safetensors", bytes(2, 5 * MB)),
    ];
    let (server, checksum) = Server::start(&model).await;
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, &dir.path().join("new/folder"));
    let summary = fetch(&config).await.unwrap();
    assert_eq!((summary.files, summary.kept), (5, 0));
    assert_eq!(summary.bytes as usize, 7 * MB + 2);
    for (name, bytes) in &model {
        assert!(
            std::fs::read(config.to.join(name)).unwrap() == *bytes,
            "{name}"
        );
    }
    assert!(config.to.join("SHA256SUMS").exists());

    let before = server.requests();
    let again = fetch(&config).await.unwrap();
    assert_eq!((again.files, again.kept, again.bytes), (5, 5, 0));
    assert_eq!(server.requests(), before);
}

#[tokio::test]
async fn a_body_that_is_cut_goes_on_where_it_ended() {
    let (server, checksum) = Server::start(&[("w", bytes(3, MB))]).await;
    // More cuts than attempts: each gets further.
    server.fail(
        "w",
        [200_000, 100_000, 300_000, 1, 10_000, 50_000].map(Fault::Cut),
    );
    let dir = tempfile::tempdir().unwrap();
    let summary = fetch(&server.config(checksum, dir.path())).await.unwrap();
    assert_eq!(summary.bytes as usize, MB, "no byte came twice");
    let ranges = server.ranges("w");
    assert_eq!(ranges[1].as_deref(), Some("bytes=200000-"));
    assert_eq!(ranges.last().unwrap().as_deref(), Some("bytes=660001-"));
}

#[tokio::test]
async fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let (server, checksum) = Server::start(&[("w", bytes(4, MB))]).await;
    server.fail(
        "w",
        [
            Fault::Cut(400_000),
            Fault::Cut(0),
            Fault::Status(503),
            Fault::Silent,
            Fault::Cut(0),
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, dir.path());
    let error = fetch(&config).await.unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::GaveUp {
                attempts: 4,
                at: 400_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(files(dir.path()).is_empty());

    assert_eq!(fetch(&config).await.unwrap().bytes, 600_000);
    assert_eq!(std::fs::read(dir.path().join("w")).unwrap(), bytes(4, MB));
    assert_eq!(files(dir.path()), ["SHA256SUMS", "w"]);
}

#[tokio::test]
async fn errors_of_a_busy_server_and_silence_pass() {
    let (server, checksum) = Server::start(&[("w", bytes(5, MB))]).await;
    server.fail(
        "SHA256SUMS",
        [Fault::Status(503), Fault::Cut(3), Fault::Silent],
    );
    server.fail("w", [Fault::Status(429), Fault::Status(500), Fault::Silent]);
    let dir = tempfile::tempdir().unwrap();
    fetch(&server.config(checksum, dir.path())).await.unwrap();
    assert_eq!(server.ranges("w").len(), 4);
}

#[tokio::test]
async fn a_server_without_ranges_or_lengths_serves_too() {
    let (server, checksum) = Server::start(&[("w", bytes(6, MB)), ("v", bytes(7, MB))]).await;
    server.change(|plan| plan.ignores_range = true);
    server.fail(
        "w",
        [
            Fault::Cut(300_000),
            Fault::Cut(700_000),
            Fault::Cut(100_000),
        ],
    );
    server.fail("v", [Fault::NoLength]);
    let dir = tempfile::tempdir().unwrap();
    fetch(&server.config(checksum, dir.path())).await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("w")).unwrap(), bytes(6, MB));
    assert_eq!(std::fs::read(dir.path().join("v")).unwrap(), bytes(7, MB));
}

#[tokio::test]
async fn a_server_without_ranges_that_always_ends_at_the_same_byte_is_given_up() {
    let (server, checksum) = Server::start(&[("w", bytes(6, MB))]).await;
    server.change(|plan| plan.ignores_range = true);
    server.fail("w", vec![Fault::Cut(300_000); 9]);
    let dir = tempfile::tempdir().unwrap();
    let error = fetch(&server.config(checksum, dir.path()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::GaveUp { at: 300_000, .. }),
        "{error}"
    );
    // The first, which got somewhere, and as many as may bring it no further.
    assert_eq!(server.ranges("w").len(), 4);
}

#[tokio::test]
async fn wrong_bytes_never_get_the_files_name() {
    let (server, checksum) = Server::start(&[("ok", bytes(8, 10)), ("w", bytes(9, MB))]).await;
    server.fail("w", [Fault::Wrong]);
    let dir = tempfile::tempdir().unwrap();
    let config = server.config(checksum, dir.path());
    let error = fetch(&config).await.unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::WrongChecksum {
                bytes: 1_000_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("/w has 1000000 bytes"),
        "{error}"
    );
    assert!(!dir.path().join("w").exists() && !dir.path().join("SHA256SUMS").exists());
    // The source was repaired: what was wrong is not gone on with.
    fetch(&config).await.unwrap();
    assert_eq!(std::fs::read(dir.path().join("w")).unwrap(), bytes(9, MB));
}

#[tokio::test]
async fn wrong_bytes_in_one_piece_of_several_are_fetched_once_more() {
    let (server, checksum) = Server::start(&[("w", bytes(10, MB))]).await;
    server.fail("w", [Fault::Cut(500_000), Fault::Wrong]);
    let dir = tempfile::tempdir().unwrap();
    fetch(&server.config(checksum, dir.path())).await.unwrap();
    assert_eq!(
        server.ranges("w"),
        [None, Some("bytes=500000-".to_owned()), None]
    );
}

#[tokio::test]
async fn a_server_that_is_gone_is_named() {
    let (server, checksum) = Server::start(&[("w", bytes(11, 10))]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = server.config(checksum, dir.path());
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    config.source.url = format!("http://{unused}/m");
    let error = fetch(&config).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("http://{unused}/m/SHA256SUMS")),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
}
