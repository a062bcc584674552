//! All children of one deployment: started together, ordered about in groups.

use std::ops::Range;

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::child::{self, Event, Order, Spec};

/// The processes that `up` looks after. Dropping it kills them.
pub struct Deployment {
    names: Vec<String>,
    orders: Vec<watch::Sender<Order>>,
    /// One keeper a child; it restarts its child until ordered otherwise.
    _keepers: JoinSet<()>,
}

/// What the children of a deployment do and say.
pub struct Events(mpsc::UnboundedReceiver<(usize, Event)>);

impl Events {
    /// The next event and whose it is. Pends for ever once all children have ended.
    pub async fn next(&mut self) -> (usize, Event) {
        match self.0.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Deployment {
    /// Starts every child at once: workers wait for their router by themselves.
    pub fn start(specs: Vec<Spec>) -> (Deployment, Events) {
        let (sender, events) = mpsc::unbounded_channel();
        let mut deployment = Deployment {
            names: specs.iter().map(|spec| spec.name.clone()).collect(),
            orders: Vec::new(),
            _keepers: JoinSet::new(),
        };
        for (index, spec) in specs.into_iter().enumerate() {
            let (order, orders) = watch::channel(Order::Run);
            deployment.orders.push(order);
            deployment
                ._keepers
                .spawn(child::keep(index, spec, sender.clone(), orders));
        }
        (deployment, Events(events))
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// All children's indices: the router is 0, the workers follow.
    pub fn all(&self) -> Range<usize> {
        0..self.names.len()
    }

    pub fn workers(&self) -> Range<usize> {
        1..self.names.len()
    }

    pub fn order(&self, children: Range<usize>, order: Order) {
        for sender in &self.orders[children] {
            // No receiver: that child has ended for good.
            let _ = sender.send(order);
        }
    }

    /// Whether any of these still has a keeper, and so perhaps a process.
    pub fn any_left(&self, children: Range<usize>) -> bool {
        self.orders[children].iter().any(|order| !order.is_closed())
    }

    /// Returns once none of `children` is left.
    pub async fn ended(&self, children: Range<usize>) {
        for order in &self.orders[children] {
            order.closed().await;
        }
    }
}
