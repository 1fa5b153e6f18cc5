import { defaulted, f32, op, u32 } from './define.ts'

/**
 * Causal depthwise convolution with carried state: out[t, c] = activation(bias[c] + sum_j weight[c, j] *
 * x[t - kernel + 1 + j, c]), where positions before this step come from the state (zero at the start).
 * State: the last kernel - 1 inputs, (kernel - 1, channels), oldest first.
 */
export const conv_state = op({
  id: 15,
  name: 'conv_state',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'tokens', width: ['channels'] } },
  outputs: { out: { space: 'tokens', width: ['channels'] } },
  weights: {
    weight: { shape: [['channels'], ['kernel']], form: 'row' },
    bias: { shape: [[1], ['channels']], form: 'row', optional: true },
  },
  states: { window: { kind: 'fixed', access: 'readwrite', elements: [{ param: 'history' }, 'channels'] } },
  params: { channels: u32, kernel: u32, /** kernel - 1 */ history: u32, activation: defaulted(u32, 0) },
})

/**
 * Selective state space (Mamba-2, Dao and Gu, 2024), per head h with B and C of group h / (heads / groups):
 * dt = clamp(softplus(dt + dt_bias), dt_min, dt_max); S = exp(-exp(a_log) * dt) * S + dt * x B^T; y = S C + d * x.
 * State: S, (heads, head_dim, state) in f32.
 */
export const ssm_scan = op({
  id: 16,
  name: 'ssm_scan',
  version: 1,
  paramVersion: [1, 0],
  inputs: {
    x: { space: 'tokens', width: ['heads', 'head_dim'] },
    dt: { space: 'tokens', width: ['heads'] },
    b: { space: 'tokens', width: ['groups', 'state'] },
    c: { space: 'tokens', width: ['groups', 'state'] },
  },
  outputs: { out: { space: 'tokens', width: ['heads', 'head_dim'] } },
  weights: {
    a_log: { shape: [[1], ['heads']], form: 'row' },
    d: { shape: [[1], ['heads']], form: 'row' },
    dt_bias: { shape: [[1], ['heads']], form: 'row' },
  },
  states: { scan: { kind: 'fixed', access: 'readwrite', elements: ['heads', 'head_dim', 'state'] } },
  params: {
    heads: u32,
    head_dim: u32,
    groups: u32,
    state: u32,
    dt_min: defaulted(f32, 0),
    dt_max: defaulted(f32, 3.4028234663852886e38),
  },
})

/**
 * Gated delta rule (Yang et al., 2024), per value head h with q and k of head h / (heads / key_heads), q and k scaled to
 * unit length when `normalize`, q times `scale`:
 * S = exp(decay) * S; S = S + beta * k (v - k^T S); out = q^T S.
 * State: S, (heads, key_dim, value_dim) in f32.
 */
export const delta_rule = op({
  id: 17,
  name: 'delta_rule',
  version: 1,
  paramVersion: [1, 0],
  inputs: {
    q: { space: 'tokens', width: ['key_heads', 'key_dim'] },
    k: { space: 'tokens', width: ['key_heads', 'key_dim'] },
    v: { space: 'tokens', width: ['heads', 'value_dim'] },
    beta: { space: 'tokens', width: ['heads'] },
    decay: { space: 'tokens', width: ['heads'] },
  },
  outputs: { out: { space: 'tokens', width: ['heads', 'value_dim'] } },
  weights: {},
  states: { memory: { kind: 'fixed', access: 'readwrite', elements: ['heads', 'key_dim', 'value_dim'] } },
  params: { heads: u32, key_heads: u32, key_dim: u32, value_dim: u32, scale: f32, normalize: defaulted(u32, 0) },
})
