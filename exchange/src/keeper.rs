//! The mesh's own thread: heartbeats out, silence noticed, connections let in.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::LinkError;
use crate::greeter::greet;
use crate::roster::Roster;
use crate::socket::{self, READABLE};

/// How long to leave a listener alone that cannot accept (no descriptors left).
const RECOVER: Duration = Duration::from_millis(10);

/// Until the roster is closed.
pub(crate) fn keep(roster: &Arc<Roster>, listener: &TcpListener) {
    // Looks twice a heartbeat, so that silence is noticed half a heartbeat late at most.
    let tick = roster.config.heartbeat / 2;
    let mut last = Instant::now();
    let mut beats = false;
    while !roster.is_closed() {
        let left = (last + tick).saturating_duration_since(Instant::now());
        if left.is_zero() {
            // If this process was stopped itself, that time was nobody's silence.
            let elapsed = last.elapsed().min(tick * 2);
            last = Instant::now();
            beats = !beats;
            look_after_links(roster, elapsed, beats);
        } else {
            socket::wait(listener.as_raw_fd(), READABLE, left);
            accept(roster, listener);
        }
    }
}

fn look_after_links(roster: &Roster, elapsed: Duration, beats: bool) {
    for link in roster.links() {
        let silence = link.silence(elapsed);
        if silence >= roster.config.silence {
            roster.break_link(&link, LinkError::Silent(silence));
        } else if beats && let Err(why) = link.beat() {
            roster.break_link(&link, why);
        }
    }
}

fn accept(roster: &Arc<Roster>, listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => greet(roster, stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => return std::thread::sleep(RECOVER),
        }
    }
}
