import { blocks, defaulted, f32, groups, op, u32 } from './define.ts'

/**
 * out = residual + activation(x . weight^T + bias). weight is (n, k). With `scales` (f16) it holds int8 (q8), or int4
 * that `sub_scales` (int8 in [-15, 15]) multiply to int8 again (q4): a weight is integer * scale of its 256 along k, or
 * integer * sub-scale of its 32 * scale of its 256. One scale over many whole numbers is what lets matrix units sum
 * products of 8 bits over K exactly, in any order.
 */
export const linear = op({
  id: 6,
  name: 'linear',
  version: 1,
  paramVersion: [1, 0],
  inputs: {
    x: { space: 'any', width: ['k'] },
    residual: { space: 'any', width: ['n'], optional: true },
  },
  outputs: { out: { space: 'any', width: ['n'] } },
  weights: {
    weight: { shape: [['n'], ['k']], form: 'tiled' },
    scales: { shape: [['n'], [blocks('k')]], form: 'tiled', optional: true },
    bias: { shape: [[1], ['n']], form: 'row', optional: true },
    sub_scales: { shape: [['n'], [groups('k')]], form: 'tiled', optional: true },
  },
  states: {},
  params: { n: u32, k: u32, activation: defaulted(u32, 0) },
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
