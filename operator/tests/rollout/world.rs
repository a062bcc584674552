//! A cluster of numbers: pools with groups, a pool controller that is late.

use std::collections::BTreeMap;

use millrace_operator::api::Role;
use millrace_operator::rollout::{Plan, Pool, Revision, Step, Strategy, Wanted, plan};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use crate::judge::complete;

#[derive(Debug, Clone)]
pub enum Event {
    /// The operator is asked, and killed after so many steps.
    Plan {
        steps: usize,
    },
    /// A pool's controller acts and counts.
    Sync(Index),
    Ready(Index),
    Unready(Index),
    Dies(Index),
    Drained(Index),
    Router(bool),
    Spec(Wanted),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Starting,
    Ready,
    Draining,
}

#[derive(Debug, Clone, Default)]
pub struct Live {
    replicas: u32,
    groups: Vec<Group>,
    /// What its controller said last, and of how many replicas.
    said: (u32, u32),
    outdated: bool,
}

impl Live {
    /// Groups that were not told to go.
    fn live(&self) -> u32 {
        let live = self.groups.iter().filter(|&&g| g != Group::Draining);
        live.count() as u32
    }

    pub fn exist(&self) -> u32 {
        let draining = self.groups.len() as u32 - self.live();
        self.replicas.max(self.live()) + draining
    }
}

type Key = (String, Role);

#[derive(Debug, Clone)]
pub struct World {
    pub limits: Strategy,
    pub wanted: Wanted,
    pub router_done: bool,
    pub pools: BTreeMap<Key, Live>,
    /// Revisions that were seen available.
    served: Vec<String>,
}

fn pick<T>(of: Vec<T>, at: Index) -> Option<T> {
    match of.len() {
        0 => None,
        n => of.into_iter().nth(at.index(n)),
    }
}

impl World {
    pub fn new(limits: Strategy, wanted: Wanted) -> World {
        World {
            limits,
            wanted,
            router_done: false,
            pools: BTreeMap::new(),
            served: Vec::new(),
        }
    }

