//! Steps allocate nothing once their buffers have grown. A program of its own: it counts every
//! thread's allocations.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::*;
use millrace_engine::exchange::{ExpertExchange, Parcel};
use millrace_exchange::Mesh;
use millrace_experts::RankId;
use millrace_kernels::Backend;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn steps_allocate_nothing() {
    let ids: Vec<RankId> = (0..3).map(|rank| life(rank, 1)).collect();
    let bind = |id: &RankId| {
        let mut config = config(*id, LIMITS);
        // No heartbeat during the test, which may allocate.
        config.heartbeat = Duration::from_secs(60);
        config.silence = Duration::from_secs(600);
        Mesh::bind(config, Arc::new(|| {})).unwrap()
    };
    let meshes: Vec<Mesh> = ids.iter().map(bind).collect();
    let members: Vec<_> = ids
        .iter()
        .zip(&meshes)
        .map(|(id, mesh)| member(*id, mesh.address()))
        .collect();
    for mesh in &meshes {
        mesh.set_peers(&members);
    }
    for mesh in &meshes {
        until("linked", || mesh.linked().len() == 2);
    }
    let together = Barrier::new(3);
    let (ids, together) = (&ids, &together);
    thread::scope(|scope| {
        for mesh in &meshes {
            scope.spawn(move || {
                let cpu = backend();
                let load = Load::even(&[5, 0, 7], 1, &LIMITS, 1);
                let mut collected = vec![Parcel::default(); 3];
                let [mut sent, mut received, mut returned] =
                    [(); 3].map(|()| cpu.tensor(3 * LIMITS.rows, LIMITS.hidden));
                cpu.write(&load.values, &mut sent);
                let mut before = 0;
                for number in 0..400 {
                    if number == 200 {
                        together.wait();
                        before = ALLOCATIONS.load(SeqCst);
                        together.wait();
                    }
                    let mut exchange = mesh.exchange(1, number, ids, 3);
                    for layer in 0..3 {
                        exchange.dispatch(cpu, layer, &load.parcels, &sent).unwrap();
                        exchange
                            .collect(cpu, layer, &mut collected, &mut received)
                            .unwrap();
                        exchange.respond(cpu, layer, &collected, &received).unwrap();
                        exchange
                            .combine(cpu, layer, &load.parcels, &mut returned)
                            .unwrap();
                    }
                }
                let after = ALLOCATIONS.load(SeqCst);
                // Nobody ends, which may allocate, before all have looked.
                together.wait();
                // Threads that take turns in a new way may need, and keep, one buffer more.
                assert!(after - before < 48, "{} allocations", after - before);
            });
        }
    });
}
