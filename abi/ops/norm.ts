import { defaulted, f32, op, u32 } from './define.ts'

/**
 * Root-mean-square norm (Zhang and Sennrich, 2019) over each of `count` groups of `width`:
 * out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight).
 */
export const rms_norm = op({
  id: 4,
  name: 'rms_norm',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['count', 'width'] } },
  outputs: { out: { space: 'any', width: ['count', 'width'] } },
  weights: { weight: { shape: [[1], ['width']], form: 'row', optional: true } },
  states: {},
  params: { width: u32, count: defaulted(u32, 1), eps: f32, weight_offset: defaulted(f32, 0) },
})

/** Layer norm (Ba et al., 2016): out = (x - mean) / sqrt(variance + eps) * weight + bias. */
export const layer_norm = op({
  id: 5,
  name: 'layer_norm',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['width'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {
    weight: { shape: [[1], ['width']], form: 'row', optional: true },
    bias: { shape: [[1], ['width']], form: 'row', optional: true },
  },
  states: {},
  params: { width: u32, eps: f32 },
})
