//! Projections: packed matrices and how their products are divided among threads.

use std::ops::Range;

use super::buffer::Floats;
use super::gemm::{self, Finish};
use super::pack::Packed;
use super::simd::Isa;
use super::tensor::{Input, Output};
use super::threads::Threads;

/// `y = x W^T (+ bias)`. Several matrices where the stacked parts are stored in different formats.
pub struct Linear {
    pub(super) parts: Vec<Packed>,
    pub(super) bias: Option<Floats>,
}

impl Linear {
    pub fn inputs(&self) -> usize {
        self.parts[0].inputs
    }

    pub fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.outputs).sum()
    }
}

/// One matrix a head, all of one shape.
pub struct HeadLinear {
    pub(super) heads: Vec<Packed>,
}

impl HeadLinear {
    /// Of one head.
    pub fn inputs(&self) -> usize {
        self.heads[0].inputs
    }

    /// Of one head.
    pub fn outputs(&self) -> usize {
        self.heads[0].outputs
    }
}

/// Tasks of a product: chunks of rows times chunks of panels.
pub(super) struct Grid {
    rows: usize,
    panels: usize,
    row_chunks: usize,
    panels_each: usize,
}

/// Work that is worth a task of its own: well above what handing it over costs.
pub(super) const TASK_NANOS: usize = 3000;
/// Rows that share the widening of weights.
const CHUNK_ROWS: usize = 48;
const FEWEST_ROWS: usize = 8;
/// Panels that the kernel for few rows works on at once.
const PANEL_STEP: usize = 4;

/// Estimated time of a product on one thread: arithmetic, and reading the weights once.
pub(super) fn nanos(w: &Packed, rows: usize, panels: usize) -> usize {
    panels * (rows * w.inputs / 3 + w.panel_bytes() / 25)
}

impl Grid {
    pub fn new(w: &Packed, rows: usize, threads: usize) -> Grid {
        let panels = w.panels();
        let tasks = (nanos(w, rows, panels) / TASK_NANOS)
            .clamp(1, if threads == 1 { 1 } else { 4 * threads });
        let mut row_chunks = tasks.min(rows / CHUNK_ROWS).max(1);
        let panel_chunks = tasks.div_ceil(row_chunks).min(panels.div_ceil(PANEL_STEP));
        if row_chunks * panel_chunks < tasks {
            // Few outputs, such as a router's: divide the rows further.
            row_chunks = tasks.div_ceil(panel_chunks).min(rows / FEWEST_ROWS).max(1);
        }
        let panels_each = panels.div_ceil(panel_chunks).next_multiple_of(PANEL_STEP);
        Grid {
            rows,
            panels,
            row_chunks,
            panels_each,
        }
    }

    fn panel_chunks(&self) -> usize {
        self.panels.div_ceil(self.panels_each)
    }

    pub fn tasks(&self) -> usize {
        self.row_chunks * self.panel_chunks()
    }

    /// Rows and panels of a task.
    pub fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (chunk, part) = (task / self.panel_chunks(), task % self.panel_chunks());
        let rows = self.rows * chunk / self.row_chunks..self.rows * (chunk + 1) / self.row_chunks;
        let first = part * self.panels_each;
        (rows, first..(first + self.panels_each).min(self.panels))
    }
}

/// `out = x W^T (+ bias)`; `out` has the columns of all parts.
pub(super) fn apply(isa: Isa, threads: &Threads, w: &Linear, x: &Input<'_>, out: &Output) {
    if x.rows == 0 {
        return; // A rank without requests runs every layer of its group's steps: wake nobody for it.
    }
    let mut first = 0;
    for part in &w.parts {
        let bias = w.bias.as_ref().map(|bias| &bias[first..][..part.outputs]);
        let grid = Grid::new(part, x.rows, threads.count());
        let out = out.columns(first);
        threads.run(grid.tasks(), &|task| {
            let (rows, panels) = grid.task(task);
            gemm::product(isa, part, panels, x, rows, &out, Finish::Store { bias });
        });
        first += part.outputs;
    }
}

/// For every head: `out[r][head * out_step ..] = w[head] x[r][head * x_step ..]`; `done(head, rows)`
/// follows in the same task.
#[allow(clippy::too_many_arguments)]
pub(super) fn apply_heads(
    isa: Isa,
    threads: &Threads,
    w: &HeadLinear,
    x: &Input<'_>,
    x_step: usize,
    out: &Output,
    out_step: usize,
    done: &(dyn Fn(usize, Range<usize>) + Sync),
) {
    let heads = w.heads.len();
    let all = heads * nanos(&w.heads[0], x.rows, w.heads[0].panels());
    let tasks = (all / TASK_NANOS).clamp(
        1,
        if threads.count() == 1 {
            1
        } else {
            4 * threads.count()
        },
    );
    // Heads first: a task then packs and widens nothing that another one does too.
    let head_chunks = tasks.min(heads);
    let row_chunks = tasks.div_ceil(head_chunks).min(x.rows / CHUNK_ROWS).max(1);
    threads.run(head_chunks * row_chunks, &|task| {
        let (part, chunk) = (task / row_chunks, task % row_chunks);
        let rows = x.rows * chunk / row_chunks..x.rows * (chunk + 1) / row_chunks;
        for head in heads * part / head_chunks..heads * (part + 1) / head_chunks {
            let w = &w.heads[head];
            let x = Input {
                first: x.first + head * x_step,
                ..*x
            };
            let out = out.columns(head * out_step);
            gemm::product(
                isa,
                w,
                0..w.panels(),
                &x,
                rows.clone(),
                &out,
                Finish::Store { bias: None },
            );
            done(head, rows.clone());
        }
    });
}
