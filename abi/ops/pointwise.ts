import { defaulted, f32, op, u32 } from './define.ts'

/** Gated linear unit (Shazeer, 2020): out = activation(gate) * up. */
export const glu = op({
  id: 10,
  name: 'glu',
  version: 1,
  paramVersion: [1, 0],
  inputs: { gate: { space: 'any', width: ['width'] }, up: { space: 'any', width: ['width'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32, activation: u32 },
})

/** out = activation(x). */
export const activation = op({
  id: 11,
  name: 'activation',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['width'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32, activation: u32 },
})

/** out = x + scale * y. */
export const residual = op({
  id: 12,
  name: 'residual',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['width'] }, y: { space: 'any', width: ['width'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32, scale: defaulted(f32, 1) },
})

/** out = x * y, element by element. */
export const multiply = op({
  id: 13,
  name: 'multiply',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['width'] }, y: { space: 'any', width: ['width'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {},
  states: {},
  params: { width: u32 },
})
