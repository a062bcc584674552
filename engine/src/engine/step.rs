//! One step: schedule, run, postprocess.

use millrace_kernels::{Backend, PageMemory};

use super::{Engine, postprocess};
use crate::{Event, Kind, PageRef, StepDropped, forward::Ranks, scheduler::Share};

impl<B: Backend> Engine<B> {
    /// Computes one batch. What a peer can start on (reservations, cached pages) is emitted before
    /// the computation, the rest after it.
    ///
    /// # Panics
    /// On a rank of a group, which lacks experts: [`step_in_group`](Self::step_in_group) is its step.
    pub fn step(&mut self, emit: &mut dyn FnMut(Event)) {
        assert!(
            self.group.is_none(),
            "a rank of a group steps with the others"
        );
        let shares = self.plan(usize::MAX, emit);
        if !shares.is_empty() {
            let done = self.compute(&shares, &mut Ranks::Alone, emit);
            done.expect("nobody else takes part in it");
        }
    }

    /// Decides what to compute in up to `limit` rows, and emits what need not wait for it.
    pub(super) fn plan(&mut self, limit: usize, emit: &mut dyn FnMut(Event)) -> Vec<Share> {
        let mut events = Vec::new();
        let shares = self.scheduler.schedule(limit, &mut events);
        if limit > 0 {
            let stalled = shares.is_empty() && events.is_empty();
            self.stalled = stalled.then(|| self.pool.available());
        }
        postprocess::announce_cached(&mut self.scheduler, &shares, &mut events);
        events.into_iter().for_each(emit);
        shares
    }

    /// Sequences change only after the forward pass, all at once. So a step that was dropped before
    /// has not happened: the same tokens are computed by a later one. What is dropped after that is
    /// the drafts alone, and every sequence has had its tokens.
    pub(super) fn compute(
        &mut self,
        shares: &[Share],
        ranks: &mut Ranks<'_, B>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), StepDropped> {
        self.build_batch(shares);
        let memory = self.pool.memory().clone();
        let mut events = Vec::new();
        let computed = self.forward.run(&self.batch, &memory, ranks);
        let answers = computed.and_then(|()| self.answer(shares, ranks));
        let completed = answers.as_ref().map(|_| ()).map_err(|dropped| *dropped);
        self.count_experts(completed, ranks)?;
        self.counters.steps += 1;
        self.counters.step_tokens += self.batch.rows() as u64;
        let results = self.accept(shares, answers?, &mut events);
        let drafted = self.draft(shares, &results, &memory, ranks);
        self.finish_step(shares, results, &mut events);
        // Who hears of a page may read it at once.
        self.forward.wait();
        events.into_iter().for_each(emit);
        match self.forward.drafts() {
            true => self.count_experts(drafted, ranks),
            false => Ok(()),
        }
    }

    /// Keeps what a pass among `ranks` counted if it was completed.
    fn count_experts(
        &mut self,
        pass: Result<(), StepDropped>,
        ranks: &mut Ranks<'_, B>,
    ) -> Result<(), StepDropped> {
        if let (Some(step), Some(sums)) = (self.forward.counts(ranks), &self.expert_counts) {
            match pass {
                Ok(()) => step.keep(sums),
                Err(StepDropped) => step.forget(),
            }
        }
        pass
    }

    fn build_batch(&mut self, shares: &[Share]) {
        self.batch.clear();
        let mut tokens = Vec::new();
        for share in shares {
            let sequence = &self.scheduler.running[share.sequence];
            tokens.clear();
            tokens.extend_from_slice(&sequence.tokens[sequence.computed..][..share.tokens]);
            tokens.extend(sequence.draft.filter(|_| share.draft));
            self.batch.push(
                &tokens,
                sequence.computed,
                sequence.pages.iter().map(PageRef::index),
            );
        }
    }

    /// Runs the MTP layer over the rows that turned out valid, so that its cache keeps up, and
    /// takes its guess for every sequence that goes on. A row's next token is known by now.
    ///
    /// Where that is dropped, the layer's cache lacks these rows for good. They weigh in later drafts
    /// alone, and a draft is checked by the model whatever it is.
    fn draft(
        &mut self,
        shares: &[Share],
        results: &[postprocess::ShareResult],
        memory: &PageMemory,
        ranks: &mut Ranks<'_, B>,
    ) -> Result<(), StepDropped> {
        if !self.forward.drafts() {
            return Ok(());
        }
        let mut rows = Vec::with_capacity(self.batch.rows());
        let mut wanted = Vec::new();
        self.draft_batch.clear();
        for ((share, result), segment) in shares.iter().zip(results).zip(&self.batch.segments) {
            let sequence = &self.scheduler.running[share.sequence];
            let start = sequence.computed;
            // Where a sequence failed or has no next token, its row has nothing to look at.
            let valid = result
                .valid_rows
                .min(sequence.tokens.len().saturating_sub(start + 1));
            if valid == 0 {
                continue;
            }
            rows.extend(segment.rows.start..segment.rows.start + valid);
            self.draft_batch.push(
                &sequence.tokens[start + 1..][..valid],
                start,
                sequence.pages.iter().map(PageRef::index),
            );
            let room = sequence.tokens.len() + 1 < self.max_model_len;
            if share.samples
                && room
                && (result.goes_on || matches!(sequence.kind, Kind::Prefill { .. }))
            {
                wanted.push((share.sequence, rows.len() - 1));
            }
        }
        // Among ranks the others may have rows for this one's experts.
        if rows.is_empty() && matches!(ranks, Ranks::Alone) {
            return Ok(());
        }
        let last_rows: Vec<usize> = wanted.iter().map(|(_, row)| *row).collect();
        let drafts = self
            .forward
            .draft(&self.draft_batch, &rows, &last_rows, memory, ranks)?;
        for ((index, _), draft) in wanted.into_iter().zip(drafts) {
            self.scheduler.running[index].draft = Some(draft);
        }
        Ok(())
    }
}
