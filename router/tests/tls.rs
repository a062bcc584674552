//! TLS at the HTTP and gRPC ports, and clients that do not do their part.

// Beside `common`, so that no other test has to make certificates.
#[path = "common/certificates.rs"]
mod certificates;
mod common;

use std::sync::Arc;
use std::time::Duration;

use certificates::Authority;
use common::process::{Process, config, eventually, exchange, refused, start};
use common::volume::Volume;
use common::worker::Worker;
use common::{expected, until};
use millrace_proto::inference::v1::inference_client::InferenceClient;
use millrace_proto::inference::v1::{
    GenerateRequest, ListModelsRequest, SamplingParams, TokenIds, generate_request,
};
use millrace_router::config::{AccessConfig, TlsFiles};
use millrace_router::edges::http::serve;
use millrace_router::edges::listen::{Identity, Incoming, TlsError};
use millrace_router::metrics::{Edge, Metrics};
use millrace_router::{RouterConfig, ServeError};
use millrace_telemetry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

fn files(volume: &Volume) -> TlsFiles {
    TlsFiles {
        cert: volume.at("tls.crt"),
        key: volume.at("tls.key"),
    }
}

fn with_tls(volume: &Volume) -> RouterConfig {
    RouterConfig {
        access: AccessConfig {
            tls: Some(files(volume)),
            reload_interval: Duration::from_millis(20),
            probe_addr: Some("127.0.0.1:0".parse().unwrap()),
            ..AccessConfig::default()
        },
        ..config()
    }
}

async fn channel(process: &Process, authority: &Authority) -> Channel {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.pem))
        .domain_name("localhost");
    let endpoint = Channel::from_shared(format!("https://{}", process.bound.grpc)).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

