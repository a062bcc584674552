//! One schedule: ranks, routers and a store, faults for a while, and then none.

use millrace_experts::group::Write;
use millrace_experts::{Member, Placement, RankId, Shape};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Flaw;
use crate::check::{Checked, Seen, Violation, ensure};
use crate::context::{Context, Event, Happening, Input, RouterInput, number};
use crate::rank::Process;
use crate::router::Router;
use crate::store::Store;

/// A link whose end is silent for this long is broken.
pub const SILENCE: u64 = 80_000;
/// Once nothing goes wrong any more, all has to be well by then.
const PATIENCE: u64 = 6_000_000;

pub struct World {
    pub cx: Context,
    pub shape: Shape,
    pub ranks: Vec<Option<Process>>,
    pub routers: Vec<Router>,
    pub store: Store,
    /// The store is the only router's memory.
    pub lone: bool,
    streams: u64,
    /// Between two faults, on average.
    pub pace: u64,
}

impl World {
    fn new(seed: u64, flaw: Flaw) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ranks = rng.random_range(2..=5);
        let experts = rng.random_range(3..=7);
        let redundant = rng.random_range(0..=2 * experts);
        let lone = flaw != Flaw::NoCompare && rng.random_bool(0.3);
        let shape = Shape::new(1, experts, ranks, redundant).expect("it is a shape");
        let pace = rng.random_range(8_000..120_000);
        let mut cx = Context::new(rng, flaw);
        let routers = (0..if lone { 1 } else { 2 })
            .map(|router| Router::new(router, 0, shape, &mut cx))
            .collect();
        World {
            cx,
            shape,
            ranks: (0..ranks).map(|_| None).collect(),
            routers,
            store: Store {
                up: true,
                ..Store::default()
            },
            lone,
            streams: 0,
            pace,
        }
    }

    fn begin(&mut self) {
        for rank in 0..self.ranks.len() {
            self.start(rank);
        }
        self.routers[0].leads = true;
        self.publish();
        self.cx.happens(100, Happening::Tick);
        self.cx.happens(5_000, Happening::Rows);
        self.cx.happens(20_000, Happening::Propose);
        let first = self.cx.rng.random_range(0..60_000);
        self.cx.happens(first, Happening::Fault);
    }

    /// A new life.
    pub fn start(&mut self, rank: usize) {
        if self.ranks[rank].is_some() {
            return;
        }
        let incarnation = self.cx.rng.random_range(1..u64::MAX);
        let me = Member {
            id: RankId { rank, incarnation },
            exchange: String::new(),
            grpc: String::new(),
        };
        let initial = Placement::initial(self.shape).expect("it is a shape");
        let live = initial.slots(0, rank).to_vec();
        self.ranks[rank] = Some(Process::new(me, live));
    }

    /// And the highest epoch number each was told of.
    fn lives(&self) -> Vec<(RankId, u64)> {
        let lives = self.ranks.iter().flatten();
        lives
            .map(|rank| (rank.id(), rank.lockstep.known()))
            .collect()
    }

    /// The store's watchers hear of it.
    pub fn publish(&mut self) {
        if !self.store.up {
            return;
        }
        for router in 0..self.routers.len() {
            let life = self.routers[router].life;
            let (revision, view) = (self.store.revision, self.store.view.clone());
            let input = RouterInput::View { revision, view };
            let delay = self.cx.delay();
            self.cx.later(
                delay,
                Event::Router {
                    router,
                    life,
                    input,
                },
            );
        }
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::Rank { id, input } => self.reach(id, input),
            Event::Router {
                router,
                life,
                input,
            } => {
                let router = &mut self.routers[router];
                if router.up && router.life == life {
                    router.input(input, &mut self.cx);
                }
                Ok(())
            }
            Event::Store {
                router,
                life,
                revision,
                write,
            } => self.compare_and_swap(router, life, revision, &write),
            Event::World(happening) => self.happen(happening),
        }
    }

    fn reach(&mut self, id: RankId, input: Input) -> Checked {
        let process = self.ranks[id.rank].as_mut().filter(|p| p.id() == id);
        let Some(process) = process else {
            return Ok(());
        };
        if let Input::Message {
            from, generation, ..
        } = &input
            && !self.cx.net.arrives(from.rank, id.rank, *generation)
        {
            return Ok(());
        }
        if process.paused_until > self.cx.now || !process.deferred.is_empty() {
            process.deferred.push_back(input);
            return Ok(());
        }
        process.input(input, &mut self.cx)?;
        self.tell(id.rank);
        Ok(())
    }

    /// What a rank has to say to its routers.
    fn tell(&mut self, rank: usize) {
        let lives: Vec<u64> = self.routers.iter().map(|router| router.life).collect();
        if let Some(process) = &mut self.ranks[rank] {
            process.tell(&lives, &mut self.cx);
        }
    }

    fn compare_and_swap(
        &mut self,
        router: usize,
        life: u64,
        revision: u64,
        write: &Write,
    ) -> Checked {
        // A lone router's memory is gone with it.
        if self.lone && self.routers[0].life != life {
            return Ok(());
        }
        let mut answer = None;
        if self.store.up {
            if revision == self.store.revision || self.cx.flaw == Flaw::NoCompare {
                if let Write::Commit(epoch) = write {
                    let before = self.store.view.epoch.clone();
                    let lives = self.lives();
                    self.cx.check.commit(epoch, before.as_ref(), &lives)?;
                }
                self.store.apply(write);
                self.publish();
            } else {
                self.cx.check.seen.lost_races += 1;
            }
            let is_lost = self.cx.faults && !self.lone && self.cx.rng.random_bool(0.05);
            answer = (!is_lost).then(|| (self.store.revision, self.store.view.clone()));
        }
        let delay = self.cx.delay();
        let input = RouterInput::Answer(answer);
        self.cx.later(
            delay,
            Event::Router {
                router,
                life,
                input,
            },
        );
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Checked {
        match happening {
            Happening::Tick => {
                self.connect();
                self.attach();
                self.cx.happens(4_000, Happening::Tick);
            }
            Happening::Rows if self.cx.faults => {
                self.arrive();
                let delay = self.cx.rng.random_range(1_000..30_000);
                self.cx.happens(delay, Happening::Rows);
            }
            Happening::Propose if self.cx.faults => {
                for router in self.routers.iter_mut().filter(|r| r.up && r.leads) {
                    router.propose(&mut self.cx);
                }
                let delay = self.cx.rng.random_range(2_000..60_000);
                self.cx.happens(delay, Happening::Propose);
            }
            Happening::Fault if self.cx.faults => {
                self.fault();
                let delay = self.cx.rng.random_range(0..2 * self.pace);
                self.cx.happens(delay, Happening::Fault);
            }
            Happening::Rows | Happening::Propose | Happening::Fault => {}
            Happening::Break { pair, generation } => self.break_link(pair, generation, 5_000),
            Happening::Resume(id) => return self.resume(id),
            Happening::Start(rank) => self.start(rank),
            Happening::RouterUp(router) => self.router_up(router),
            Happening::StoreUp => {
                self.store.up = true;
                self.publish();
            }
        }
        Ok(())
    }

    fn arrive(&mut self) {
        let rank = self.cx.rng.random_range(0..self.ranks.len());
        let rows = self.cx.rng.random_range(1..6);
        if let Some(process) = &self.ranks[rank] {
            self.cx.deliver(process.id(), 0, Input::Rows(rows));
        }
    }

    fn connect(&mut self) {
        let now = self.cx.now;
        self.cx.net.partitions.retain(|_, until| *until > now);
        for high in 1..self.ranks.len() {
            for low in 0..high {
                let (Some(a), Some(b)) = (&self.ranks[low], &self.ranks[high]) else {
                    continue;
                };
                let (a_id, b_id) = (a.id(), b.id());
                let awake = a.paused_until <= now && b.paused_until <= now;
                let up = self.cx.net.get(low, high);
                let up = up.is_some_and(|link| !link.broken && link.ends == [a_id, b_id]);
                let apart = self.cx.net.partitions.contains_key(&(low, high));
                if up || apart || !awake || !a.knows(b_id) || !b.knows(a_id) {
                    continue;
                }
                if self.cx.rng.random_bool(0.4) {
                    continue;
                }
                let arrivals = [now + self.cx.delay(), now + self.cx.delay()];
                let generation = self.cx.net.connect(a_id, b_id, arrivals);
                for (id, peer, at) in [(a_id, b_id, arrivals[0]), (b_id, a_id, arrivals[1])] {
                    let input = Input::Open { peer, generation };
                    self.cx.at(at, Event::Rank { id, input });
                }
            }
        }
    }

    fn attach(&mut self) {
        for rank in 0..self.ranks.len() {
            for router in 0..self.routers.len() {
                let Some(process) = &mut self.ranks[rank] else {
                    continue;
                };
                let awake = process.paused_until <= self.cx.now;
                if !self.routers[router].up || !awake || process.streams.contains_key(&router) {
                    continue;
                }
                if self.cx.rng.random_bool(0.5) {
                    continue;
                }
                self.streams += 1;
                process.streams.insert(router, (self.streams, None));
                self.tell(rank);
            }
        }
    }

    /// Both ends hear of it, each in its own time.
    pub fn break_link(&mut self, pair: (usize, usize), generation: u64, within: u64) {
        let cut = [self.cx.rng.random(), self.cx.rng.random()];
        let Some(link) = self.cx.net.get(pair.0, pair.1) else {
            return;
        };
        if link.generation != generation || link.broken {
            return;
        }
        link.broken = true;
        link.cut = cut;
        let ([a, b], opens) = (link.ends, link.opens);
        for (id, peer, opens) in [(a, b, opens[0]), (b, a, opens[1])] {
            let at = self.cx.now + self.cx.rng.random_range(0..within);
            let input = Input::Lost { peer, generation };
            self.cx.at(at.max(opens + 1), Event::Rank { id, input });
        }
    }

    fn resume(&mut self, id: RankId) -> Checked {
        loop {
            let process = self.ranks[id.rank].as_mut().filter(|p| p.id() == id);
            let Some(process) = process.filter(|p| p.paused_until <= self.cx.now) else {
                return Ok(());
            };
            let Some(input) = process.deferred.pop_front() else {
                self.tell(id.rank);
                return Ok(());
            };
            process.input(input, &mut self.cx)?;
        }
    }

    /// Every rank is a member of the store's epoch, has adopted it and has nothing left to do.
    fn is_well(&self) -> bool {
        let Some(epoch) = &self.store.view.epoch else {
            return false;
        };
        let well = |process: &Process| {
            process.queue == 0
                && number(process.lockstep.adopted()) == epoch.number
                && epoch.member(process.id()).is_some()
        };
        self.ranks
            .iter()
            .all(|rank| rank.as_ref().is_some_and(well))
    }

    fn run_until(
        &mut self,
        end: u64,
        mut stop: impl FnMut(&World) -> bool,
    ) -> Result<bool, Violation> {
        while let Some(event) = self.cx.next() {
            self.handle(event)?;
            if self.cx.now >= end {
                return Ok(false);
            }
            if stop(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stuck(&self) -> Violation {
        let ranks: Vec<String> = self.ranks.iter().flatten().map(Process::describe).collect();
        let routers: Vec<String> = self.routers.iter().map(Router::describe).collect();
        let (ranks, routers) = (ranks.join("\n"), routers.join("\n"));
        Violation(format!("it does not recover:\n{ranks}\n{routers}"))
    }

    fn schedule(&mut self) -> Checked {
        self.begin();
        let end = self.cx.rng.random_range(200_000..1_000_000);
        self.run_until(end, |_| false)?;
        self.heal()?;
        let mut steps = 0;
        // Twice: what was under way when faults ended may still break links and cost a rank its place.
        for _ in 0..2 {
            if !self.run_until(self.cx.now + PATIENCE, World::is_well)? {
                return Err(self.stuck());
            }
            self.run_until(self.cx.now + 2 * SILENCE, |_| false)?;
            steps = self.cx.check.seen.steps;
            self.arrive();
            // It serves: whatever arrives is computed.
            let has_worked = |world: &World| world.is_well() && world.cx.check.seen.steps > steps;
            self.run_until(self.cx.now + PATIENCE, has_worked)?;
        }
        if self.cx.check.seen.steps == steps {
            return Err(self.stuck());
        }
        // And then it sleeps.
        self.run_until(self.cx.now + 200_000, |_| false)?;
        let sent = self.cx.sent;
        self.run_until(self.cx.now + 100_000, |_| false)?;
        ensure!(sent == self.cx.sent, "an idle group talks");
        Ok(())
    }
}

/// # Errors
/// What did not hold.
pub fn simulate(seed: u64, flaw: Flaw) -> Result<Seen, Violation> {
    let mut world = World::new(seed, flaw);
    world.schedule()?;
    Ok(world.cx.check.seen)
}
