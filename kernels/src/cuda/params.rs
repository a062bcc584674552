//! The kernels' parameters, field by field as the `.cu` files have them.

use cudarc::driver::sys::CUtensorMap;

/// An address in device memory; 0 where there is nothing.
pub type Address = u64;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pages {
    pub base: Address,
    pub page_bytes: u64,
    pub row_bytes: u32,
    pub row_values: u32,
    pub latent: u32,
    pub kind: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rows {
    pub tokens: Address,
    pub positions: Address,
    pub table_of: Address,
    pub tables: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rope {
    pub cos: Address,
    pub sin: Address,
    pub dim: u32,
    pub interleaved: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Matrix {
    pub data: Address,
    pub stride: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Narrow {
    pub codes: Address,
    pub scales: Address,
    pub stride: u64,
    pub scale_stride: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Embed {
    pub table: Address,
    pub table_stride: u64,
    pub rows: Rows,
    pub out: Matrix,
    pub cols: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Norm {
    pub x: Matrix,
    pub delta: Matrix,
    pub weight: Address,
    pub out: Matrix,
    pub cols: u32,
    pub eps: f32,
    pub narrow: Narrow,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct HeadNorm {
    pub x: Matrix,
    pub weight: Address,
    pub first: u32,
    pub width: u32,
    pub eps: f32,
    pub narrow: Narrow,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Add {
    pub out: Matrix,
    pub delta: Matrix,
    pub cols: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Silu {
    pub x: Matrix,
    pub out: Matrix,
    pub width: u32,
    pub narrow: Narrow,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DrawSpec {
    pub row: u32,
    pub top_k: u32,
    pub inverse_temperature: f32,
    pub min_p: f32,
    pub top_p: f32,
    pub padding: u32,
    pub quantile: f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Draw {
    pub x: Matrix,
    pub cols: u32,
    pub specs: Address,
    pub out: Address,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct EditSpec {
    pub row: u32,
    pub bias: u32,
    pub banned: u32,
    pub seen: u32,
    pub end: u32,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Edit {
    pub x: Matrix,
    pub cols: u32,
    pub words: Address,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ScoredSpec {
    pub row: u32,
    pub token: u32,
    pub count: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct LogProbs {
    pub x: Matrix,
    pub cols: u32,
    pub scored: Address,
    pub out: Address,
    pub out_stride: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ArgMax {
    pub x: Matrix,
    pub cols: u32,
    pub out: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct CopyRows {
    pub from: Address,
    pub from_stride: u64,
    pub to: Address,
    pub to_stride: u64,
    pub count: u32,
    pub index: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rotate {
    pub from: Matrix,
    pub to: Matrix,
    pub from_first: u32,
    pub from_width: u32,
    pub to_first: u32,
    pub to_width: u32,
    pub heads: u32,
    pub neighbours: u32,
    pub rope: Rope,
    pub rows: Rows,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct WriteLatent {
    pub kv_a: Matrix,
    pub first: u32,
    pub norm: Address,
    pub eps: f32,
    pub rope: Rope,
    pub rows: Rows,
    pub pages: Pages,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct WriteKv {
    pub qkv: Matrix,
    pub first: u32,
    pub rows: Rows,
    pub pages: Pages,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Attention {
    pub q: Address,
    pub q_stride: u64,
    pub out: Address,
    pub out_stride: u64,
    pub heads: u32,
    pub share: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub first_key: u32,
    pub first_value: u32,
    pub scale: f32,
    pub rows: Rows,
    pub pages: Pages,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct GroupedGemm {
    pub x: Address,
    pub x_stride: u64,
    pub w_stride: u64,
    pub y: Address,
    pub y_stride: u64,
    pub n: u32,
    pub k: u32,
    pub slots: Address,
    pub x_rows: Address,
    pub tile_count: Address,
    pub tiles: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Bf16Gemm {
    pub x_map: CUtensorMap,
    pub w_map: CUtensorMap,
    /// Not looked at where `store_tokens` is 0.
    pub y_map: CUtensorMap,
    pub bias: Address,
    pub y: Address,
    pub ldy: u64,
    pub y_step: u64,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub heads: u32,
    pub outputs: u32,
    pub tokens: u32,
    pub stages: u32,
    pub store_tokens: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Route {
    pub logits: Address,
    pub stride: u64,
    pub bias: Address,
    pub experts: u32,
    pub per_token: u32,
    pub groups: u32,
    pub top_groups: u32,
    pub method: u32,
    pub sigmoid: u32,
    pub normalise: u32,
    pub scaling: f32,
    pub chosen: Address,
    pub weights: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Count {
    pub chosen: Address,
    pub count: u32,
    pub sums: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sort {
    pub keys: Address,
    pub row_of: Address,
    pub step: u32,
    pub per_row: u32,
    pub count: u32,
    pub slots: u32,
    pub counted: Address,
    pub tile_rows: u32,
    pub wave: u32,
    pub waves: u32,
    pub rows: Address,
    pub place: Address,
    pub tile_count: Address,
    pub tiles: Address,
    pub offsets: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Combine {
    pub products: Address,
    pub products_stride: u64,
    pub place: Address,
    pub weights: Address,
    pub per_token: u32,
    pub cols: u32,
    pub out: Address,
    pub out_stride: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Fp8Quantize {
    pub x: Address,
    pub q: Address,
    pub scales: Address,
    pub rows_ptr: Address,
    pub rows: u32,
    pub k: u32,
    pub ldx: u32,
    pub scale_ld: u32,
    pub index: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Fp8Gemm {
    pub x_map: CUtensorMap,
    pub s_map: CUtensorMap,
    /// Of the one matrix; not looked at where there are slots.
    pub w_map: CUtensorMap,
    pub w_maps: Address,
    pub w_scales: Address,
    pub w_scale: Address,
    pub offsets: Address,
    pub rows_ptr: Address,
    pub y: Address,
    pub slots: u32,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub ldy: u32,
    pub split: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(16))]
pub struct MlaItem {
    pub row: u32,
    pub rows: u32,
    pub table: u32,
    pub begin: u32,
    pub end: u32,
    pub last: u32,
    pub head: u32,
    pub split: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Mla {
    pub map: CUtensorMap,
    pub q: Address,
    pub q_stride: u64,
    pub out: Address,
    pub out_stride: u64,
    pub tables: Address,
    pub items: Address,
    pub count: Address,
    pub partial: Address,
    pub stats: Address,
    pub scale: f32,
    pub heads: u32,
    pub page_rows: u32,
    pub layer_row: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MlaMergeItem {
    pub row: u32,
    pub rows: u32,
    pub head: u32,
    pub split: u32,
    pub step: u32,
    pub parts: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct MlaMerge {
    pub out: Address,
    pub out_stride: u64,
    pub partial: Address,
    pub stats: Address,
    pub merges: Address,
    pub count: Address,
    pub heads: u32,
}

#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Peer {
    pub window: Address,
    pub source: u32,
    pub member: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Exchange {
    pub peers: Address,
    pub window: Address,
    pub state: Address,
    pub sent: Address,
    pub stop: Address,
    pub timeout: u64,
    pub counts: u64,
    pub arrived: u64,
    pub returned: u64,
    pub rows_at: u64,
    pub work_at: u64,
    pub results_at: u64,
    pub row_bytes: u64,
    pub ranks: u32,
    pub rows: u32,
    pub per_token: u32,
    pub cols: u32,
    pub slots: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ExchangeDispatch {
    pub exchange: Exchange,
    pub entries: Address,
    pub replicas: Address,
    pub chosen: Address,
    pub rows: u32,
    pub scale_count: u32,
    pub scale_stride: u32,
    pub codes: Address,
    pub code_stride: u64,
    pub code_bytes: u64,
    pub scales: Address,
    pub sums: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ExchangeCollect {
    pub exchange: Exchange,
    pub slots: Address,
    pub rows: Address,
    pub homes: Address,
    pub sum: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ExchangeGather {
    pub exchange: Exchange,
    pub rows: Address,
    pub first: u32,
    pub count: u32,
    pub code_bytes: u32,
    pub scale_count: u32,
    pub codes: Address,
    pub scales: Address,
    pub scale_stride: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ExchangeRespond {
    pub exchange: Exchange,
    pub products: Address,
    pub stride: u64,
    pub place: Address,
    pub homes: Address,
    pub first: u32,
    pub count: u32,
    pub last: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ExchangeCombine {
    pub exchange: Exchange,
    pub weights: Address,
    pub rows: u32,
    pub out: Address,
    pub out_stride: u64,
    pub more: Matrix,
}
