//! The three routes, asked over a real socket.

use millrace_telemetry::{Readiness, Registry, http};
use prometheus::{IntCounter, Opts};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    String::from_utf8(ask(address, path, "").await).unwrap()
}

/// `headers`: more of them, each with its end of line.
async fn ask(address: std::net::SocketAddr, path: &str, headers: &str) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_process_shows_whether_it_lives_is_ready_and_what_it_counts() {
    let registry = Registry::of_process().unwrap();
    let counter = IntCounter::new("things_total", "Things").unwrap();
    counter.inc_by(3);
    registry.register(Box::new(counter)).unwrap();
    let readiness = Readiness::waiting_for("weights");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(listener, registry, readiness.clone(), async {
        let _ = stopped.await;
    }));

    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
    let answer = get(address, "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("waiting for weights\n"), "{answer}");
    readiness.set_ready();
    readiness.ready().await;
    assert!(get(address, "/ready").await.starts_with("HTTP/1.1 200"));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("\nthings_total 3\n"), "{metrics}");
    assert!(
        metrics.contains("\nprocess_resident_memory_bytes "),
        "{metrics}"
    );
    assert!(metrics.contains("\nmillrace_build_info{revision=\"unknown\",version=\""));
    assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));

    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_scraper_gets_the_format_that_it_asks_for() {
    let registry = Registry::new();
    let opts = Opts::new("wait_seconds", "Wait").const_label("model_name", "a \"b\"");
    let waits = registry
        .histograms(opts, &[0.00001, 1.0], &["stage"])
        .unwrap();
    for seconds in [0.0, 1.0, 1.0, 3.0] {
        waits.with_label_values(&["queue"]).observe(seconds);
    }
    let things = IntCounter::new("things_total", "Things").unwrap();
    registry.register(Box::new(things)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = http::routes(registry, Readiness::waiting_for("nothing"));
    let server = tokio::spawn(axum::serve(listener, routes).into_future());

    let text = get(address, "/metrics").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("content-type: text/plain; version=0.0.4\r\n"),
        "{head}"
    );
    let series = |ending: &str, more: &str| {
        format!("wait_seconds{ending}{{model_name=\"a \\\"b\\\"\",stage=\"queue\"{more}}}")
    };
    let (sum, count) = (series("_sum", ""), series("_count", ""));
    let bucket = |le: &str| series("_bucket", &format!(",le=\"{le}\""));
    let (low, one, all) = (bucket("0.00001"), bucket("1"), bucket("+Inf"));
    assert_eq!(
        body,
        format!(
            "# HELP things_total Things\n# TYPE things_total counter\nthings_total 0\n# HELP wait_seconds Wait\n# TYPE wait_seconds histogram\n{low} 1\n{one} 3\n{all} 4\n{sum} 5\n{count} 4\n"
        )
    );

    let headers = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let text = String::from_utf8(ask(address, "/metrics", headers).await).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let (low, one) = (bucket("1e-05"), bucket("1.0"));
    assert_eq!(
        body,
        format!(
            "# HELP things Things\n# TYPE things counter\nthings_total 0\n# HELP wait_seconds Wait\n# TYPE wait_seconds histogram\n{low} 1\n{one} 3\n{all} 4\n{sum} 5\n{count} 4\n# EOF\n"
        )
    );

    let headers = "Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n";
    let answer = ask(address, "/metrics", headers).await;
    let has = |bytes: &[u8]| answer.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited\r\n"));
    // Each message behind its length; a counter's value is its metric's third field.
    let counter = b"\x25\x0a\x0cthings_total\x12\x06Things\x18\x00\x22\x0b\x1a\x09\x09";
    assert!(has(&[&counter[..], &[0; 8]].concat()));
    // Schema 3, zeros up to 2^-128 and one of them, buckets 0 and 13 with 2 and one less.
    let buckets = [
        &b"\x28\x06\x31"[..],
        &(-128f64).exp2().to_le_bytes(),
        b"\x38\x01\x62\x04\x08\x00\x10\x01\x62\x04\x08\x18\x10\x01\x68\x04\x68\x01",
    ];
    assert!(has(&buckets.concat()));
    server.abort();
}
