//! Random interleavings of grants, writes, announcements, revocations and reuse: bytes land only in
//! pages that are under the lease they were written for.

mod common;

use std::time::Duration;

use common::sides::{ALL, target_config};
use common::{Pool, pattern};
use millrace_transfer::{
    Grant, Initiator, InitiatorConfig, Layout, Lease, LeaseEvent, PageInitiator, PageTarget,
    PageWriter, Source, Target, TargetConfig, Transport,
};
use proptest::prelude::*;

const PAGE: usize = 24_001;
const PAGES: u32 = 12;

#[derive(Debug, Clone)]
enum Step {
    /// Leases up to so many of the free pages.
    Grant(usize),
    /// Queues a page of one of the open writers.
    Write(prop::sample::Index),
    /// Ends an open writer, waiting for it or dropping it.
    Finish(prop::sample::Index),
    Drop(prop::sample::Index),
    /// Ends a lease, however far its writer is.
    Revoke(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = any::<prop::sample::Index>;
    let step = prop_oneof![
        3 => (1usize..5).prop_map(Step::Grant),
        8 => any().prop_map(Step::Write),
        2 => any().prop_map(Step::Finish),
        1 => any().prop_map(Step::Drop),
        3 => any().prop_map(Step::Revoke),
    ];
    proptest::collection::vec(step, 1..60)
}

struct Open {
    lease: Lease,
    pages: Vec<u32>,
    writer: Option<Box<dyn PageWriter>>,
    given: usize,
}

struct World {
    pool: Pool,
    target: Target,
    initiator: Initiator,
    open: Vec<Open>,
    /// By page: what its owner put there when it was last its own.
    owned: Vec<Option<Vec<u8>>>,
    stamp: u64,
}

impl World {
    fn new(transport: Transport) -> World {
        let pool = Pool::new(PAGE, PAGES as usize);
        let config = TargetConfig {
            ring_bytes: 64 << 10,
            ..target_config()
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let target = Target::bind(address, pool.region.clone(), Layout::new(PAGE), config).unwrap();
        let config = InitiatorConfig {
            transport,
            checksums: true,
            ..InitiatorConfig::default()
        };
        let initiator = Initiator::new(Layout::new(PAGE), config).unwrap();
        let owned = vec![Some(vec![0; PAGE]); PAGES as usize];
        World {
            pool,
            target,
            initiator,
            open: Vec::new(),
            owned,
            stamp: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Grant(count) => self.grant(*count),
            Step::Revoke(which) if !self.open.is_empty() => {
                let open = self.open.swap_remove(which.index(self.open.len()));
                let ended = open.lease.revoke();
                self.reuse(ended.pages());
            }
            Step::Write(which) => {
                if let Some(open) = self.with_writer(which)
                    && open.given < open.pages.len()
                {
                    let page = pattern(open.lease.id(), open.given, PAGE);
                    // The lease lives, so nothing may go wrong.
                    open.writer
                        .as_mut()
                        .unwrap()
                        .write(open.given, Source::from_bytes(page))
                        .unwrap();
                    open.given += 1;
                }
            }
            Step::Finish(which) => {
                let Some(open) = self.with_writer(which) else {
                    return;
                };
                let id = open.lease.id();
                let whole = open.given == open.pages.len();
                let finished = open.writer.take().unwrap().finish(Vec::new());
                assert_eq!(finished.is_ok(), whole);
                if whole {
                    let at = self.open.iter().position(|open| open.lease.id() == id);
                    let open = self.open.swap_remove(at.expect("it is there"));
                    self.complete(open);
                }
            }
            Step::Drop(which) => {
                if let Some(open) = self.with_writer(which) {
                    open.writer = None;
                }
            }
            Step::Revoke(_) => {}
        }
    }

    fn with_writer(&mut self, which: &prop::sample::Index) -> Option<&mut Open> {
        let mut with: Vec<_> = self
            .open
            .iter_mut()
            .filter(|open| open.writer.is_some())
            .collect();
        (!with.is_empty()).then(|| with.swap_remove(which.index(with.len())))
    }

    fn grant(&mut self, count: usize) {
        let free = (0..PAGES).filter(|page| self.owned[*page as usize].is_some());
        let pages: Vec<u32> = free.take(count).collect();
        if pages.is_empty() {
            return;
        }
        let (lease, grant) = self.target.grant(&pages, None).unwrap();
        pages
            .iter()
            .for_each(|page| self.owned[*page as usize] = None);
        let grant = Grant::from_bytes(&grant.to_bytes()).unwrap();
        let writer = Some(self.initiator.open(&grant).unwrap());
        self.open.push(Open {
            lease,
            pages,
            writer,
            given: 0,
        });
    }

    fn complete(&mut self, open: Open) {
        let id = open.lease.id();
        assert!(matches!(
            open.lease.wait(Duration::ZERO),
            Some(LeaseEvent::Announced { .. })
        ));
        let ended = open.lease.complete().unwrap();
        for (index, page) in ended.pages().iter().enumerate() {
            assert!(
                self.pool.read(*page) == pattern(id, index, PAGE),
                "page {page} of lease {id}"
            );
        }
        self.reuse(ended.pages());
    }

    /// The pages are ours again: put something else there.
    fn reuse(&mut self, pages: &[u32]) {
        for page in pages {
            self.stamp += 1;
            let bytes = pattern(!self.stamp, 0, PAGE);
            self.pool.fill(*page, &bytes);
            self.owned[*page as usize] = Some(bytes);
        }
    }

    fn check(&self) {
        for (page, owned) in self.owned.iter().enumerate() {
            if let Some(owned) = owned {
                assert!(
                    self.pool.read(page as u32) == *owned,
                    "page {page} changed while nobody had it"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn bytes_land_only_under_their_lease(steps in steps(), way in 0..ALL.len()) {
        let mut world = World::new(ALL[way]);
        for step in &steps {
            world.step(step);
            world.check();
        }
        for open in std::mem::take(&mut world.open) {
            let ended = open.lease.revoke();
            world.reuse(ended.pages());
        }
        // Everything that is still on its way arrives, and lands nowhere.
        let World { pool, target, initiator, owned, .. } = world;
        drop(initiator);
        drop(target);
        for (page, owned) in owned.iter().enumerate() {
            prop_assert!(pool.read(page as u32) == *owned.as_ref().unwrap());
        }
    }
}
