import { defaulted, f32, groups, op, u32 } from './define.ts'

/**
 * out = residual + activation(x . weight^T + bias). weight is (n, k); with `scales`, weight is int8 or int4 and each
 * group of 32 along k is multiplied by its scale (q8, q4).
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
    scales: { shape: [['n'], [groups('k')]], form: 'tiled', optional: true },
    bias: { shape: [[1], ['n']], form: 'row', optional: true },
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
    scales: { shape: [['vocab'], [groups('k')]], form: 'tiled', optional: true },
    bias: { shape: [[1], ['vocab']], form: 'row', optional: true },
  },
  states: {},
  params: { vocab: u32, k: u32, scale: defaulted(f32, 1), softcap: defaulted(f32, 0) },
})
