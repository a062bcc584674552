//! One MoE layer while it is being changed: who hosts what, and how much each replica computes.

use crate::choice::fill::level;

/// Live ranks only, numbered without gaps. A *place* is `rank * slots + slot`.
#[derive(Clone)]
pub(super) struct Layer<'a> {
    /// `[experts]`.
    weights: &'a [f64],
    /// `[ranks]`: the failure domain of each.
    domains: &'a [usize],
    slots: usize,
    /// `[rank][slot]` as it is now: what a rank has it need not load.
    home: &'a [u32],
    /// `[rank][slot]`.
    table: Vec<u32>,
    /// `[ranks]`: experts that each has to load.
    fetched: Vec<usize>,
    /// `[rank][slot]`: load of each replica. 0 for an expert's second replica on one rank, which takes
    /// nothing off it and is as good as an empty slot.
    shares: Vec<f64>,
    /// `[ranks]`.
    loads: Vec<f64>,
    /// `[experts]`: the place on each rank that hosts the expert.
    hosts: Vec<Vec<usize>>,
    /// For one pour: the ground under an expert's water.
    ground: Vec<f64>,
    sorted: Vec<f64>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(
        weights: &'a [f64],
        domains: &'a [usize],
        slots: usize,
        home: &'a [u32],
        table: Vec<u32>,
    ) -> Layer<'a> {
        let ranks = 0..domains.len();
        let mut layer = Layer {
            weights,
            domains,
            slots,
            home,
            fetched: ranks
                .map(|rank| fetched(home, &table, slots, rank))
                .collect(),
            shares: vec![0.0; table.len()],
            loads: vec![0.0; domains.len()],
            hosts: vec![Vec::new(); weights.len()],
            table,
            ground: Vec::new(),
            sorted: Vec::new(),
        };
        for place in 0..layer.table.len() {
            layer.host(place);
        }
        for expert in 0..weights.len() {
            layer.pour(expert);
        }
        layer
    }

    /// `[ranks]`: experts that each has to load.
    pub(super) fn fetched(&self) -> &[usize] {
        &self.fetched
    }

    pub(super) fn is_home(&self, expert: usize, rank: usize) -> bool {
        self.home[rank * self.slots..][..self.slots].contains(&(expert as u32))
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn weights(&self) -> &'a [f64] {
        self.weights
    }

    pub(super) fn table(&self) -> &[u32] {
        &self.table
    }

    pub(super) fn expert(&self, place: usize) -> usize {
        self.table[place] as usize
    }

    pub(super) fn share(&self, place: usize) -> f64 {
        self.shares[place]
    }

    /// `[ranks]`.
    pub(super) fn domain_of_ranks(&self) -> &'a [usize] {
        self.domains
    }

    /// `[ranks]`.
    pub(super) fn loads(&self) -> &[f64] {
        &self.loads
    }

    pub(super) fn hosts(&self, expert: usize) -> &[usize] {
        &self.hosts[expert]
    }

    pub(super) fn is_on(&self, expert: usize, rank: usize) -> bool {
        self.slots_of(rank).contains(&(expert as u32))
    }

    fn slots_of(&self, rank: usize) -> &[u32] {
        &self.table[rank * self.slots..][..self.slots]
    }

    /// The most loaded rank, the first of several.
    pub(super) fn hottest(&self) -> (usize, f64) {
        let mut hottest = (0, f64::NEG_INFINITY);
        for (rank, &load) in self.loads.iter().enumerate() {
            if load > hottest.1 {
                hottest = (rank, load);
            }
        }
        hottest
    }

    /// Whether its expert has a replica elsewhere, so that the slot may be given away.
    pub(super) fn is_spare(&self, place: usize) -> bool {
        let hosts = &self.hosts[self.expert(place)];
        hosts.len() > 1 || hosts.first().is_some_and(|&host| host != place)
    }

    /// Failure domains an expert would be in (2 stands for all above) with its replica taken from
    /// `without` and one added at `with`.
    pub(super) fn domains(
        &self,
        expert: usize,
        without: Option<usize>,
        with: Option<usize>,
    ) -> usize {
        let hosts = self.hosts[expert].iter().copied();
        let mut first = None;
        for place in hosts.filter(|&host| Some(host) != without).chain(with) {
            let domain = self.domains[place / self.slots];
            match first {
                None => first = Some(domain),
                Some(first) if first != domain => return 2,
                Some(_) => {}
            }
        }
        usize::from(first.is_some())
    }

    /// Gives a slot to another expert.
    pub(super) fn replace(&mut self, place: usize, expert: usize) {
        let old = self.expert(place);
        self.evict(place);
        self.table[place] = expert as u32;
        self.host(place);
        self.refetch(place / self.slots);
        self.pour(old);
        self.pour(expert);
    }

    /// Exchanges the experts of two places on two ranks. What each replica computes goes with it.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        let shares = [self.shares[a], self.shares[b]];
        let stood = [a, b].map(|place| self.hosts[self.expert(place)].contains(&place));
        self.evict(a);
        self.evict(b);
        self.table.swap(a, b);
        self.host(a);
        self.host(b);
        self.refetch(a / self.slots);
        self.refetch(b / self.slots);
        for (place, share, stood) in [(b, shares[0], stood[0]), (a, shares[1], stood[1])] {
            let expert = self.expert(place);
            if stood && self.hosts[expert].contains(&place) && self.covers(expert, share) {
                self.shares[place] = share;
                self.loads[place / self.slots] += share;
            } else {
                self.pour(expert); // a twin has what it computed, or had
            }
        }
    }

    /// Whether an expert's replicas compute all of it, with `share` besides what they have.
    fn covers(&self, expert: usize, share: f64) -> bool {
        let shares = self.hosts[expert].iter().map(|&host| self.shares[host]);
        (shares.sum::<f64>() + share - self.weights[expert]).abs() <= self.weights[expert] * 1e-9
    }

    /// Gives each replica an even part of its expert's load.
    pub(super) fn split_evenly(&mut self) {
        self.loads.fill(0.0);
        for (hosts, weight) in self.hosts.iter().zip(self.weights) {
            for &host in hosts {
                self.shares[host] = weight / hosts.len() as f64;
                self.loads[host / self.slots] += self.shares[host];
            }
        }
    }

    /// Pours every expert with a choice anew until loads stand still: no sweep moves more than `settled`.
    pub(super) fn settle(&mut self, sweeps: usize, settled: f64) {
        for _ in 0..sweeps {
            let mut moved = 0.0f64;
            for expert in 0..self.weights.len() {
                if (2..self.domains.len()).contains(&self.hosts[expert].len()) {
                    moved = moved.max(self.pour(expert));
                }
            }
            if moved <= settled {
                break;
            }
        }
    }

    /// How high the water of `expert` would stand on its hosts (but `without`, and with another rank
    /// whose load is then `with` besides), or the highest of them where nothing flows.
    pub(super) fn level_if(
        &mut self,
        expert: usize,
        without: Option<usize>,
        with: Option<f64>,
    ) -> f64 {
        let weight = self.weights[expert];
        let own = weight / self.domains.len() as f64;
        self.sorted.clear();
        for &host in &self.hosts[expert] {
            if Some(host) != without {
                let ground = self.loads[host / self.slots] - self.shares[host] + own;
                self.sorted.push(ground);
            }
        }
        self.sorted.extend(with.map(|load| load + own));
        let rest = (weight - own * self.sorted.len() as f64).max(0.0);
        let highest = self.sorted.iter().copied().fold(0.0, f64::max);
        level(&mut self.sorted, rest).max(highest)
    }

    /// Spreads an expert's load over its hosts while all others stand still. The most that moved.
    fn pour(&mut self, expert: usize) -> f64 {
        let hosts = &self.hosts[expert];
        let weight = self.weights[expert];
        let own = weight / self.domains.len() as f64;
        self.ground.clear();
        let ground = |&host: &usize| self.loads[host / self.slots] - self.shares[host];
        self.ground.extend(hosts.iter().map(ground));
        self.sorted.clear();
        self.sorted
            .extend(self.ground.iter().map(|ground| ground + own));
        let rest = (weight - own * hosts.len() as f64).max(0.0);
        let level = level(&mut self.sorted, rest);
        let mut moved = 0.0f64;
        for (&host, &ground) in hosts.iter().zip(&self.ground) {
            let share = own.max(level - ground);
            moved = moved.max((share - self.shares[host]).abs());
            self.shares[host] = share;
            self.loads[host / self.slots] = ground + share;
        }
        moved
    }

    fn refetch(&mut self, rank: usize) {
        self.fetched[rank] = fetched(self.home, &self.table, self.slots, rank);
    }

    fn host(&mut self, place: usize) {
        let (expert, rank) = (self.expert(place), place / self.slots);
        let hosts = &mut self.hosts[expert];
        if hosts.iter().all(|&host| host / self.slots != rank) {
            hosts.push(place);
        }
    }

    fn evict(&mut self, place: usize) {
        let (expert, rank) = (self.expert(place), place / self.slots);
        let Some(at) = self.hosts[expert].iter().position(|&host| host == place) else {
            return; // a second replica on its rank: nothing stands there
        };
        let twin = (rank * self.slots..(rank + 1) * self.slots)
            .find(|&other| other != place && self.expert(other) == expert);
        let share = std::mem::take(&mut self.shares[place]);
        if let Some(twin) = twin {
            self.hosts[expert][at] = twin;
            self.shares[twin] = share;
        } else {
            self.hosts[expert].swap_remove(at);
            self.loads[rank] -= share;
        }
    }
}

/// Experts in `table` that `rank` does not have in `home`. Each is loaded once, however many slots it
/// gets.
pub(super) fn fetched(home: &[u32], table: &[u32], slots: usize, rank: usize) -> usize {
    let [home, table] = [home, table].map(|all| &all[rank * slots..][..slots]);
    let new =
        |(at, expert): &(usize, &u32)| !home.contains(expert) && !table[..*at].contains(expert);
    table.iter().enumerate().filter(new).count()
}