async fn probe(process: &Process, path: &str) -> String {
    let stream = TcpStream::connect(process.bound.probe.unwrap())
        .await
        .unwrap();
    exchange(stream, &format!("GET {path}"), "", "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_come_over_tls_and_probes_do_not() {
    let authority = Authority::new();
    let volume = Volume::new(&authority.issue().files());
    let process = start(with_tls(&volume)).await;
    let worker = Worker::decode(&process.bound.worker.to_string(), "d0").await;
    eventually("the router is ready", async || {
        probe(&process, "/ready").await.starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(probe(&process, "/health").await.starts_with("HTTP/1.1 200"));
    assert!(
        probe(&process, "/v1/models")
            .await
            .starts_with("HTTP/1.1 404")
    );

    let stream = authority.connect(process.bound.http, "http/1.1").await;
    let body = r#"{"prompt":[11,12,13],"max_tokens":4,"seed":7}"#;
    let answer = exchange(stream.unwrap(), "POST /v1/completions", "", body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for address in [process.bound.http, process.bound.grpc] {
        let stream = authority.connect(address, "h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }

    // Whoever speaks no TLS, or trusts nobody here, is turned away alone.
    let plain = TcpStream::connect(process.bound.http).await.unwrap();
    let mut answer = Vec::new();
    let mut plain = plain;
    plain
        .write_all(b"GET /health HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let stranger = Authority::new();
    assert!(stranger.connect(process.bound.grpc, "h2").await.is_err());

    let mut client = InferenceClient::new(channel(&process, &authority).await);
    let request = GenerateRequest {
        prompt: Some(generate_request::Prompt::Tokens(TokenIds {
            ids: vec![11, 12, 13],
        })),
        sampling: Some(SamplingParams {
            max_tokens: Some(6),
            seed: Some(7),
            ..SamplingParams::default()
        }),
        ..GenerateRequest::default()
    };
    // The stop comes in mid-stream, over TLS as over TCP.
    worker.tokens.forget_permits(usize::MAX);
    worker.tokens.add_permits(2);
    let mut updates = client.generate(request).await.unwrap().into_inner();
    let mut tokens = updates.message().await.unwrap().unwrap().token_ids;
    process.stop.send(()).unwrap();
    eventually("nobody can connect", async || {
        TcpStream::connect(process.bound.grpc).await.is_err()
    })
    .await;
    // Kubelets ask while it drains.
    let stream = TcpStream::connect(process.bound.probe.unwrap()).await;
    let answer = exchange(stream.unwrap(), "GET /ready", "", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    worker.tokens.add_permits(100);
    while let Some(update) = updates.message().await.unwrap() {
        tokens.extend(update.token_ids);
    }
    assert_eq!(tokens, expected(&[11, 12, 13], 7, 6));
    drop(client);
    process.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
    let authority = Authority::new();
    let first = authority.issue();
    let mut volume = Volume::new(&first.files());
    let process = start(with_tls(&volume)).await;
    let ports = [process.bound.http, process.bound.grpc];
    let mut client = InferenceClient::new(channel(&process, &authority).await);
    let mut kept = authority.connect(ports[0], "http/1.1").await.unwrap();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);

    let failed =
        r#"millrace_router_reloads_total{model_name="tiny-r1",result="error",what="certificates"}"#;
    let looks = async || {
        let text = probe(&process, "/metrics").await;
        let count = text.lines().find_map(|line| line.strip_prefix(failed));
        count.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    let strange = authority.issue();
    let broken = [
        [("tls.crt", "no certificate"), ("tls.key", "no key")],
        // Of two pairs: a certificate that was replaced before its key.
        [
            ("tls.crt", strange.cert.as_str()),
            ("tls.key", first.key.as_str()),
        ],
        [("tls.crt", strange.cert.as_str()), ("tls.key", "")],
    ];
    for files in broken {
        let before = looks().await;
        volume.replace(&files);
        eventually("it was looked at", async || looks().await >= before + 2).await;
        for port in ports {
            assert_eq!(authority.shown(port).await, first.der());
        }
    }

    let second = authority.issue();
    volume.replace(&second.files());
    for port in ports {
        eventually("the new one is shown", async || {
            authority.shown(port).await == second.der()
        })
        .await;
    }
    // Connections that are open go on.
    client.list_models(ListModelsRequest {}).await.unwrap();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    drop((client, kept));
    process.stop.send(()).unwrap();
    process.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_does_not_start_with_a_broken_certificate() {
    let authority = Authority::new();
    let (one, other) = (authority.issue(), authority.issue());
    let one_line = one.key.replace('\n', " ");
    type Expected = fn(&TlsError) -> bool;
    let table: [(&str, &str, Expected); 5] = [
        ("", &one.key, |it| matches!(it, TlsError::NoCertificate(_))),
        (&one.cert, "", |it| matches!(it, TlsError::NoKey(_))),
        (&one.cert, &one_line, |it| {
            matches!(it, TlsError::Pem(_) | TlsError::NoKey(_))
        }),
        (&one.cert, &other.key, |it| {
            matches!(it, TlsError::Unusable { .. })
        }),
        (&one.key, &one.key, |it| {
            matches!(it, TlsError::NoCertificate(_))
        }),
    ];
    let secret: String = one.key.lines().nth(1).unwrap().to_owned();
    for (cert, key, expected) in table {
        let volume = Volume::new(&[("tls.crt", cert), ("tls.key", key)]);
        let error = refused(with_tls(&volume)).await;
        assert!(!format!("{error} {error:?}").contains(&secret));
        match error {
            ServeError::Tls(error) if expected(&error) => {}
            error => panic!("{error}"),
        }
    }
    let volume = Volume::new(&one.files());
    let mut config = with_tls(&volume);
    config.access.tls.as_mut().unwrap().cert = "/nowhere".into();
    let error = refused(config).await.to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

/// A port that answers everybody with nothing, and little patience.
async fn impatient(tls: Option<TlsFiles>) -> (std::net::SocketAddr, Registry, watch::Sender<bool>) {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry, "m").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = tls.map(|files| {
        let (identity, _) = Identity::open(files).unwrap();
        identity.server(&["h2", "http/1.1"]).unwrap()
    });
    let patience = Duration::from_millis(300);
    let incoming = Incoming::new(listener, tls, patience, Edge::Http, metrics);
    let (stop, stopping) = watch::channel(false);
    let router = axum::Router::new().fallback(|| async { "here" });
    tokio::spawn(serve(incoming, router, patience, stopping));
    (address, registry, stop)
}

/// What comes until the server hangs up, which it must.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    // A reset is as good an end as any.
    let _ = tokio::time::timeout(Duration::from_secs(60), read)
        .await
        .expect("the server hangs up");
    bytes
}

#[tokio::test]
async fn slow_clients_are_given_up_and_cost_others_nothing() {
    let authority = Authority::new();
    let volume = Volume::new(&authority.issue().files());
    let (address, registry, _stop) = impatient(Some(files(&volume))).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // The first bytes of a ClientHello, and no more.
    silent[0].write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    let quick = authority.connect(address, "http/1.1").await.unwrap();
    let answer = exchange(quick, "GET /", "", "").await;
    assert!(answer.ends_with("here"), "{answer}");
    for stream in silent {
        assert_eq!(rest(stream).await, b"");
    }
    let text = || {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    };
    let timeouts = r#"millrace_router_tls_handshake_failures_total{edge="http",model_name="m",reason="timeout"} 20"#;
    until("the timeouts are counted", || text().contains(timeouts)).await;
}

#[tokio::test]
async fn a_request_that_does_not_come_is_given_up() {
    let (address, _registry, _stop) = impatient(None).await;
    for begun in [
        // HTTP/1 or HTTP/2: too little to tell.
        "",
        "PRI * HT",
        "GET / HT",
        // Heads that never end.
        "GET / HTTP/1.1\r\nHost: somewhere\r\n",
        "GET / HTTP/1.1\r\nHost: somewhere\r\nX-Slow: a",
        // Answered, and then silent.
        "GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let answer = String::from_utf8(rest(stream).await).unwrap();
        assert_eq!(
            answer.ends_with("here"),
            begun.ends_with("\r\n\r\n"),
            "{begun:?} {answer}"
        );
    }
}
