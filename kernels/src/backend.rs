//! The ops a forward pass is made of.

use std::fmt;
use std::sync::Arc;

use millrace_model::{config::GateConfig, matrix::Matrix};

use crate::{Batch, Draw, Edits, LogProbs, PageLayout, PageMemory, Scored};

/// A device and its numerical ops.
///
/// Conventions: a `Tensor` is a matrix of activations `[rows, cols]`, row-major, with a fixed
/// capacity of rows and a current number of rows. An op reads its inputs' current rows and sets
/// its output's. Buffers are allocated once, before serving; no op allocates in the steady state.
/// Shapes are checked by assertion: a mismatch is a bug in a forward pass, never a user's error.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations `[rows, cols]`.
    type Tensor: Send;
    /// A vector of float32 parameters (norm weights, biases).
    type Vector: Send + Sync;
    /// A table `[vocab, hidden]` read by row.
    type Embedding: Send + Sync;
    /// `y = x W^T (+ bias)`, weights packed as the device likes.
    type Linear: Send + Sync;
    /// One small `Linear` a head: `[heads][out, in]`.
    type HeadLinear: Send + Sync;
    /// Gate, up and down projection of one expert.
    type Expert: Send + Sync;
    /// The experts in the slots of a layer, as its products read them.
    type Experts: Send + Sync;
    /// Experts and weights chosen for each row: `[rows, experts_per_token]`.
    type Routing: Send;
    /// How often each expert of each layer was chosen.
    type Tally: Send;
    /// A [`Batch`] where ops read it.
    type Placed: Send;
    /// A [`RopeTable`] where ops read it.
    type Rope: Send + Sync;
    /// This rank's place among devices that reach each other's memory; uninhabited where there are none.
    type Exchange: Send;

    // --- set-up ---------------------------------------------------------------------------

    /// What the device's memory holds; `None` where it is the host's.
    fn memory(&self) -> Option<DeviceMemory>;
    /// Whether there was room for everything that was made since the last call. What cannot fail here
    /// by itself is made all the same, and must not be used before this was asked.
    fn had_room(&self) -> Result<(), KernelError>;
    /// A model's weights have been made: gives back what that took beside them.
    fn loaded(&self);

    /// Activations in the precision that the device computes products in.
    fn tensor(&self, rows: usize, cols: usize) -> Self::Tensor;
    /// Activations in float32 on every device: what is summed over layers, and what is compared.
    fn tensor_f32(&self, rows: usize, cols: usize) -> Self::Tensor;
    fn routing(&self, rows: usize, experts_per_token: usize) -> Self::Routing;
    fn tally(&self, layers: usize, experts: usize) -> Self::Tally;
    /// An empty batch; it grows to the largest that is placed and stays.
    fn placed(&self) -> Self::Placed;
    fn rope_table(&self, table: RopeTable) -> Self::Rope;
    fn vector(&self, values: &[f32]) -> Self::Vector;
    fn embedding(&self, table: Matrix<'_>) -> Result<Self::Embedding, KernelError>;
    /// Packs matrices with equal `cols`, stacked along their rows, as one projection.
    fn linear(&self, parts: Stacked<'_>, bias: Option<&[f32]>)
    -> Result<Self::Linear, KernelError>;
    /// The key half (`W_UK`, transposed: latent out, nope in) and the value half (`W_UV`: v out,
    /// latent in) of `kv_b_proj` `[heads * (nope + v), latent]`, one matrix a head.
    fn absorbed(
        &self,
        kv_b: Matrix<'_>,
        heads: usize,
        nope: usize,
        v: usize,
    ) -> Result<(Self::HeadLinear, Self::HeadLinear), KernelError>;
    /// `gate` and `up` are `[inter, hidden]`, `down` is `[hidden, inter]`.
    fn expert(
        &self,
        gate: Matrix<'_>,
        up: Matrix<'_>,
        down: Matrix<'_>,
        pace: Pace,
    ) -> Result<Self::Expert, KernelError>;
    /// A layer whose slot `i` holds `slots[i]`: at least one, all of one size. Cheap: the weights
    /// stay where they are, and an expert may be in several slots, layers' tables and threads at once.
    fn experts(&self, slots: Vec<Arc<Self::Expert>>) -> Self::Experts;
    /// An expert's weights as packed, for another rank's [`expert_from_bytes`](Self::expert_from_bytes).
    fn expert_bytes(&self, expert: &Self::Expert) -> Vec<u8>;
    /// What [`expert_bytes`](Self::expert_bytes) gave. Bytes of another packing or of other sizes, and
    /// bytes that are cut off, are refused; whether they are the right ones is for a digest to say.
    fn expert_from_bytes(
        &self,
        bytes: &[u8],
        hidden: usize,
        inter: usize,
    ) -> Result<Self::Expert, KernelError>;
    /// The KV pages of this device.
    fn pages(&self, layout: PageLayout, pages: usize) -> Result<Arc<PageMemory>, KernelError>;

    // --- dense ops ------------------------------------------------------------------------

    /// Puts `batch` where the ops of a pass read it.
    fn place(&self, batch: &Batch, out: &mut Self::Placed);
    /// Calls `pass`, which asks for ops over `batch` and `pages` alone, moves nothing between host and device
    /// and asks for the same ops whenever it is called with as many rows. A device may record what it asks for and
    /// replay that. Passes of one backend have different numbers.
    fn replayed(&self, number: u64, batch: &Self::Placed, pages: &PageMemory, pass: impl FnOnce());
    /// `out[r] = table[batch.tokens[r]]`.
    fn embed(&self, table: &Self::Embedding, batch: &Self::Placed, out: &mut Self::Tensor);
    /// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32, out: &mut Self::Tensor);
    /// `residual += delta`, then [`rms_norm`](Self::rms_norm) of the sum into `out`.
    fn add_rms_norm(
        &self,
        residual: &mut Self::Tensor,
        delta: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    );
    /// In place on columns `first..first + heads * width` of `x`: each head of `width` columns
    /// is RMS-normalised on its own (Qwen3's qk-norm; a latent query with `heads = 1`).
    fn head_rms_norm(
        &self,
        x: &mut Self::Tensor,
        first: usize,
        heads: usize,
        width: usize,
        weight: &Self::Vector,
        eps: f32,
    );
    /// `out = x[:, first_col .. first_col + w.cols] W^T (+ bias)`.
    fn apply(&self, w: &Self::Linear, x: &Self::Tensor, first_col: usize, out: &mut Self::Tensor);
    /// `out += delta`.
    fn add(&self, out: &mut Self::Tensor, delta: &Self::Tensor);
    /// `out[r] = silu(gate) * up` where `x[r] = [gate | up]`.
    fn silu_mul(&self, x: &Self::Tensor, out: &mut Self::Tensor);
    /// `out[r] = [a[r] | b[r]]`.
    fn concat(&self, a: &Self::Tensor, b: &Self::Tensor, out: &mut Self::Tensor);
    /// `out[i] = x[rows[i]]`.
    fn gather(&self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor);
    /// The largest value of each current row of `x` and its lowest index; NaN where a row has one.
    fn arg_max(&self, x: &Self::Tensor, out: &mut Vec<(u32, f32)>);
    /// Draws a token from each of these rows of `x`; with it comes the row's largest value, or NaN where nothing
    /// can be drawn.
    fn draw(&self, x: &Self::Tensor, draws: &[(usize, Draw)], out: &mut Vec<(u32, f32)>);
    /// Changes rows of `x`, each at most once.
    fn edit(&self, x: &mut Self::Tensor, edits: &[(usize, &Edits<'_>)]);
    /// `log_softmax` of rows of `x`, each where it is asked for.
    fn log_probs(&self, x: &Self::Tensor, scored: &[Scored], out: &mut Vec<LogProbs>);
    /// Waits until everything that was asked for is done.
    fn wait(&self);
    /// Copies the current rows to the host, row-major, over what `out` held.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>);
    /// Makes `rows` (whole rows, row-major) the rows of `out`.
    fn write(&self, rows: &[f32], out: &mut Self::Tensor);
    /// Current rows of `x`.
    fn rows(&self, x: &Self::Tensor) -> usize;
    /// Most rows that `x` holds: what comes from elsewhere is held against it before it is written.
    fn capacity(&self, x: &Self::Tensor) -> usize;

    // --- latent attention (MLA) -----------------------------------------------------------

    /// Writes each row's cache row `[RMSNorm(c_kv) * norm | RoPE(k_pe)]` into its page of `layer`.
    /// `kv_a` columns `first_col ..` hold `[c_kv | k_pe]`.
    #[allow(clippy::too_many_arguments)]
    fn write_latent(
        &self,
        kv_a: &Self::Tensor,
        first_col: usize,
        norm: &Self::Vector,
        eps: f32,
        rope: &Self::Rope,
        batch: &Self::Placed,
        pages: &PageMemory,
        layer: usize,
    );
    /// Query in latent space: `q[r]` is `[heads][nope | rope]`; `out[r]` is
    /// `[heads][W_UK^T q_nope | RoPE(q_pe)]`.
    fn absorb_query(
        &self,
        w_uk: &Self::HeadLinear,
        q: &Self::Tensor,
        rope: &Self::Rope,
        batch: &Self::Placed,
        out: &mut Self::Tensor,
    );
    /// Causal attention of `q[r]` (`[heads][latent | rope]`) over its sequence's cache rows
    /// `[c_kv | k_pe]` of `layer`: `out[r]` = `[heads][softmax(scale * q k) c_kv]`.
    #[allow(clippy::too_many_arguments)]
    fn latent_attention(
        &self,
        q: &Self::Tensor,
        heads: usize,
        latent: usize,
        scale: f32,
        batch: &Self::Placed,
        pages: &PageMemory,
        layer: usize,
        out: &mut Self::Tensor,
    );
    /// `out[r]` = `[heads][w[h] x[r][h]]`.
    fn apply_heads(&self, w: &Self::HeadLinear, x: &Self::Tensor, out: &mut Self::Tensor);

    // --- grouped-query attention ----------------------------------------------------------

    /// In place: RoPE on `heads` heads of `width` columns starting at column `first`
    /// (the first `rope.dim()` values of each head are rotated).
    fn rope(
        &self,
        x: &mut Self::Tensor,
        first: usize,
        heads: usize,
        width: usize,
        rope: &Self::Rope,
        batch: &Self::Placed,
    );
    /// Writes columns `first_col .. first_col + row_values` (`[k heads | v heads]`, rotated) of
    /// each row into its page of `layer`.
    fn write_kv(
        &self,
        qkv: &Self::Tensor,
        first_col: usize,
        batch: &Self::Placed,
        pages: &PageMemory,
        layer: usize,
    );
    /// Causal attention of the first `heads * head_dim` columns of `qkv` over cache rows
    /// `[k | v]` of `kv_heads` heads: `out[r]` = `[heads][head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn gqa_attention(
        &self,
        qkv: &Self::Tensor,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        scale: f32,
        batch: &Self::Placed,
        pages: &PageMemory,
        layer: usize,
        out: &mut Self::Tensor,
    );

    // --- mixture of experts ---------------------------------------------------------------

    /// Chooses experts from router logits `[rows, experts]` in float32.
    fn route(
        &self,
        logits: &Self::Tensor,
        gate: &GateParams<Self::Vector>,
        out: &mut Self::Routing,
    );
    /// Host copy of a routing: `(expert, weight)`, `experts_per_token` a row, in order of choice.
    fn read_routing(&self, routing: &Self::Routing, out: &mut Vec<(u32, f32)>);
    /// Counts what was chosen in `layer`.
    fn count(&self, routing: &Self::Routing, layer: usize, tally: &mut Self::Tally);
    /// Ends a pass for what was counted: [`take_tally`](Self::take_tally) takes everything up to here.
    fn close_tally(&self, tally: &mut Self::Tally);
    /// Adds to `sums`, `[layers][experts]`, what was counted in passes that were closed since the last call.
    fn take_tally(&self, tally: &mut Self::Tally, sums: &mut [u64]);
    /// `out[r] = sum over chosen e, in order of choice, of weight * down_e(silu(gate_e x) * up_e x)`.
    fn moe(
        &self,
        x: &Self::Tensor,
        routing: &Self::Routing,
        experts: &Self::Experts,
        out: &mut Self::Tensor,
    );
    /// `out[i] = down_s(silu(gate_s x) * up_s x)` for row `work[i].row` of `x` and slot `s = work[i].slot`:
    /// the terms of [`moe`](Self::moe), unweighted, bit for bit.
    fn expert_rows(
        &self,
        x: &Self::Tensor,
        work: &[Work],
        experts: &Self::Experts,
        out: &mut Self::Tensor,
    );
    /// `out[r] = sum over choices c, in order, of weight * returned[places[r * experts_per_token + c]]`: the
    /// sum of [`moe`](Self::moe), bit for bit.
    fn combine(
        &self,
        returned: &Self::Tensor,
        places: &[u32],
        routing: &Self::Routing,
        out: &mut Self::Tensor,
    );

    // --- experts on devices that reach each other's memory ---------------------------------
    //
    // Ranks are connected once they have told each other of their memory: offer, connect, met. Then one turn, the
    // same on every rank and in every MoE layer of a step, also where a rank has no rows: dispatch, serve, combine.
    // Devices wait for each other; the host waits for none before the end of a pass (finish), when it learns whether
    // all were there. If not, ranks have to be connected anew.

    /// A rank of a group of this shape, or `None` where devices do not reach each other. It stands for all ranks until it
    /// is connected: whatever it sends to a rank comes back to it as if that rank had sent it, so that it computes
    /// what one rank of a balanced group does. Rows take the replicas that `table` says.
    fn exchange(
        &self,
        shape: ExchangeShape,
        table: &ReplicaTable,
    ) -> Result<Option<Self::Exchange>, KernelError>;
    /// What the other ranks of this machine need to reach this one's memory: at most [`MOST_OFFER`] bytes. `fresh`:
    /// memory that nobody was told of before, because somebody was who takes no part any more, and may write late.
    fn exchange_offer(
        &self,
        exchange: &mut Self::Exchange,
        fresh: bool,
    ) -> Result<Vec<u8>, KernelError>;
    /// Connects rank `me` with those whose offers these are, by rank; `None` is no member. `apart`: refuses ranks that
    /// share a device, where one's waiting keeps the other from coming.
    ///
    /// # Errors
    /// Somebody's memory cannot be reached from here, and why.
    fn exchange_connect(
        &self,
        exchange: &mut Self::Exchange,
        me: usize,
        offers: &[Option<&[u8]>],
        table: &ReplicaTable,
        apart: bool,
    ) -> Result<(), KernelError>;
    /// Every member has connected, and so let go of what it was told of before.
    fn exchange_met(&self, exchange: &mut Self::Exchange);
    /// Starts a step. `first_row` is the number of its first row, which says what replicas it takes.
    fn exchange_begin(&self, first_row: u32, exchange: &mut Self::Exchange);
    /// Sends rows of `x` to the ranks of their experts.
    fn exchange_dispatch(
        &self,
        layer: usize,
        x: &Self::Tensor,
        routing: &Self::Routing,
        experts: &Self::Experts,
        exchange: &mut Self::Exchange,
    );
    /// Computes what was sent here and sends it back.
    fn exchange_serve(&self, experts: &Self::Experts, exchange: &mut Self::Exchange);
    /// The sum of [`moe`](Self::moe), bit for bit, of what was sent back; then [`add`](Self::add)s `more`.
    fn exchange_combine(
        &self,
        routing: &Self::Routing,
        exchange: &mut Self::Exchange,
        more: Option<&Self::Tensor>,
        out: &mut Self::Tensor,
    );
    /// Waits for the device, and answers whether every peer was there in every turn since they were connected. No
    /// peer is waited for once `is_over` says so.
    fn exchange_finish(&self, exchange: &Self::Exchange, is_over: &dyn Fn() -> bool) -> bool;
    /// Ends a pass for what was counted: [`exchange_counts`](Self::exchange_counts) takes everything up to here.
    fn exchange_close(&self, exchange: &mut Self::Exchange);
    /// Adds the pieces of work that were sent, `[layers][ranks]`, and computed here, `[layers]`, in passes that were
    /// closed since the last call.
    fn exchange_counts(
        &self,
        exchange: &mut Self::Exchange,
        sent: &mut [u64],
        computed: &mut [u64],
    );
}

/// Bytes of [`Backend::exchange_offer`], at most.
pub const MOST_OFFER: usize = 1024;

/// One row for one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Work {
    pub row: u32,
    pub slot: u32,
}

/// The memory of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes by what this backend holds them for, the largest first.
    pub used: Vec<(&'static str, usize)>,
    pub free: usize,
    pub total: usize,
}

impl fmt::Display for DeviceMemory {
    /// In GiB. What others hold (other processes, the driver) is what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        for (what, bytes) in &self.used {
            write!(f, "{what} {:.2}, ", gib(*bytes))?;
        }
        let used: usize = self.used.iter().map(|(_, bytes)| bytes).sum();
        let others = self.total.saturating_sub(self.free + used);
        write!(
            f,
            "others {:.2}, free {:.2} of {:.2} GiB",
            gib(others),
            gib(self.free),
            gib(self.total)
        )
    }
}