    pub fn happens(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Plan { steps } => return self.plan(steps),
            Event::Sync(at) => {
                if let Some(key) = pick(self.pools.keys().cloned().collect(), at) {
                    self.sync(&key);
                }
            }
            Event::Ready(at) => self.turn(at, Group::Starting, Some(Group::Ready)),
            Event::Unready(at) => self.turn(at, Group::Ready, Some(Group::Starting)),
            Event::Dies(at) => self.turn(at, Group::Ready, None),
            Event::Drained(at) => self.turn(at, Group::Draining, None),
            // It is complete only once a worker of the wanted revision is there to be ready with.
            Event::Router(done) => {
                self.router_done = self.router_done || done && self.updated() > 0;
            }
            Event::Spec(wanted) => {
                self.router_done &= wanted.revision == self.wanted.revision;
                self.wanted = wanted;
            }
        }
        Ok(())
    }

    fn turn(&mut self, at: Index, from: Group, to: Option<Group>) {
        let mut found = Vec::new();
        for (key, pool) in &self.pools {
            if key.0 == "bad" && to == Some(Group::Ready) {
                continue;
            }
            found.extend(
                (0..pool.groups.len())
                    .filter(|&i| pool.groups[i] == from)
                    .map(|i| (key.clone(), i)),
            );
        }
        if let Some((key, i)) = pick(found, at) {
            let groups = &mut self.pools.get_mut(&key).unwrap().groups;
            match to {
                Some(to) => groups[i] = to,
                None => drop(groups.remove(i)),
            }
        }
    }

    fn sync(&mut self, key: &Key) {
        let pool = self.pools.get_mut(key).unwrap();
        for state in [Group::Starting, Group::Ready] {
            while pool.live() > pool.replicas {
                match pool.groups.iter_mut().find(|g| **g == state) {
                    Some(group) => *group = Group::Draining,
                    None => break,
                }
            }
        }
        // What drains does not keep others from coming: they get other ordinals.
        while pool.live() < pool.replicas {
            pool.groups.push(Group::Starting);
        }
        let ready = pool.groups.iter().filter(|&&g| g == Group::Ready).count();
        pool.said = (pool.groups.len() as u32, ready as u32);
        pool.outdated = false;
    }

    pub fn view(&self) -> BTreeMap<String, Revision> {
        let mut view: BTreeMap<String, Revision> = BTreeMap::new();
        for ((name, role), live) in &self.pools {
            let revision = view.entry(name.clone()).or_default();
            revision.served = self.served.contains(name);
            let pool = Some(Pool {
                replicas: live.replicas,
                groups: live.said.0,
                ready: live.said.1,
                deleting: false,
                outdated: live.outdated,
            });
            match role {
                Role::Prefill => revision.prefill = pool,
                Role::Decode => revision.decode = pool,
            }
        }
        view
    }

    pub fn decide(&self) -> Plan {
        plan(&self.wanted, self.limits, self.router_done, &self.view())
    }

    fn plan(&mut self, steps: usize) -> Result<(), TestCaseError> {
        for (name, revision) in self.view() {
            if self.available(&name, &revision) > 0 && !self.served.contains(&name) {
                self.served.push(name);
            }
        }
        let decision = self.decide();
        for step in decision.steps.into_iter().take(steps) {
            let before = self.clone();
            self.take(&step);
            self.judge(&before, &step)?;
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Create { revision, role } => {
                let key = (revision.clone(), *role);
                assert!(self.pools.insert(key, Live::default()).is_none());
            }
            Step::Scale {
                revision,
                role,
                from,
                to,
            } => {
                let pool = self.pools.get_mut(&(revision.clone(), *role)).unwrap();
                assert_eq!(pool.replicas, *from);
                pool.replicas = *to;
                pool.outdated = true;
            }
            Step::Delete { revision, role } => {
                let pool = self.pools.remove(&(revision.clone(), *role)).unwrap();
                assert!(pool.groups.is_empty() && pool.replicas == 0);
            }
        }
    }

    fn truly(&self, only: Option<&str>) -> u32 {
        let mut by: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
        for ((name, role), pool) in &self.pools {
            let ready = pool.groups.iter().filter(|&&g| g == Group::Ready).count() as u32;
            by.entry(name).or_default()[usize::from(*role == Role::Decode)] = ready;
        }
        let by = by
            .into_iter()
            .filter(|(name, _)| only.is_none_or(|only| only == *name));
        by.map(|(_, [prefill, decode])| {
            complete(&self.wanted, self.wanted.prefill.is_some(), prefill, decode)
        })
        .sum()
    }

    /// Pairs that serve, whether the operator knows it or not.
    pub fn serving(&self) -> u32 {
        self.truly(None)
    }

    fn updated(&self) -> u32 {
        self.truly(Some(&self.wanted.revision))
    }

    /// Nothing bad happens any more, and everything else does.
    pub fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..400 {
            self.plan(usize::MAX)?;
            for key in self.pools.keys().cloned().collect::<Vec<_>>() {
                let pool = self.pools.get_mut(&key).unwrap();
                pool.groups.retain(|&g| g != Group::Draining);
                if key.0 != "bad" {
                    pool.groups.iter_mut().for_each(|g| *g = Group::Ready);
                }
                self.sync(&key);
            }
            let all = self.wanted.prefill.unwrap_or(0).max(self.wanted.decode);
            self.router_done |= self.updated() > 0 || all == 0;
        }
        let there: Vec<(Key, u32, u32)> = self
            .pools
            .iter()
            .map(|(key, pool)| (key.clone(), pool.replicas, pool.said.1))
            .collect();
        let mut expected = Vec::new();
        for role in Role::ALL {
            if let Some(n) = self.wanted.of(role) {
                expected.push(((self.wanted.revision.clone(), role), n, n));
            }
        }
        prop_assert_eq!(there, expected, "{:?}", self);
        Ok(())
    }
}
