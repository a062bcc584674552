//! What cannot be fetched: each with an error that names it, and with nothing left behind.

mod common;

use common::{Fault, Server, bytes, fetch, files};
use millrace_fetch::{Checksum, FetchError};

#[tokio::test]
async fn what_is_missing_or_forbidden_is_not_tried_again() {
    let (server, checksum) = Server::start(&[("w", bytes(1, 9)), ("v", bytes(2, 9))]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = server.config(checksum, dir.path());
    config.concurrency = 1;
    for (status, says) in [
        (404, "does not exist"),
        (410, "does not exist"),
        (403, "--token-file"),
        (401, "--token-file"),
        (400, "HTTP 400"),
    ] {
        let before = server.ranges("w").len();
        server.fail("w", [Fault::Status(status)]);
        let error = fetch(&config).await.unwrap_err().to_string();
        assert!(
            error.contains("/models/m%20%2B/w") && error.contains(says),
            "{error}"
        );
        assert_eq!(server.ranges("w").len(), before + 1);
        assert!(!dir.path().join("w").exists() && !dir.path().join("SHA256SUMS").exists());
    }
    fetch(&config).await.unwrap();
}

#[tokio::test]
async fn a_list_with_another_checksum_is_refused_before_any_file() {
    let (server, checksum) = Server::start(&[("w", bytes(3, 9))]).await;
    let dir = tempfile::tempdir().unwrap();
    let other = Checksum::of(b"other");
    let error = fetch(&server.config(other, dir.path())).await.unwrap_err();
    assert!(
        matches!(error, FetchError::OtherSums { expected, found, .. } if expected == other && found == checksum)
    );
    assert!(server.ranges("w").is_empty() && files(dir.path()).is_empty());
}

#[tokio::test]
async fn lists_that_are_none_are_refused() {
    let (server, _) = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    for (text, says) in [
        (b"<html>no such bucket</html>".to_vec(), "line 1"),
        (
            format!("{}  ../../w\n", Checksum::of(b"").hex()).into_bytes(),
            "not a plain relative path",
        ),
        (vec![b'x'; 5 << 20], "no list of checksums"),
    ] {
        let checksum = Checksum::of(&text);
        server.change(|plan| drop(plan.files.insert("SHA256SUMS".to_owned(), text)));
        let error = fetch(&server.config(checksum, dir.path()))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
        assert!(files(dir.path()).is_empty());
    }
}

#[tokio::test]
async fn tokens_are_sent_and_read_again_for_each_request() {
    let (server, checksum) = Server::start(&[("w", bytes(4, 9))]).await;
    server.change(|plan| plan.token = Some("s3cret".to_owned()));
    let dir = tempfile::tempdir().unwrap();
    let mut config = server.config(checksum, &dir.path().join("m"));
    let token = dir.path().join("token");
    config.source.token_file = Some(token.clone());
    for (text, says) in [
        (None, "token"),
        (Some(" \n"), "empty"),
        (Some("wrong"), "HTTP 401"),
        (Some("a\u{1}b"), "no header"),
    ] {
        if let Some(text) = text {
            std::fs::write(&token, text).unwrap();
        }
        let error = fetch(&config).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("wrong"), "{error}");
    }
    std::fs::write(&token, "s3cret\n").unwrap();
    fetch(&config).await.unwrap();
}

#[tokio::test]
async fn urls_that_are_no_folders_are_refused_without_a_request() {
    let (server, checksum) = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = server.config(checksum, dir.path());
    for url in [
        "models",
        "ftp://host/m",
        "file:///m",
        "http://",
        "http://host/m?version=1",
        "http://host/m#x",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///m",
        "s3://b@d/m",
    ] {
        config.source.url = url.to_owned();
        let error = fetch(&config).await.unwrap_err();
        assert!(matches!(error, FetchError::Url { .. }), "{url}: {error}");
    }
    config.source.url = "https://me:hunter2@host/m".to_owned();
    let error = fetch(&config).await.unwrap_err().to_string();
    assert!(
        error.contains("password") && !error.contains("hunter2"),
        "{error}"
    );
    assert!(!dir.path().join(".millrace-fetch").exists());
}