/// Sizes of a group whose devices exchange rows themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeShape {
    /// MoE layers.
    pub layers: usize,
    /// Logical experts a layer.
    pub experts: usize,
    pub ranks: usize,
    /// Of a rank, in each layer.
    pub slots: usize,
    /// Most rows of a rank in a turn.
    pub rows: usize,
    pub per_token: usize,
    pub hidden: usize,
}

/// Which replica of an expert a row takes, as devices look it up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaTable {
    /// `[layers][experts]`: where its replicas begin, how many they are, and where row 0 falls.
    pub entries: Vec<[u32; 3]>,
    /// Rank, slot, and up to where rows fall to it.
    pub replicas: Vec<[u32; 3]>,
}

/// What setting up weights may cost whatever else runs on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing else does: use all there is.
    Full,
    /// Steps are computed meanwhile: leave them what they use.
    Background,
}

/// Matrices to be read as one, stacked along their rows.
pub type Stacked<'a> = &'a [Matrix<'a>];

/// How experts are chosen (facts: DeepSeek-V2 section 2.2, DeepSeek-V3 section 2.1.2).
pub struct GateParams<V> {
    pub config: GateConfig,
    pub experts_per_token: usize,
    /// `e_score_correction_bias`: added for the choice only. `Some` exactly for `noaux_tc`.
    pub bias: Option<V>,
}

/// cos and sin for every position, times the scaling's cos/sin factor.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[positions][dim / 2]`.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// Rotated values a head.
    pub dim: usize,
    /// Pairs are neighbours (`2i, 2i+1`) rather than half a head apart (`i, i + dim/2`).
    pub interleaved: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "weights are not finite: row {row}, column {col} of a {rows} x {cols} matrix; the checkpoint is damaged"
    )]
    NotFinite {
        row: usize,
        col: usize,
        rows: usize,
        cols: usize,
    },
    #[error(
        "cannot reserve {bytes} bytes for weights: {source}; the model needs a machine with more memory"
    )]
    WeightMemory {
        bytes: usize,
        source: std::io::Error,
    },
    #[error(
        "an expert's weights are {bytes} bytes instead of {expected}: they were cut off on their way; fetch them again"
    )]
    ExpertLength { bytes: usize, expected: usize },
    #[error(
        "an expert's weights are packed as {found:?}, but this rank reads {expected:?}: run one version of millrace on one kind of device in a group"
    )]
    ExpertPacking { found: String, expected: String },
    #[error(
        "an expert's weights are for hidden size {} and intermediate size {}, but this rank's model has {} and {}: serve one checkpoint in a group",
        found[0], found[1], expected[0], expected[1]
    )]
    ExpertSizes {
        found: [usize; 2],
        expected: [usize; 2],
    },
    #[error(
        "an expert's weights claim format {code} with scales for {k_block} inputs, which nothing here packs: they are damaged; fetch them again"
    )]
    ExpertFormat { code: u32, k_block: u32 },
    #[error(
        "the device has no room for {bytes} bytes of {what}: {free} of its {total} bytes are free; serve a smaller model, or less of it at a time (--kv-pages, --max-running, --max-batch-tokens)"
    )]
    DeviceMemory {
        what: &'static str,
        bytes: usize,
        free: usize,
        total: usize,
    },
    #[error("the device failed: {0}")]
    Device(String),
    #[error(
        "memory of a device cannot be shared: {0}; both processes need one IPC and PID namespace, see both GPUs, and GPUs that reach each other (nvidia-smi topo -p2p w)"
    )]
    Sharing(String),
    #[error("cannot reserve {bytes} bytes for KV pages: {source}; ask for fewer with --kv-pages")]
    PageMemory {
        bytes: usize,
        source: std::io::Error,
    },
}
