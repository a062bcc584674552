//! The three routes, asked over a real socket.

use millrace_telemetry::{Readiness, Registry, http};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
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
