import { blocks, defaulted, f32, groups, op, since, u32 } from './define.ts'

/**
 * out = residual + activation(x . weight^T + bias). weight is (n, k). With `scales` (f16) it holds int8 (q8), or int4
 * that `sub_scales` (int8 in [-15, 15]) multiply to int8 again (q4): a weight is integer * scale of its 256 along k, or
 * integer * sub-scale of its 32 * scale of its 256. One scale over many whole numbers is what lets matrix units sum
 * products of 8 bits over K exactly, in any order. An e4m3 weight (fp8) has one scale a row, float32: (n, 1).
 *
 * With `norm`, x is first what rms_norm makes of it: x / sqrt(mean(x^2) + norm_eps) * (norm_offset + norm).
 *
 * With two branches, out = residual + activation(gate) * up, each a product of n rows: weight, scales and bias hold a run
 * of 16 rows of the gate, the same 16 of up, and so on, so n is a multiple of 16.
 */
export const linear = op({
  id: 6,
  name: 'linear',
  version: 1,
  paramVersion: [1, 1],
  inputs: {
    x: { space: 'any', width: ['k'] },
    residual: { space: 'any', width: ['n'], optional: true },
  },
  outputs: { out: { space: 'any', width: ['n'] } },
  weights: {
    weight: { shape: [['branches', 'n'], ['k']], form: 'tiled' },
    scales: { shape: [['branches', 'n'], [blocks('k')]], form: 'tiled', optional: true },
    bias: { shape: [[1], ['branches', 'n']], form: 'row', optional: true },
    sub_scales: { shape: [['branches', 'n'], [groups('k')]], form: 'tiled', optional: true },
    norm: { shape: [[1], ['k']], form: 'row', optional: true },
  },
  states: {},
  params: {
    n: u32,
    k: u32,
    activation: defaulted(u32, 0),
    branches: since(1, defaulted(u32, 1)),
    norm_eps: since(1, defaulted(f32, 0)),
    norm_offset: since(1, defaulted(f32, 0)),
  },
})

/** out = softcap(scale * (x . weight^T + bias)), softcap(z) = cap * tanh(z / cap) where cap > 0. */
export const logits = op({
  id: 7,
  name: 'logits',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'rows', width: ['k'] } },
  outputs: { out: { space: 'rows', width: ['vocab'] } },
  weights: {
    weight: { shape: [['vocab'], ['k']], form: 'tiled' },
    scales: { shape: [['vocab'], [blocks('k')]], form: 'tiled', optional: true },
    bias: { shape: [[1], ['vocab']], form: 'row', optional: true },
  },
  states: {},
  params: { vocab: u32, k: u32, scale: defaulted(f32, 1), softcap: defaulted(f32, 0) },
})
