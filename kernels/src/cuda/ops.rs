//! The trait, op by op: shapes checked, outputs sized, kernels asked for.

use std::sync::Arc;

use cudarc::driver::result;
use millrace_model::config::{Scoring, TopkMethod};
use millrace_model::matrix::Matrix;

use super::copier::Copier;
use super::device::Shape;
use super::memory::Memory;
use super::moe::{Pieces, Products};
use super::params;
use super::profile::{Cost, Peak, bytes_of, heads_cost};
use super::weights::{Form, Weights};
use super::{
    CudaBackend, Embedding, Exchange, Expert, Experts, HeadLinear, Kind, Linear, Placed, Rope,
    Routing, Tally, Tensor, Vector, fp8, gemm, graph, layer_of, mla,
};
use crate::{
    Backend, Batch, DeviceMemory, Draw, Edits, ExchangeShape, GateParams, KernelError, LogProbs,
    Pace, PageLayout, PageMemory, ReplicaTable, RopeTable, Scored, Stacked, Work,
};

// Every launch below passes addresses of tensors, weights and pages whose sizes were checked or set just before,
// and which live until the stream is past them: memory is freed only after the device has finished with it.

impl Backend for CudaBackend {
    type Tensor = Tensor;
    type Vector = Vector;
    type Embedding = Embedding;
    type Linear = Linear;
    type HeadLinear = HeadLinear;
    type Expert = Expert;
    type Experts = Experts;
    type Routing = Routing;
    type Tally = Tally;
    type Placed = Placed;
    type Rope = Rope;
    type Exchange = Exchange;

    fn memory(&self) -> Option<DeviceMemory> {
        self.device.bind();
        let (free, total) = self.device.expect(result::mem_get_info());
        Some(DeviceMemory {
            used: self.device.ledger().used(),
            free,
            total,
        })
    }

    fn loaded(&self) {
        self.device.pinned().take();
    }

    fn had_room(&self) -> Result<(), KernelError> {
        self.device.ledger().check()
    }

    fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(&self.device, rows, cols, Kind::Bf16)
    }

    fn tensor_f32(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(&self.device, rows, cols, Kind::F32)
    }

    fn routing(&self, rows: usize, experts_per_token: usize) -> Routing {
        Routing::new(&self.device, rows, experts_per_token)
    }

    fn tally(&self, layers: usize, experts: usize) -> Tally {
        Tally::new(&self.device, layers, experts)
    }

    fn placed(&self) -> Placed {
        Placed::default()
    }

    fn rope_table(&self, table: RopeTable) -> Rope {
        Rope::new(&self.device, &table)
    }

    fn vector(&self, values: &[f32]) -> Vector {
        Vector::new(&self.device, values)
    }

    fn embedding(&self, table: Matrix<'_>) -> Result<Embedding, KernelError> {
        let weights = Weights::stacked(&self.device, &[table], Pace::Full)?;
        Ok(Embedding(weights))
    }

    fn linear(&self, parts: Stacked<'_>, bias: Option<&[f32]>) -> Result<Linear, KernelError> {
        // The products in 8 bits add no bias.
        let weights = match bias {
            None => Form::stacked(&self.device, parts)?,
            Some(_) => Form::Bf16(Weights::stacked(&self.device, parts, Pace::Full)?),
        };
        assert!(bias.is_none_or(|bias| bias.len() == weights.outputs()));
        Ok(Linear {
            weights,
            bias: bias.map(|bias| Vector::new(&self.device, bias)),
        })
    }

    fn absorbed(
        &self,
        kv_b: Matrix<'_>,
        heads: usize,
        nope: usize,
        v: usize,
    ) -> Result<(HeadLinear, HeadLinear), KernelError> {
        HeadLinear::absorbed(&self.device, kv_b, heads, nope, v)
    }

    fn expert(
        &self,
        gate: Matrix<'_>,
        up: Matrix<'_>,
        down: Matrix<'_>,
        pace: Pace,
    ) -> Result<Expert, KernelError> {
        let (inter, hidden) = (down.cols, down.rows);
        assert!([gate, up].map(|m| (m.rows, m.cols)) == [(inter, hidden); 2]);
        Expert::new(&self.device, &[gate, up], &[down], pace)
    }

    fn experts(&self, slots: Vec<Arc<Expert>>) -> Experts {
        Experts::new(&self.device, slots)
    }

    fn expert_bytes(&self, expert: &Expert) -> Vec<u8> {
        expert.to_bytes()
    }

    fn expert_from_bytes(
        &self,
        bytes: &[u8],
        hidden: usize,
        inter: usize,
    ) -> Result<Expert, KernelError> {
        Expert::from_bytes(&self.device, bytes, hidden, inter)
    }

    fn pages(&self, layout: PageLayout, pages: usize) -> Result<Arc<PageMemory>, KernelError> {
        let bytes = pages.saturating_mul(layout.page_bytes());
        let memory = Memory::new(&self.device, bytes, "KV pages")?;
        let ordinal = self.device.context().ordinal() as u32;
        let base = memory.address() as *mut u8;
        let copier =
            Copier::new(&self.device).map_err(|error| KernelError::Device(error.to_string()))?;
        let copier = Arc::new(copier);
        Ok(PageMemory::of_device(
            ordinal, base, layout, pages, copier, memory,
        ))
    }

    fn place(&self, batch: &Batch, out: &mut Placed) {
        out.place(&self.device, batch)
            .unwrap_or_else(|error| panic!("{error}"));
        // Now, because nothing is moved from the host in a pass that is replayed.
        self.space().mla.prepare_again(&self.device, out);
    }

    fn replayed(&self, number: u64, batch: &Placed, pages: &PageMemory, pass: impl FnOnce()) {
        if batch.rows() == 0 || batch.rows() > graph::MOST_ROWS || self.is_profiling() {
            return pass();
        }
        let key = graph::Key {
            rows: batch.rows(),
            batch: batch.params().tokens,
            pages: pages.base() as params::Address,
            waves: self.space().mla.waves().to_vec(),
            pass: number,
        };
        let mut graphs = self
            .graphs
            .lock()
            .expect("a pass that panicked was the last");
        graphs.run(&self.device, key, pass);
    }

    fn embed(&self, table: &Embedding, batch: &Placed, out: &mut Tensor) {
        self.embed_rows(table, batch, out);
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor) {
        self.norm(x, None, weight, eps, out);
    }

    fn add_rms_norm(
        &self,
        residual: &mut Tensor,
        delta: &Tensor,
        weight: &Vector,
        eps: f32,
        out: &mut Tensor,
    ) {
        assert_eq!(
            (residual.rows(), residual.cols(), Kind::Bf16),
            (delta.rows(), delta.cols(), delta.kind())
        );
        self.norm(residual, Some(delta), weight, eps, out);
    }

    fn head_rms_norm(
        &self,
        x: &mut Tensor,
        first: usize,
        heads: usize,
        width: usize,
        weight: &Vector,
        eps: f32,
    ) {
        self.norm_heads(x, first, heads, width, weight, eps);
    }

    fn apply(&self, w: &Linear, x: &Tensor, first_col: usize, out: &mut Tensor) {
        let (inputs, outputs) = (w.weights.inputs(), w.weights.outputs());
        assert!(first_col + inputs <= x.cols());
        out.resize(x.rows(), outputs);
        let cost = || Cost {
            what: format!("product {outputs} x {inputs}"),
            bytes: (w.weights.bytes() + 2 * x.rows() * inputs + bytes_of(out)) as f64,
            flops: 2.0 * (x.rows() * inputs * outputs) as f64,
            peak: w.weights.peak(),
        };
        self.measured(cost, || match &w.weights {
            Form::Bf16(weights) => {
                gemm::linear(&self.device, weights, w.bias.as_ref(), x, first_col, out);
            }
            Form::Fp8(weights) => {
                let rows = x.narrow(&self.device, first_col, inputs);
                let by = fp8::By::One(weights);
                fp8::multiply(
                    &self.device,
                    &rows,
                    by,
                    out.address(),
                    out.stride(),
                    out.kind(),
                );
            }
        });
    }

    fn add(&self, out: &mut Tensor, delta: &Tensor) {
        self.add_rows(out, delta);
    }

    fn silu_mul(&self, x: &Tensor, out: &mut Tensor) {
        self.silu_rows(x, out);
    }

    fn concat(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) {
        assert_eq!(a.rows(), b.rows());
        out.resize(a.rows(), a.cols() + b.cols());
        self.copy(a, out, 0, a.rows(), 0);
        self.copy(b, out, a.cols(), b.rows(), 0);
    }

    fn gather(&self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        assert!(rows.iter().all(|row| *row < x.rows()));
        out.resize(rows.len(), x.cols());
        let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let index = self.space().index.upload(&self.device, &index);
        self.copy(x, out, 0, rows.len(), index);
    }

    fn arg_max(&self, x: &Tensor, out: &mut Vec<(u32, f32)>) {
        self.largest(x, out);
    }

    fn draw(&self, x: &Tensor, draws: &[(usize, Draw)], out: &mut Vec<(u32, f32)>) {
        self.draw_rows(x, draws, out);
    }

    fn edit(&self, x: &mut Tensor, edits: &[(usize, &Edits<'_>)]) {
        self.edit_rows(x, edits);
    }

    fn log_probs(&self, x: &Tensor, scored: &[Scored], out: &mut Vec<LogProbs>) {
        self.score_rows(x, scored, out);
    }

    fn wait(&self) {
        self.device.wait();
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) {
        x.read(out);
    }

    fn write(&self, rows: &[f32], out: &mut Tensor) {
        out.write(rows);
    }

    fn rows(&self, x: &Tensor) -> usize {
        x.rows()
    }

    fn capacity(&self, x: &Tensor) -> usize {
        x.capacity()
    }

    fn write_latent(
        &self,
        kv_a: &Tensor,
        first_col: usize,
        norm: &Vector,
        eps: f32,
        rope: &Rope,
        batch: &Placed,
        pages: &PageMemory,
        layer: usize,
    ) {
        let width = pages.layout().row_values;
        assert_eq!((kv_a.rows(), kv_a.kind()), (batch.rows(), Kind::Bf16));
        assert_eq!(width, norm.len + rope.dim, "a latent row is [c_kv | k_pe]");
        assert!(first_col + width <= kv_a.cols());
        let params = params::WriteLatent {
            kv_a: kv_a.matrix(),
            first: first_col as u32,
            norm: norm.memory.address(),
            eps,
            rope: rope.params(),
            rows: batch.params(),
            pages: layer_of(pages, layer),
        };
        let shape = Shape {
            shared: 4 * width,
            ..Shape::rows(batch.rows(), width)
        };
        self.moved("cache rows", 2 * 2 * batch.rows() * width, || {
            // SAFETY: see above; the engine holds these pages for writing.
            unsafe {
                self.device
                    .launch(&self.device.kernels.write_latent, shape, &params)
            }
        });
    }

    fn absorb_query(
        &self,
        w_uk: &HeadLinear,
        q: &Tensor,
        rope: &Rope,
        batch: &Placed,
        out: &mut Tensor,
    ) {
        assert_eq!(q.rows(), batch.rows());
        let (heads, nope, latent) = (w_uk.heads, w_uk.weights.inputs, w_uk.outputs());
        let (from, to) = (nope + rope.dim, latent + rope.dim);
        assert_eq!(q.cols(), heads * from);
        out.resize(q.rows(), heads * to);
        let cost = || heads_cost("absorbed queries", w_uk, q, out);
        self.measured(cost, || gemm::heads(&self.device, w_uk, q, from, out, to));
        let params = params::Rotate {
            from: q.matrix(),
            to: out.matrix(),
            from_first: nope as u32,
            from_width: from as u32,
            to_first: latent as u32,
            to_width: to as u32,
            heads: heads as u32,
            neighbours: 0,
            rope: rope.params(),
            rows: batch.params(),
        };
        self.rotate(params, batch);
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        heads: usize,
        latent: usize,
        scale: f32,
        batch: &Placed,
        pages: &PageMemory,
        layer: usize,
        out: &mut Tensor,
    ) {
        let key_dim = pages.layout().row_values;
        assert_eq!((q.rows(), q.cols()), (batch.rows(), heads * key_dim));
        out.resize(q.rows(), heads * latent);
        if mla::takes(&pages.layout(), heads, latent) {
            let cost = || Cost {
                what: "latent attention".to_owned(),
                bytes: (batch.distinct_positions() * pages.layout().row_bytes()
                    + bytes_of(q)
                    + bytes_of(out)) as f64,
                flops: 2.0 * (heads * (key_dim + latent) * batch.attended()) as f64,
                peak: Peak::Bf16,
            };
            let mla = &mut self.space().mla;
            return self.measured(cost, || {
                mla.attend(&self.device, q, heads, scale, batch, pages, layer, out);
            });
        }
        let params = params::Attention {
            q: q.address(),
            q_stride: q.stride() as u64,
            out: out.address(),
            out_stride: out.stride() as u64,
            heads: heads as u32,
            share: heads as u32,
            key_dim: key_dim as u32,
            value_dim: latent as u32,
            first_key: 0,
            first_value: 0,
            scale,
            rows: batch.params(),
            pages: layer_of(pages, layer),
        };
        self.attend(&params, 1, key_dim, batch);
    }

    fn apply_heads(&self, w: &HeadLinear, x: &Tensor, out: &mut Tensor) {
        let (from, to) = (w.weights.inputs, w.outputs());
        assert_eq!(x.cols(), w.heads * from);
        out.resize(x.rows(), w.heads * to);
        let cost = || heads_cost("values of heads", w, x, out);
        self.measured(cost, || gemm::heads(&self.device, w, x, from, out, to));
    }

    fn rope(
        &self,
        x: &mut Tensor,
        first: usize,
        heads: usize,
        width: usize,
        rope: &Rope,
        batch: &Placed,
    ) {
        assert_eq!((x.rows(), x.kind()), (batch.rows(), Kind::Bf16));
        assert!(first + heads * width <= x.cols() && rope.dim <= width);
        x.changed();
        let params = params::Rotate {
            from: x.matrix(),
            to: x.matrix(),
            from_first: first as u32,
            from_width: width as u32,
            to_first: first as u32,
            to_width: width as u32,
            heads: heads as u32,
            neighbours: 0,
            rope: rope.params(),
            rows: batch.params(),
        };
        self.rotate(params, batch);
    }

    fn write_kv(
        &self,
        qkv: &Tensor,
        first_col: usize,
        batch: &Placed,
        pages: &PageMemory,
        layer: usize,
    ) {
        let width = pages.layout().row_values;
        assert_eq!((qkv.rows(), qkv.kind()), (batch.rows(), Kind::Bf16));
        assert!(first_col + width <= qkv.cols());
        let params = params::WriteKv {
            qkv: qkv.matrix(),
            first: first_col as u32,
            rows: batch.params(),
            pages: layer_of(pages, layer),
        };
        // SAFETY: see above; the engine holds these pages for writing.
        unsafe {
            let shape = Shape::rows(batch.rows(), width);
            self.device
                .launch(&self.device.kernels.write_kv, shape, &params)
        };
    }

    fn gqa_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        scale: f32,
        batch: &Placed,
        pages: &PageMemory,
        layer: usize,
        out: &mut Tensor,
    ) {
        assert_eq!(qkv.rows(), batch.rows());
        assert!(
            heads.is_multiple_of(kv_heads),
            "query heads do not divide among key heads"
        );
        assert_eq!(pages.layout().row_values, 2 * kv_heads * head_dim);
        assert!(heads * head_dim <= qkv.cols());
        out.resize(qkv.rows(), heads * head_dim);
        let params = params::Attention {
            q: qkv.address(),
            q_stride: qkv.stride() as u64,
            out: out.address(),
            out_stride: out.stride() as u64,
            heads: heads as u32,
            share: (heads / kv_heads) as u32,
            key_dim: head_dim as u32,
            value_dim: head_dim as u32,
            first_key: 0,
            first_value: (kv_heads * head_dim) as u32,
            scale,
            rows: batch.params(),
            pages: layer_of(pages, layer),
        };
        self.attend(&params, kv_heads, 2 * head_dim, batch);
    }

    fn route(&self, logits: &Tensor, gate: &GateParams<Vector>, out: &mut Routing) {
        assert_eq!(logits.kind(), Kind::F32, "experts are chosen in float32");
        out.resize(logits.rows(), gate.experts_per_token);
        let (config, experts) = (&gate.config, logits.cols());
        assert!(
            out.per_token <= experts,
            "more experts a token than there are"
        );
        assert!(
            gate.bias.as_ref().is_none_or(|bias| bias.len == experts),
            "one bias an expert"
        );
        let grouped =
            config.topk_method != TopkMethod::Greedy && config.topk_group < config.n_group;
        assert!(
            !grouped || (experts.is_multiple_of(config.n_group) && config.n_group <= 64),
            "experts do not divide into groups"
        );
        let params = params::Route {
            logits: logits.address(),
            stride: logits.stride() as u64,
            bias: gate.bias.as_ref().map_or(0, |bias| bias.memory.address()),
            experts: experts as u32,
            per_token: out.per_token as u32,
            groups: config.n_group as u32,
            top_groups: config.topk_group as u32,
            method: match config.topk_method {
                TopkMethod::Greedy => 0,
                TopkMethod::GroupLimitedGreedy => 1,
                TopkMethod::NoauxTc => 2,
            },
            sigmoid: (config.scoring == Scoring::Sigmoid).into(),
            normalise: config.norm_topk_prob.into(),
            scaling: config.routed_scaling_factor,
            chosen: out.experts.address(),
            weights: out.weights.address(),
        };
        let shape = Shape {
            grid: [logits.rows(), 1, 1],
            threads: 32,
            shared: 8 * experts,
        };
        self.moved("choice of experts", bytes_of(logits), || {
            // SAFETY: see above.
            unsafe {
                self.device
                    .launch(&self.device.kernels.route, shape, &params)
            }
        });
    }

    fn read_routing(&self, routing: &Routing, out: &mut Vec<(u32, f32)>) {
        let mut experts = vec![0u32; routing.choices()];
        let mut weights = vec![0.0f32; routing.choices()];
        routing.experts.download(0, &mut experts);
        routing.weights.download(0, &mut weights);
        out.clear();
        out.extend(experts.into_iter().zip(weights));
    }

    fn count(&self, routing: &Routing, layer: usize, tally: &mut Tally) {
        assert!(layer < tally.layers);
        let params = params::Count {
            chosen: routing.experts.address(),
            count: routing.choices() as u32,
            sums: tally.sums.address(layer * tally.experts),
        };
        let shape = Shape {
            grid: [routing.choices().div_ceil(256), 1, 1],
            threads: 256,
            shared: 0,
        };
        self.moved("counts of choices", 4 * routing.choices(), || {
            // SAFETY: see above; experts that were chosen are among those that are counted.
            unsafe {
                self.device
                    .launch(&self.device.kernels.count_choices, shape, &params)
            }
        });
    }

    fn close_tally(&self, tally: &mut Tally) {
        tally.sums.close();
    }

    fn take_tally(&self, tally: &mut Tally, sums: &mut [u64]) {
        tally.sums.take(sums);
    }

    fn moe(&self, x: &Tensor, routing: &Routing, experts: &Experts, out: &mut Tensor) {
        assert_eq!(
            (routing.rows, x.cols(), x.kind()),
            (x.rows(), experts.hidden(), Kind::Bf16)
        );
        out.resize(x.rows(), experts.hidden());
        let pieces = Pieces {
            count: routing.choices(),
            counted: 0,
            likely: routing.choices(),
            step: 1,
            slots: routing.experts.address(),
            rows: 0,
            per_row: routing.per_token,
        };
        let done = self.space().moe.run(&self.device, x, &pieces, experts);
        self.sum_products(done.products, done.stride, done.place, routing, out);
    }

    fn expert_rows(&self, x: &Tensor, work: &[Work], experts: &Experts, out: &mut Tensor) {
        assert_eq!((x.cols(), x.kind()), (experts.hidden(), Kind::Bf16));
        out.resize(work.len(), experts.hidden());
        let mut space = self.space();
        let pieces = space.moe.pieces(&self.device, work);
        let Products {
            products,
            stride,
            place,
        } = space.moe.run(&self.device, x, &pieces, experts);
        let params = params::CopyRows {
            from: products,
            from_stride: stride as u64,
            to: out.address(),
            to_stride: out.stride() as u64,
            count: out.cols() as u32,
            index: place,
        };
        self.copy_rows(&params, work.len());
    }

    fn combine(&self, returned: &Tensor, places: &[u32], routing: &Routing, out: &mut Tensor) {
        assert_eq!(places.len(), routing.choices());
        assert_eq!(returned.kind(), Kind::Bf16);
        out.resize(routing.rows, returned.cols());
        let places = self.space().index.upload(&self.device, places);
        let (products, stride) = (returned.address(), returned.stride());
        self.sum_products(products, stride, places, routing, out);
    }

    fn exchange(
        &self,
        shape: ExchangeShape,
        table: &ReplicaTable,
    ) -> Result<Option<Exchange>, KernelError> {
        self.new_exchange(shape, table).map(Some)
    }

    fn exchange_offer(&self, exchange: &mut Exchange, fresh: bool) -> Result<Vec<u8>, KernelError> {
        exchange.offer(&self.device, fresh)
    }

    fn exchange_connect(
        &self,
        exchange: &mut Exchange,
        me: usize,
        offers: &[Option<&[u8]>],
        table: &ReplicaTable,
        apart: bool,
    ) -> Result<(), KernelError> {
        exchange.connect(&self.device, me, offers, table, apart)
    }

    fn exchange_met(&self, exchange: &mut Exchange) {
        exchange.met();
    }

    fn exchange_begin(&self, first_row: u32, exchange: &mut Exchange) {
        exchange.begin(first_row);
    }

    fn exchange_dispatch(
        &self,
        layer: usize,
        x: &Tensor,
        routing: &Routing,
        experts: &Experts,
        exchange: &mut Exchange,
    ) {
        self.moved("dispatch", 2 * bytes_of(x), || {
            exchange.dispatch(&self.device, layer, x, routing, experts);
        });
    }

    fn exchange_serve(&self, experts: &Experts, exchange: &mut Exchange) {
        exchange.serve(self, experts);
    }

    fn exchange_combine(
        &self,
        routing: &Routing,
        exchange: &mut Exchange,
        more: Option<&Tensor>,
        out: &mut Tensor,
    ) {
        let bytes = 2 * routing.choices() * out.cols();
        self.moved("combine", bytes, || {
            exchange.combine(&self.device, routing, more, out)
        });
    }

    fn exchange_finish(&self, exchange: &Exchange, is_over: &dyn Fn() -> bool) -> bool {
        exchange.finish(&self.device, is_over)
    }

    fn exchange_close(&self, exchange: &mut Exchange) {
        exchange.close_counts();
    }

    fn exchange_counts(&self, exchange: &mut Exchange, sent: &mut [u64], computed: &mut [u64]) {
        exchange.take_counts(sent, computed);
    }
}
