//! One child process: how it is started, what is read from it, how it is told to stop.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Split},
    process::{Child, Command},
    sync::{mpsc, watch},
    time::Instant,
};

use super::backoff::Backoff;
use millrace_worker::notice::Notice;

/// A role to run, and how to call it in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// `router`, `prefill-0`, `decode-1`.
    pub name: String,
    /// Subcommand and flags of this same binary.
    pub args: Vec<OsString>,
    /// What logs show, as RUST_LOG has it.
    pub log_filter: String,
}

#[derive(Debug)]
pub enum Event {
    Started,
    /// What a worker said of itself on standard output.
    Notice(Notice),
    /// A line of its log.
    Log(String),
    Exited(Exit),
}

#[derive(Debug)]
pub struct Exit {
    /// `was killed (SIGKILL)`, `exited with status 1`, `could not be started: ...`.
    pub how: String,
    /// `None`: it was told to stop, or will not be started again.
    pub restart_in: Option<Duration>,
}

/// What a child should do; changed by the supervisor, obeyed by the child's keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Run,
    /// SIGTERM; it finishes what it has.
    Stop,
    /// SIGKILL.
    Kill,
}

/// Runs `spec` again and again until it is ordered to stop; ends when no process is left.
pub async fn keep(
    index: usize,
    spec: Spec,
    events: mpsc::UnboundedSender<(usize, Event)>,
    mut orders: watch::Receiver<Order>,
) {
    let mut backoff = Backoff::default();
    // The supervisor holds the receiver until all keepers have ended.
    let tell = |event| drop(events.send((index, event)));
    while *orders.borrow_and_update() == Order::Run {
        let started = Instant::now();
        let how = match spawn(&spec) {
            Ok(child) => {
                tell(Event::Started);
                watch_over(child, &tell, &mut orders).await
            }
            Err(error) => format!("could not be started: {error}"),
        };
        if *orders.borrow() != Order::Run {
            return tell(Event::Exited(Exit {
                how,
                restart_in: None,
            }));
        }
        let delay = backoff.after(started.elapsed());
        tell(Event::Exited(Exit {
            how,
            restart_in: Some(delay),
        }));
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = orders.changed() => {}
        }
    }
}

/// Until the process has ended and everything it wrote was read. Says how it ended.
async fn watch_over(
    mut child: Child,
    tell: &impl Fn(Event),
    orders: &mut watch::Receiver<Order>,
) -> String {
    let mut logs = lines(child.stderr.take());
    let mut notices = lines(child.stdout.take());
    let (mut logs_open, mut notices_open) = (true, true);
    let mut exit = None;
    while exit.is_none() || logs_open || notices_open {
        tokio::select! {
            line = next(&mut logs), if logs_open => match line {
                Some(line) => tell(Event::Log(line)),
                None => logs_open = false,
            },
            line = next(&mut notices), if notices_open => match line {
                Some(line) => match line.parse() {
                    Ok(notice) => tell(Event::Notice(notice)),
                    Err(_) => tell(Event::Log(line)),
                },
                None => notices_open = false,
            },
            status = child.wait(), if exit.is_none() => exit = Some(match status {
                Ok(status) => describe(status),
                Err(error) => format!("could not be waited for: {error}"),
            }),
            changed = orders.changed(), if exit.is_none() => {
                let order = if changed.is_ok() { *orders.borrow() } else { Order::Kill };
                obey(&mut child, order);
            }
        }
    }
    exit.unwrap_or_default()
}

fn obey(child: &mut Child, order: Order) {
    let signal = match order {
        Order::Run => return,
        Order::Stop => libc::SIGTERM,
        Order::Kill => libc::SIGKILL,
    };
    // No id: it has been waited for already, and the number may be another process's by now.
    if let Some(pid) = child.id() {
        // SAFETY: kill takes plain numbers; the child has not been waited for, so the pid is still its.
        unsafe { libc::kill(pid as libc::pid_t, signal) };
    }
}

fn spawn(spec: &Spec) -> io::Result<Child> {
    let mut command = Command::new(program()?);
    command
        .arg0("millrace")
        .args(&spec.args)
        .env("RUST_LOG", &spec.log_filter)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal sends Ctrl-C to the whole foreground group; children stop in order instead.
        .process_group(0)
        .kill_on_drop(true);
    die_with_parent(&mut command);
    command.spawn()
}

/// This very binary, even if its file was replaced meanwhile: all roles are of one version.
#[cfg(target_os = "linux")]
fn program() -> io::Result<std::path::PathBuf> {
    Ok("/proc/self/exe".into())
}

#[cfg(not(target_os = "linux"))]
fn program() -> io::Result<std::path::PathBuf> {
    std::env::current_exe()
}

/// The kernel kills the child when the thread that started it ends, however it ends. `up` starts all
/// children from its main thread (a current-thread runtime), so that is when `up` itself ends.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let in_child = move || {
        // SAFETY: prctl and getppid take plain numbers and are async-signal-safe.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock, and calls async-signal-safe functions only.
    unsafe { command.pre_exec(in_child) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Splits bytes, not text: a line that is not UTF-8 must not stop the reading, or the child would block
/// on a full pipe.
fn lines<R: AsyncRead + Unpin>(pipe: Option<R>) -> Option<Split<BufReader<R>>> {
    pipe.map(|pipe| BufReader::new(pipe).split(b'\n'))
}

async fn next<R: AsyncRead + Unpin>(lines: &mut Option<Split<BufReader<R>>>) -> Option<String> {
    let line = lines.as_mut()?.next_segment().await.ok()??;
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(libc::SIGKILL)) => "was killed (SIGKILL)".into(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
