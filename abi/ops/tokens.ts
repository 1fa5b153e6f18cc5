import { blocks, defaulted, f32, op, u32 } from './define.ts'

/**
 * out[t] = scale * table[token_ids[t]] (+ positions[position[t] + position_offset]) (+ types[0]).
 * Token ids and positions come from the step.
 */
export const embed = op({
  id: 1,
  name: 'embed',
  version: 1,
  paramVersion: [1, 0],
  inputs: {},
  outputs: { out: { space: 'tokens', width: ['width'] } },
  weights: {
    table: { shape: [['vocab'], ['width']], form: 'tiled' },
    scales: { shape: [['vocab'], [blocks('width')]], form: 'tiled', optional: true },
    positions: { shape: [['positions'], ['width']], form: 'row', optional: true },
    types: { shape: [['types'], ['width']], form: 'row', optional: true },
  },
  states: {},
  params: {
    vocab: u32,
    width: u32,
    scale: defaulted(f32, 1),
    positions: defaulted(u32, 0),
    position_offset: defaulted(u32, 0),
    types: defaulted(u32, 0),
  },
})

/** out[r] = x[row_token[r]]: keeps the tokens whose logits or hidden state are wanted. */
export const gather_rows = op({
  id: 2,
  name: 'gather_rows',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'tokens', width: ['width'] } },
  outputs: { out: { space: 'rows', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32 },
})

/** Pooling modes of `pool`. */
export const pools = { mean: 0, first: 1, last: 2 } as const

/** out[s] = mean, first or last x of the sequence's tokens in this step, divided by its L2 norm, at least 1e-12, when `normalize`. */
export const pool = op({
  id: 3,
  name: 'pool',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'tokens', width: ['width'] } },
  outputs: { out: { space: 'sequences', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32, mode: u32, normalize: defaulted(u32, 0) },
})
