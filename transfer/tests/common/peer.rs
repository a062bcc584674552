//! Peers that are processes of their own: the test's program again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use millrace_transfer::Grant;

use super::wait_until;

/// Which of the peers of its file a process is.
pub const IS_PEER: &str = "MILLRACE_TRANSFER_TEST_PEER";

/// A test program that runs its test `peer` alone, takes commands on its standard input and answers on its
/// standard output.
pub struct Peer {
    pub child: Child,
    pub input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(role: &str) -> Peer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["peer", "--exact", "--nocapture", "--test-threads=1"])
            .env(IS_PEER, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Peer {
            child,
            input,
            output,
        }
    }

    pub fn tell(&mut self, verb: &str, act: &str, grant: &Grant) {
        writeln!(self.input, "{verb} {act} {}", hex(&grant.to_bytes())).unwrap();
    }

    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the peer said nothing and ended"
            );
            if let Some(said) = line.trim().strip_prefix("peer: ") {
                return said.to_owned();
            }
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    pub fn wait_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait_until("the peer stops", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

/// What a peer answers.
pub fn say(line: &str) {
    // The test harness prints lines of its own.
    println!("\npeer: {line}");
    std::io::stdout().flush().unwrap();
}
