//! What goes wrong, and how all of it ends.

use millrace_experts::RankId;
use rand::Rng;

use crate::check::Checked;
use crate::context::{Event, Happening, RouterInput};
use crate::net::pair;
use crate::router::Router;
use crate::world::{SILENCE, World};

impl World {
    pub fn fault(&mut self) {
        let ranks = self.ranks.len();
        let rank = self.cx.rng.random_range(0..ranks);
        let other = (rank + self.cx.rng.random_range(1..ranks)) % ranks;
        match self.cx.rng.random_range(0..14) {
            0..3 => self.break_between(rank, other, 10_000),
            3 => self.partition(rank, other),
            4..7 => self.kill(rank),
            7 | 8 => self.pause(rank),
            9 => self.hang_up(rank),
            10 => self.router_down(),
            11 => {
                self.store.up = self.lone;
                let delay = self.cx.rng.random_range(1_000..300_000);
                self.cx.happens(delay, Happening::StoreUp);
            }
            _ => self.elect(),
        }
    }

    /// The last link between them, if there is one.
    fn break_between(&mut self, a: usize, b: usize, within: u64) {
        if let Some(link) = self.cx.net.get(a, b) {
            let generation = link.generation;
            self.break_link(pair(a, b), generation, within);
        }
    }

    fn partition(&mut self, a: usize, b: usize) {
        let until = self.cx.now + self.cx.rng.random_range(1_000..400_000);
        self.cx.net.partitions.insert(pair(a, b), until);
        self.break_between(a, b, SILENCE);
    }

    fn kill(&mut self, rank: usize) {
        let Some(process) = self.ranks[rank].take() else {
            return;
        };
        for (pair, generation) in self.cx.net.of(rank) {
            self.break_link(pair, generation, 3_000);
        }
        let id = process.id();
        for (router, (stream, _)) in process.streams {
            self.detach(router, stream, id);
        }
        let delay = self.cx.rng.random_range(1_000..200_000);
        self.cx.happens(delay, Happening::Start(rank));
    }

    fn detach(&mut self, router: usize, stream: u64, id: RankId) {
        let life = self.routers[router].life;
        let delay = self.cx.delay();
        let input = RouterInput::Detach { stream, id };
        self.cx.later(
            delay,
            Event::Router {
                router,
                life,
                input,
            },
        );
    }

    /// Stopped: its streams look open, its links fall silent.
    fn pause(&mut self, rank: usize) {
        let length = match self.cx.rng.random_bool(0.5) {
            true => self.cx.rng.random_range(1_000..SILENCE),
            false => self.cx.rng.random_range(SILENCE..400_000),
        };
        let until = self.cx.now + length;
        let Some(process) = &mut self.ranks[rank] else {
            return;
        };
        process.paused_until = process.paused_until.max(until);
        let id = process.id();
        self.cx.happens(length, Happening::Resume(id));
        if length > SILENCE {
            for (pair, generation) in self.cx.net.of(rank) {
                let delay = SILENCE + self.cx.rng.random_range(0..10_000);
                let broken = Happening::Break { pair, generation };
                self.cx.happens(delay, broken);
            }
        }
    }

    /// One stream to one router breaks.
    fn hang_up(&mut self, rank: usize) {
        let router = self.cx.rng.random_range(0..self.routers.len());
        let Some(process) = &mut self.ranks[rank] else {
            return;
        };
        let id = process.id();
        if let Some(&(stream, _)) = process.streams.get(&router) {
            process.hang_up(router);
            self.detach(router, stream, id);
        }
    }

    fn router_down(&mut self) {
        let router = self.cx.rng.random_range(0..self.routers.len());
        self.routers[router].up = false;
        self.routers[router].life += 1;
        for process in self.ranks.iter_mut().flatten() {
            process.hang_up(router);
        }
        if self.lone {
            self.store.forget();
        }
        let delay = self.cx.rng.random_range(1_000..100_000);
        self.cx.happens(delay, Happening::RouterUp(router));
    }

    pub fn router_up(&mut self, router: usize) {
        if self.routers[router].up {
            return;
        }
        let life = self.routers[router].life;
        self.routers[router] = Router::new(router, life, self.shape, &mut self.cx);
        self.routers[router].leads = self.lone || self.cx.rng.random();
        self.publish();
    }

    /// None, one or both believe to lead.
    fn elect(&mut self) {
        for router in 0..self.routers.len() {
            self.routers[router].leads = self.lone || self.cx.rng.random();
            if self.routers[router].up {
                self.routers[router].settle(&mut self.cx);
            }
        }
    }

    /// From now on all goes well.
    pub fn heal(&mut self) -> Checked {
        self.cx.faults = false;
        self.cx.net.partitions.clear();
        for rank in 0..self.ranks.len() {
            if let Some(process) = &mut self.ranks[rank] {
                process.paused_until = self.cx.now;
                let id = process.id();
                self.cx.happens(0, Happening::Resume(id));
            }
            self.start(rank);
        }
        self.store.up = true;
        for router in 0..self.routers.len() {
            self.router_up(router);
            self.routers[router].leads = router == 0;
            self.routers[router].settle(&mut self.cx);
        }
        self.publish();
        Ok(())
    }
}
