import { defaulted, f32, op, u32 } from './define.ts'

/** How rope pairs the elements of a head: (i, i + dim / 2) or (2 i, 2 i + 1). */
export const ropeStyles = { half: 0, interleaved: 1 } as const

/**
 * Rotary position embedding (Su et al., 2021) on the first `dim` elements of each of `heads` heads; the rest pass.
 * Angle of pair i at position p: p * inv_freq[i]; cosine and sine are multiplied by `attention_factor`.
 * Scaled variants (linear, llama3, yarn) are inv_freq and attention_factor computed when the plan is compiled.
 */
export const rope = op({
  id: 8,
  name: 'rope',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'tokens', width: ['heads', 'head_dim'] } },
  outputs: { out: { space: 'tokens', width: ['heads', 'head_dim'] } },
  weights: { inv_freq: { shape: [[1], [{ param: 'dim', divide: 2 }]], form: 'row' } },
  states: {},
  params: { heads: u32, head_dim: u32, dim: u32, style: defaulted(u32, 0), attention_factor: defaulted(f32, 1) },
})

/**
 * Appends k and v of this step's tokens to the state, then attends causally over it:
 * out[t] = softmax(softcap(scale * q[t] . K)) V over positions (p - window, p]; window 0 is unbounded.
 * heads / kv_heads query heads share one head of K and V. With `q_norm` / `k_norm`, q and k first take rms_norm per
 * head; with `inv_freq`, then rope. Without causal, a token attends to every token of its sequence in this step and no
 * state is used.
 *
 * State, per block of B positions: K then V, each kv_heads times B times head_dim rounded up to 16. How elements lie
 * among these is a backend's own affair, as nobody else reads them. On the CPU, a head's keys are a matrix
 * (B, head_dim) and its values one of (head_dim, B), each in the layout that `linear` takes for the dtype.
 *
 * An int8 state holds round(x * 127 / max|x|) of each key and value, the maximum that of its head, and behind them the
 * scales max|x| / 127 in f32: of K then V, each (kv_heads, B). Its integers lie as bf16 elements would.
 */
export const attention = op({
  id: 9,
  name: 'attention',
  version: 1,
  paramVersion: [1, 0],
  inputs: {
    q: { space: 'tokens', width: ['heads', 'head_dim'] },
    k: { space: 'tokens', width: ['kv_heads', 'head_dim'] },
    v: { space: 'tokens', width: ['kv_heads', 'head_dim'] },
  },
  outputs: { out: { space: 'tokens', width: ['heads', 'head_dim'] } },
  weights: {
    inv_freq: { shape: [[1], [{ param: 'rope_dim', divide: 2 }]], form: 'row', optional: true },
    q_norm: { shape: [[1], ['head_dim']], form: 'row', optional: true },
    k_norm: { shape: [[1], ['head_dim']], form: 'row', optional: true },
  },
  states: {
    kv: {
      kind: 'paged',
      access: 'readwrite',
      optional: true,
      elements: [2, 'kv_heads', { param: 'head_dim', divide: 16, multiply: 16 }],
      scales: [2, 'kv_heads'],
    },
  },
  params: {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    scale: f32,
    causal: defaulted(u32, 1),
    window: defaulted(u32, 0),
    softcap: defaulted(f32, 0),
    rope_dim: defaulted(u32, 0),
    rope_style: defaulted(u32, 0),
    attention_factor: defaulted(f32, 1),
    norm_eps: defaulted(f32, 0),
    norm_offset: defaulted(f32, 0),
  },
})
