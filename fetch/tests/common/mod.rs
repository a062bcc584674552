//! An HTTP server that misbehaves as it is told, and a folder to fetch from it.

#![allow(dead_code)] // each test uses its share

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use millrace_fetch::{
    Checksum, Event, FetchConfig, FetchError, RetryPolicy, SourceConfig, Summary,
};

/// What happens to one request instead of a right answer.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// No byte of the body comes, and the connection stays.
    Silent,
    /// The first byte is another one.
    Wrong,
    /// The body comes in chunks, its length is not said.
    NoLength,
}

#[derive(Default)]
pub struct Plan {
    pub files: HashMap<String, Vec<u8>>,
    /// For the requests of a file, one after the other; none left: a right answer.
    pub faults: HashMap<String, VecDeque<Fault>>,
    /// Answers 200 with all of it whatever part was asked for.
    pub ignores_range: bool,
    pub token: Option<String>,
    /// Name and range of each request.
    pub seen: Vec<(String, Option<String>)>,
}

#[derive(Clone, Default)]
pub struct Server {
    plan: Arc<Mutex<Plan>>,
    address: Option<SocketAddr>,
}

impl Server {
    /// Serves these files and their SHA256SUMS.
    pub async fn start(files: &[(&str, Vec<u8>)]) -> (Server, Checksum) {
        let mut server = Server::default();
        let checksum = server.publish(files);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.address = Some(listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (server, checksum)
    }

    pub fn publish(&self, files: &[(&str, Vec<u8>)]) -> Checksum {
        let mut sums = String::new();
        for (name, bytes) in files {
            writeln!(sums, "{}  {name}", Checksum::of(bytes).hex()).unwrap();
        }
        let checksum = Checksum::of(sums.as_bytes());
        let mut plan = self.plan.lock().unwrap();
        plan.files = files
            .iter()
            .map(|(name, bytes)| (name.to_string(), bytes.clone()))
            .collect();
        plan.files
            .insert("SHA256SUMS".to_owned(), sums.into_bytes());
        checksum
    }

    pub fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock().unwrap());
    }

    pub fn fail(&self, name: &str, faults: impl IntoIterator<Item = Fault>) {
        self.change(|plan| {
            plan.faults
                .entry(name.to_owned())
                .or_default()
                .extend(faults)
        });
    }

    /// The ranges asked of a file so far.
    pub fn ranges(&self, name: &str) -> Vec<Option<String>> {
        let plan = self.plan.lock().unwrap();
        plan.seen
            .iter()
            .filter(|(it, _)| it == name)
            .map(|(_, range)| range.clone())
            .collect()
    }

    pub fn requests(&self) -> usize {
        self.plan.lock().unwrap().seen.len()
    }

    pub fn config(&self, checksum: Checksum, to: &Path) -> FetchConfig {
        FetchConfig {
            source: SourceConfig {
                url: format!("http://{}/models/m%20%2B", self.address.unwrap()),
                token_file: None,
                ca: None,
                s3_endpoint: None,
                s3_region: None,
                stall: Duration::from_millis(500),
            },
            checksum,
            to: to.to_owned(),
            concurrency: 4,
            verify: false,
            retry: RetryPolicy {
                attempts: 4,
                first_delay: Duration::from_millis(1),
                most_delay: Duration::from_millis(5),
            },
        }
    }
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let path = percent_decoded(request.uri().path());
    let Some(name) = path.strip_prefix("/models/m +/") else {
        return StatusCode::IM_A_TEAPOT.into_response();
    };
    let mut plan = server.plan.lock().unwrap();
    let range = text(request.headers(), header::RANGE);
    plan.seen.push((name.to_owned(), range.clone()));
    let wanted = plan.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted != text(request.headers(), header::AUTHORIZATION) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let fault = plan.faults.get_mut(name).and_then(VecDeque::pop_front);
    if let Some(Fault::Status(status)) = fault {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let Some(bytes) = plan.files.get(name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let total = bytes.len();
    let start: usize = match range.filter(|_| !plan.ignores_range) {
        Some(range) => range
            .strip_prefix("bytes=")
            .unwrap()
            .strip_suffix('-')
            .unwrap()
            .parse()
            .unwrap(),
        None => 0,
    };
    if start > 0 && start >= total {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let mut body = bytes[start..].to_vec();
    let length = body.len();
    let broken = || Err(std::io::Error::other("cut"));
    let chunks = |bytes: Vec<u8>| {
        let chunks: Vec<_> = bytes.chunks(10_000).map(Bytes::copy_from_slice).collect();
        stream::iter(chunks).map(Ok::<_, std::io::Error>)
    };
    let body = match fault {
        Some(Fault::Cut(at)) => {
            body.truncate(at);
            // Its own turn, so that what came before is on the wire.
            let pause = async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                broken()
            };
            Body::from_stream(chunks(body).chain(stream::once(pause)))
        }
        Some(Fault::Silent) => {
            Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())
        }
        Some(Fault::NoLength) => return Body::from_stream(chunks(body)).into_response(),
        Some(Fault::Wrong) => {
            body[0] ^= 1;
            Body::from(body)
        }
        Some(Fault::Status(_)) | None => Body::from_stream(chunks(body)),
    };
    let response = Response::builder().header(header::CONTENT_LENGTH, length);
    let response = match start {
        0 => response.status(200),
        _ => response.status(206).header(
            header::CONTENT_RANGE,
            format!("bytes {start}-{}/{total}", total - 1),
        ),
    };
    response.body(body).unwrap()
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().unwrap().to_owned())
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).unwrap()
}

/// Bytes that differ from file to file.
pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

pub async fn fetch(config: &FetchConfig) -> Result<Summary, FetchError> {
    millrace_fetch::fetch(config, &|_: Event<'_>| {}).await
}

/// The names of all files but our own.
pub fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        match file.path().is_dir() {
            true if name == ".millrace-fetch" => {}
            true => found.extend(
                files(&file.path())
                    .into_iter()
                    .map(|inner| format!("{name}/{inner}")),
            ),
            false => found.push(name),
        }
    }
    found.sort();
    found
}
