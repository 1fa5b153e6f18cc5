/** Cases of the opcodes with a record a slot: resets, chunks, several slots, and slots that are used again. */
import { activations } from '../../abi/ops/define.ts'
import type { BatchInput } from '../batch.ts'
import { roundoff } from '../tolerances.ts'
import {
  bound,
  type FloatDType,
  INPUT_ROWS,
  inputs,
  inputTensor,
  type OpCase,
  outputTokens,
  prompt,
  rowTensor,
} from './case.ts'
import { describe, type Fill, type FillName, fills, generate } from './generate.ts'

/** Three sequences, their continuations in another order, and one that takes over the slot of another. */
const steps: readonly BatchInput[] = [
  { resets: [3], sequences: [prompt(1, { slot: 3 })] },
  { resets: [1, 2], sequences: [prompt(17, { slot: 2 }), prompt(2, { slot: 3, position: 1 }), prompt(5, { slot: 1 })] },
  { sequences: [prompt(1, { slot: 1, position: 5 }), prompt(33, { slot: 2, position: 17 })] },
  { resets: [2], sequences: [prompt(3, { slot: 2 }), prompt(1, { slot: 1, position: 6 })] },
  { sequences: [prompt(1, { slot: 2, position: 3 }), prompt(1, { slot: 3, position: 3 })] },
]

interface Conv {
  readonly channels: number
  readonly kernel: number
  readonly activation: keyof typeof activations
  readonly bias: boolean
  readonly state: FloatDType
  readonly fill: FillName
}

export const convCases: readonly OpCase[] = (['f32', 'f16', 'bf16'] as const).flatMap((state) =>
  generate<Conv>(
    { channels: 33, kernel: 4, activation: 'silu', bias: true, state, fill: 'plain' },
    {
      channels: [1, 16, 17, 31, 32, 64, 65],
      kernel: [2, 3, 5],
      activation: ['none', 'gelu'],
      bias: [false],
      fill: ['ties', 'nan', 'infinite'],
    },
    4,
  ).map((shape) => ({
    op: 'conv_state',
    name: describe(shape),
    state,
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(shape.channels, fills[shape.fill]),
      { name: 'taps', shape: [shape.channels, shape.kernel], dtype: 'f32' },
      rowTensor('bias', shape.channels),
    ],
    build: (graph) => {
      const { channels, kernel } = shape
      const [x] = inputs(graph, channels)
      const out = graph.add('conv_state', 'conv', {
        inputs: { x: x! },
        weights: {
          weight: graph.weight('taps', [channels, kernel]),
          bias: shape.bias ? graph.weight('bias', [channels]) : undefined,
        },
        states: { window: { name: 'window', dtype: state } },
        params: { channels, kernel, history: kernel - 1, activation: activations[shape.activation] },
      }).out
      outputTokens(graph, out)
    },
    steps,
    // past inputs are rounded to the state's dtype; the sum itself is float32
    tolerance: bound('conv_state', shape.kernel + 1, roundoff[state]) + bound('activation', 1, undefined, 2),
  })),
)

interface Scan {
  readonly heads: number
  readonly head_dim: number
  readonly groups: number
  readonly size: number
  readonly dt_max: number
  readonly fill: FillName
}

export const scanCases: readonly OpCase[] = generate<Scan>(
  { heads: 4, head_dim: 16, groups: 2, size: 16, dt_max: 1, fill: 'plain' },
  {
    heads: [2, 6, 8],
    head_dim: [1, 15, 17, 64],
    groups: [1],
    size: [1, 15, 17, 64],
    dt_max: [0.1],
    fill: ['ties', 'nan'],
  },
  4,
).map(({ heads, head_dim, groups, size, dt_max, fill }) => ({
  op: 'ssm_scan',
  name: describe({ heads, head_dim, groups, size, dt_max, fill }),
  state: 'f32',
  vocab: INPUT_ROWS,
  tensors: [
    inputTensor(heads * head_dim + heads + 2 * groups * size, fills[fill]),
    ...['a_log', 'd', 'dt_bias'].map((name) => rowTensor(name, heads)),
  ],
  build: (graph) => {
    const [x, dt, b, c] = inputs(graph, heads * head_dim, heads, groups * size, groups * size)
    const out = graph.add('ssm_scan', 'scan', {
      inputs: { x: x!, dt: dt!, b: b!, c: c! },
      weights: {
        a_log: graph.weight('a_log', [heads]),
        d: graph.weight('d', [heads]),
        dt_bias: graph.weight('dt_bias', [heads]),
      },
      states: { scan: { name: 'scan', dtype: 'f32' } },
      params: { heads, head_dim, groups, state: size, dt_min: 0.001, dt_max },
    }).out
    outputTokens(graph, out)
  },
  steps,
  // a record's elements stay below 1 / (1 - decay), about e
  tolerance: bound('ssm_scan', size, undefined, Math.E),
}))

interface Delta {
  readonly heads: number
  readonly key_heads: number
  readonly key_dim: number
  readonly value_dim: number
  readonly normalize: 0 | 1
  readonly fill: FillName
}

/** beta in [0, 1) and decays below 0, as models make them; keys that nobody normalises are no longer than 1. */
const deltaFill =
  ({ heads, key_heads, key_dim, value_dim, normalize, fill }: Delta): Fill =>
  (v, row, column, width) => {
    const [keys, values] = [2 * key_heads * key_dim, heads * value_dim]
    const filled = fills[fill](v, row, column, width)
    if (column < keys) return normalize ? filled : filled / Math.sqrt(key_dim)
    if (column < keys + values) return filled
    return column < keys + values + heads ? Math.abs(v) : -Math.abs(v)
  }

export const deltaCases: readonly OpCase[] = generate<Delta>(
  { heads: 4, key_heads: 2, key_dim: 16, value_dim: 16, normalize: 1, fill: 'plain' },
  {
    heads: [2, 6, 8],
    key_heads: [1],
    key_dim: [1, 15, 17, 64],
    value_dim: [2, 15, 17, 64],
    normalize: [0],
    fill: ['ties', 'nan'],
  },
  4,
).map((shape) => {
  const { heads, key_heads, key_dim, value_dim, normalize } = shape
  const widths = [key_heads * key_dim, key_heads * key_dim, heads * value_dim, heads, heads]
  return {
    op: 'delta_rule',
    name: describe(shape),
    state: 'f32',
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(
        widths.reduce((a, b) => a + b),
        deltaFill(shape),
      ),
    ],
    build: (graph) => {
      const [q, k, v, beta, decay] = inputs(graph, ...widths)
      const out = graph.add('delta_rule', 'delta', {
        inputs: { q: q!, k: k!, v: v!, beta: beta!, decay: decay! },
        states: { memory: { name: 'memory', dtype: 'f32' } },
        params: { heads, key_heads, key_dim, value_dim, scale: 0.5, normalize },
      }).out
      outputTokens(graph, out)
    },
    steps,
    tolerance: bound('delta_rule', key_dim),
  } satisfies OpCase
})
