//! What a worker tells whoever started it: where it listens, how loading goes, when it is ready.
//!
//! In one process that is a callback. A child process prints each notice as one line on standard
//! output (logs go to standard error), and its parent reads the lines back with `FromStr`.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

use millrace_engine::LoadProgress;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// First: the real addresses, ports 0 replaced.
    Bound(BoundAddresses),
    Loading(LoadProgress),
    /// The weights are loaded and requests are answered.
    Loaded,
    /// A router has admitted it (or it has no routers). Comes again after a time without any.
    Ready,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundAddresses {
    pub grpc: SocketAddr,
    /// `/metrics`, `/health`, `/ready`.
    pub http: SocketAddr,
}

/// Called from any thread; must not block for long.
pub type Observer = Arc<dyn Fn(Notice) + Send + Sync>;

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Bound(BoundAddresses { grpc, http }) => {
                write!(f, "millrace: bound grpc={grpc} http={http}")
            }
            Notice::Loading(LoadProgress {
                bytes_done,
                bytes_total,
            }) => write!(f, "millrace: loading {bytes_done}/{bytes_total}"),
            Notice::Loaded => f.write_str("millrace: loaded"),
            Notice::Ready => f.write_str("millrace: ready"),
        }
    }
}

/// The line is something else that the process printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a notice of a worker")]
pub struct NotANotice;

impl FromStr for Notice {
    type Err = NotANotice;

    fn from_str(line: &str) -> Result<Notice, NotANotice> {
        parse(line).ok_or(NotANotice)
    }
}

fn parse(line: &str) -> Option<Notice> {
    let mut words = line.trim_end().strip_prefix("millrace: ")?.split(' ');
    let notice = match words.next()? {
        "bound" => Notice::Bound(BoundAddresses {
            grpc: words.next()?.strip_prefix("grpc=")?.parse().ok()?,
            http: words.next()?.strip_prefix("http=")?.parse().ok()?,
        }),
        "loading" => {
            let (done, total) = words.next()?.split_once('/')?;
            Notice::Loading(LoadProgress {
                bytes_done: done.parse().ok()?,
                bytes_total: total.parse().ok()?,
            })
        }
        "loaded" => Notice::Loaded,
        "ready" => Notice::Ready,
        _ => return None,
    };
    words.next().is_none().then_some(notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_reads_what_its_child_prints() {
        let notices = [
            Notice::Bound(BoundAddresses {
                grpc: "127.0.0.1:4000".parse().unwrap(),
                http: "[::1]:4001".parse().unwrap(),
            }),
            Notice::Loading(LoadProgress {
                bytes_done: 7,
                bytes_total: 4096,
            }),
            Notice::Loaded,
            Notice::Ready,
        ];
        for notice in notices {
            assert_eq!(notice.to_string().parse(), Ok(notice));
        }
        for other in ["", "ready", "millrace: loading 7", "millrace: ready now"] {
            assert_eq!(other.parse::<Notice>(), Err(NotANotice), "{other}");
        }
    }
}
