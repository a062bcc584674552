//! The engine's thread with tiny-r1, and no wire.

use std::{
    convert::Infallible,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use millrace_engine::{Engine, EngineConfig, Kind, LeasedPages, Reject, SamplingParams};
use millrace_kernels::cpu::CpuBackend;
use millrace_model::checkpoint::Checkpoint;
use millrace_worker::{
    Role,
    engine::{EngineHandle, EngineMonitor, EngineThread, RequestEvent, SubmitError, start},
    metrics::Metrics,
};

fn started<R: Send + 'static>(
    reserved: impl FnMut(LeasedPages, usize) -> R + Send + 'static,
) -> (EngineHandle<R>, EngineMonitor, EngineThread) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-r1");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = EngineConfig {
        kv_pages: 128,
        ..EngineConfig::default()
    };
    let engine = Engine::load(CpuBackend::new(1), &checkpoint, config, &mut |_| {}).unwrap();
    let metrics = Metrics::new(millrace_telemetry::Registry::new(), "tiny-r1", Role::Decode);
    start(engine, metrics.steps().unwrap(), reserved).unwrap()
}

fn nothing_is_reserved() -> (EngineHandle<Infallible>, EngineMonitor, EngineThread) {
    started(|_, _| unreachable!("no request asks for it"))
}

fn sampling(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

async fn until_idle(monitor: &mut EngineMonitor) {
    loop {
        let status = monitor.state().status;
        let idle = status.running + status.waiting + status.remote == 0;
        if idle && status.free_pages == status.total_pages {
            return;
        }
        monitor.changed().await;
    }
}

#[tokio::test]
async fn a_dropped_request_is_aborted_and_others_go_on() {
    let (engine, mut monitor, thread) = nothing_is_reserved();
    let submit = |max_tokens| {
        let tokens = (10..40).collect();
        engine.submit(tokens, 30, sampling(max_tokens), String::new(), Kind::Whole)
    };
    let mut dropped = submit(3000).await.unwrap();
    let mut kept = submit(50).await.unwrap();
    assert!(matches!(
        dropped.next().await,
        Some(RequestEvent::Started(_))
    ));
    assert!(matches!(
        dropped.next().await,
        Some(RequestEvent::Output(_))
    ));
    drop(dropped);
    let mut tokens = 0;
    loop {
        match kept.next().await.expect("the engine runs") {
            RequestEvent::Started(_) => assert_eq!(tokens, 0),
            RequestEvent::Output(output) => {
                tokens += output.tokens.len();
                if output.finish.is_some() {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tokens, 50);
    drop(kept);
    // A submission that its caller gave up before the engine answered is no request either.
    drop(tokio::time::timeout(std::time::Duration::ZERO, submit(3000)).await);
    until_idle(&mut monitor).await;
    drop(engine);
    thread.join();
}

#[tokio::test]
async fn a_stopped_engine_ends_what_runs_and_takes_nothing_new() {
    let (engine, _monitor, thread) = nothing_is_reserved();
    let submit = |tokens: Vec<u32>| {
        let length = tokens.len();
        engine.submit(tokens, length, sampling(3000), String::new(), Kind::Whole)
    };
    let rejected = submit(Vec::new()).await.err();
    assert!(matches!(
        rejected,
        Some(SubmitError::Rejected(Reject::EmptyPrompt))
    ));
    let mut running = submit((10..40).collect()).await.unwrap();
    running.next().await.unwrap();
    engine.stop();
    while running.next().await.is_some() {}
    let refused = submit((10..40).collect()).await.err();
    assert!(matches!(refused, Some(SubmitError::Stopped)));
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
}

const CHILD: &str = "MILLRACE_TEST_PANIC_CHILD";

/// A worker whose engine is gone must not look alive: the process ends. So it is tried in a child.
#[tokio::test]
async fn a_panic_on_the_engines_thread_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        let (engine, _monitor, _thread) = started::<()>(|_, _| panic!("on purpose"));
        let tokens = (10..200).collect();
        let decode = engine.submit(tokens, 190, sampling(4), String::new(), Kind::Decode);
        let mut request = decode.await.unwrap();
        request.next().await;
        // Not reached: whoever waits for the engine waits in vain.
        return;
    }
    let name = "a_panic_on_the_engines_thread_ends_the_process";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    const SIGABRT: i32 = 6;
    assert_eq!(child.signal(), Some(SIGABRT), "{child}");
}
