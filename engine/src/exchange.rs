//! Expert parallelism as the forward pass sees it: rows go to the ranks that hold their experts, and
//! come back computed.
//!
//! One exchange is four calls, the same on every rank and in every MoE layer of a step, also where a
//! rank has no rows:
//!
//! ```text
//! dispatch ─▶ (shared experts meanwhile) ─▶ collect ─▶ the experts' products ─▶ respond ─▶ combine
//! ```
//!
//! Sizes travel before data, and what goes to one rank is contiguous, so that an implementation may
//! post one write a destination (NVLink, NCCL) as well as one frame (TCP). Buffers are the forward
//! pass's own and reused.
//!
//! Results return one row a (row, expert) and unweighted; the home rank weights and adds them in
//! order of choice. It costs bandwidth against adding up at the far end, and it is what keeps a row's
//! sum in the same order, and so the same bit for bit, wherever its experts are.

use millrace_kernels::Backend;
/// What to compute: a row within a parcel, and the receiving rank's slot.
pub use millrace_kernels::Work;

/// What goes from one rank to one other in one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parcel {
    /// Rows of hidden states.
    pub rows: usize,
    /// What to compute with them; results return in this order.
    pub work: Vec<Work>,
}

/// Moves rows between the ranks of a group for the length of one step.
///
/// Where devices exchange rows themselves, they learn of each other by [`share`](Self::share) in the first step of an
/// epoch, and no rows come this way.
///
/// Parcels and the parts of tensors that belong to them are in order of rank, this rank's own
/// included; those of ranks that are no members are empty.
pub trait ExpertExchange<B: Backend> {
    /// Tells every member these bytes ([`MOST_OFFER`](millrace_kernels::MOST_OFFER) at most), and waits for
    /// theirs; in order of rank, `None` for those that are no members. All members do so, round by round from 0,
    /// before the first layer.
    fn share(&mut self, round: usize, mine: &[u8]) -> Result<Vec<Option<Vec<u8>>>, StepDropped>;

    /// Whether the step cannot be completed any more.
    fn is_over(&self) -> bool;

    /// Sends each rank its parcel: the rows of `sent` (`[sum of rows, hidden]`) that are its own, and
    /// the work. Does not wait for anyone.
    fn dispatch(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        sent: &B::Tensor,
    ) -> Result<(), StepDropped>;

    /// Waits for every rank's parcel for this one: fills `parcels` and `received` (`[sum of rows, hidden]`).
    /// A rank that sends more rows than `received` has room for is one that the step is dropped for.
    fn collect(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &mut [Parcel],
        received: &mut B::Tensor,
    ) -> Result<(), StepDropped>;

    /// Sends back the results (`[sum of work, hidden]`) of what [`collect`](Self::collect) gave.
    fn respond(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        results: &B::Tensor,
    ) -> Result<(), StepDropped>;

    /// Waits for the results of what [`dispatch`](Self::dispatch) sent: `returned` becomes
    /// `[sum of work, hidden]`.
    fn combine(
        &mut self,
        backend: &B,
        layer: usize,
        parcels: &[Parcel],
        returned: &mut B::Tensor,
    ) -> Result<(), StepDropped>;
}

/// The step cannot be completed: a rank was lost, or the epoch was left. Nothing of it counts; the
/// same step is computed again under the next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the step was dropped: its epoch cannot be completed")]
pub struct StepDropped;
