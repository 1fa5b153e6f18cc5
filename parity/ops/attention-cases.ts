/** Cases of rope and attention: ragged batches, chunks, positions beyond several blocks, the edges of windows. */
import { ropeStyles } from '../../abi/ops/attention.ts'
import type { BatchInput } from '../batch.ts'
import { angle, roundoff, spoiledValue } from '../tolerances.ts'
import {
  bound,
  INPUT_ROWS,
  inputs,
  inputTensor,
  type OpCase,
  outputTokens,
  prompt,
  rowTensor,
  type StateDType,
} from './case.ts'
import { amplitude, describe, type FillName, fills, generate, within } from './generate.ts'

const LAST_POSITION = 1900

/** Enough blocks for every position. */
const many = (first: number) => Array.from({ length: 60 }, (_, i) => first + i)

interface Rope {
  readonly style: keyof typeof ropeStyles
  readonly head_dim: number
  /** Elements of a head that turn. */
  readonly dim: number
  readonly heads: number
  readonly attention_factor: number
  readonly fill: FillName
}

export const ropeCases: readonly OpCase[] = generate<Rope>(
  { style: 'half', head_dim: 64, dim: 64, heads: 3, attention_factor: 1.25, fill: 'plain' },
  {
    style: ['interleaved'],
    head_dim: [2, 15, 16, 17, 31, 33, 80, 128, 256],
    dim: [2, 8, 16, 30, 32, 34, 80, 128],
    heads: [1, 2, 17],
    attention_factor: [1],
    fill: ['large', 'nan', 'infinite'],
  },
  40,
  ({ head_dim, dim }) => dim <= head_dim,
).map((shape) => {
  const { style, head_dim, dim, heads, attention_factor, fill } = shape
  return {
    op: 'rope',
    name: describe(shape),
    vocab: INPUT_ROWS,
    tensors: [inputTensor(heads * head_dim, fills[fill]), rowTensor('inv_freq', dim / 2)],
    build: (graph) => {
      const [x] = inputs(graph, heads * head_dim)
      const weights = { inv_freq: graph.weight('inv_freq', [dim / 2]) }
      const params = { heads, head_dim, dim, style: ropeStyles[style], attention_factor }
      outputTokens(graph, graph.add('rope', 'rope', { inputs: { x: x! }, weights, params }).out)
    },
    steps: [
      { sequences: [prompt(33)] },
      {
        sequences: [
          prompt(1, { position: 999, blocks: many(1) }),
          prompt(4, { position: LAST_POSITION, blocks: many(1) }),
        ],
      },
    ],
    tolerance: (bound('rope', 2, undefined, 1.25) + 2 * angle(LAST_POSITION + 4)) * amplitude(fill),
  } satisfies OpCase
})

/** Two sequences filled in chunks and then decoded together; blocks are given out of order. */
const filling: readonly BatchInput[] = [
  { sequences: [prompt(1, { blocks: [9, 4, 12, 2] })] },
  {
    sequences: [
      prompt(31, { position: 1, blocks: [9, 4, 12, 2] }),
      prompt(66, { slot: 2, blocks: [3, 8, 5, 7] }),
      prompt(2, { slot: 3, blocks: [6] }),
    ],
  },
  {
    sequences: [
      prompt(1, { slot: 2, position: 66, blocks: [3, 8, 5, 7] }),
      prompt(40, { position: 32, blocks: [9, 4, 12, 2] }),
    ],
  },
  {
    sequences: [
      prompt(1, { position: 72, blocks: [9, 4, 12, 2] }),
      prompt(1, { slot: 2, position: 67, blocks: [3, 8, 5, 7] }),
    ],
  },
]

/** A sequence whose last block is copied for another that goes on from it, and one that takes its blocks when it is gone. */
const forking: readonly BatchInput[] = [
  { sequences: [prompt(45, { blocks: [5, 3] })] },
  {
    copies: [[3, 7]],
    sequences: [
      prompt(3, { slot: 2, position: 45, blocks: [5, 7] }),
      prompt(2, { position: 45, blocks: [5, 3], tokens: [1, 2] }),
    ],
  },
  { sequences: [prompt(20, { slot: 3, blocks: [3] }), prompt(1, { slot: 2, position: 48, blocks: [5, 7] })] },
  // back to position 40, with other tokens than before
  {
    sequences: [
      prompt(2, { slot: 2, position: 40, blocks: [5, 7], tokens: [50, 51] }),
      prompt(1, { slot: 3, position: 20, blocks: [3] }),
    ],
  },
]

/** As many sequences as a step takes, of one token each, at the edges of blocks. */
const edges: readonly BatchInput[] = [
  { sequences: [1, 2, 3].map((slot) => prompt([31, 32, 33][slot - 1]!, { slot, blocks: [2 * slot, 2 * slot + 1] })) },
  {
    sequences: [
      ...[1, 2, 3].map((slot) =>
        prompt(1, { slot, position: [31, 32, 33][slot - 1]!, blocks: [2 * slot, 2 * slot + 1] }),
      ),
      ...[4, 5, 6, 7, 8].map((slot) => prompt(1, { slot, blocks: [slot + 5] })),
    ],
  },
]

const LONG = 520
/** One sequence beyond two splits of 256 positions, in chunks, beside one of a few; then one token of each. */
const scattered = Array.from({ length: 17 }, (_, i) => 1 + ((i * 5) % 17))
const long: readonly BatchInput[] = [
  ...[0, 173, 346].map((position) => ({
    sequences: [
      prompt(Math.min(173, LONG - 1 - position), { position, blocks: scattered }),
      prompt(2, { slot: 2, position: position ? (position / 173) * 2 : 0, blocks: [18] }),
    ],
  })),
  {
    sequences: [
      prompt(1, { slot: 2, position: 6, blocks: [18] }),
      prompt(1, { position: LONG - 1, blocks: scattered }),
    ],
  },
]

const batches = { filling, forking, edges, long }
const lastPosition = { filling: 80, forking: 80, edges: 80, long: LONG } as const

interface Shape {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly state: StateDType
  readonly window: number
  readonly softcap: number
  readonly norms: boolean
  readonly ropeDim: number
  readonly ropeStyle: keyof typeof ropeStyles
  readonly full: boolean
  readonly q: FillName
  readonly k: FillName
  readonly v: FillName
  readonly batch: keyof typeof batches
}

/** By how much scores and values are larger than those of inputs in [-1, 1). */
function scaleOf({ norms, q, k, v }: Shape): number {
  // normed heads have elements up to sqrt(head_dim), and scores follow
  const scores = norms ? 4 : Math.max(1, amplitude(q) * amplitude(k))
  return scores * amplitude(v)
}

function attentionCase(shape: Shape): OpCase {
  const { heads, kvHeads, headDim, state, norms, ropeDim, full, batch } = shape
  const [queries, pairs] = [heads * headDim, (heads + kvHeads) * headDim]
  const width = pairs + kvHeads * headDim
  return {
    op: 'attention',
    name: describe({ ...shape, ropeStyle: ropeDim ? shape.ropeStyle : 0, state: full ? 0 : state }),
    ...(!full && { state }),
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(width, (value, row, column) => {
        const [fill, from, to] =
          column < queries
            ? ([shape.q, 0, queries] as const)
            : column < pairs
              ? ([shape.k, queries, pairs] as const)
              : ([shape.v, pairs, width] as const)
        return within(fill, from, to)(value, row, column, width)
      }),
      ...['q_norm', 'k_norm'].map((name) => rowTensor(name, headDim)),
      ...(ropeDim ? [rowTensor('inv_freq', ropeDim / 2)] : []),
    ],
    build: (graph) => {
      const [q, k, v] = inputs(graph, queries, kvHeads * headDim, kvHeads * headDim)
      const out = graph.add('attention', 'attention', {
        inputs: { q: q!, k: k!, v: v! },
        weights: {
          inv_freq: ropeDim ? graph.weight('inv_freq', [ropeDim / 2]) : undefined,
          q_norm: norms ? graph.weight('q_norm', [headDim]) : undefined,
          k_norm: norms ? graph.weight('k_norm', [headDim]) : undefined,
        },
        states: { kv: full ? undefined : { name: 'kv', dtype: state } },
        params: {
          heads,
          kv_heads: kvHeads,
          head_dim: headDim,
          scale: 2 / Math.sqrt(headDim),
          causal: full ? 0 : 1,
          window: shape.window,
          softcap: shape.softcap,
          rope_dim: ropeDim,
          rope_style: ropeStyles[shape.ropeStyle],
          ...(norms && { norm_eps: 1e-5, norm_offset: 1 }),
        },
      }).out
      outputTokens(graph, out)
    },
    steps: batches[batch],
    ...(isSpecial(shape.v) && { nonFinite: spoiledValue.rule }),
    tolerance:
      bound('attention', headDim, roundoff[state], scaleOf(shape)) + (ropeDim ? 8 * angle(lastPosition[batch]) : 0),
  }
}

const base: Shape = {
  heads: 4,
  kvHeads: 2,
  headDim: 32,
  state: 'f32',
  window: 0,
  softcap: 0,
  norms: false,
  ropeDim: 0,
  ropeStyle: 'half',
  full: false,
  q: 'plain',
  k: 'plain',
  v: 'plain',
  batch: 'filling',
}

/** Whether there is such an attention: queries share keys, rope fits, and an int8 state is not of what is no number. */
const isSpecial = (fill: FillName) => fill === 'nan' || fill === 'infinite'

const sound = ({ heads, kvHeads, headDim, ropeDim, norms, q, k }: Shape) =>
  heads % kvHeads === 0 && ropeDim <= headDim && !(norms && (q !== 'plain' || k !== 'plain') && q !== 'tiny')

/** Long contexts cost the reference dearly. */
const small = { heads: 2, kvHeads: 1, headDim: 16 } as const
const headDims = [1, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 80, 128, 256]
const states = ['f32', 'f16', 'bf16', 'i8'] as const

const shapesOf = (state: StateDType): Shape[] => [
  ...generate<Shape>(
    { ...base, state },
    {
      headDim: headDims,
      heads: [2, 6, 8, 14, 18],
      kvHeads: [1, 4],
      window: [1, 2, 16, 31, 32, 33, 64, 1000],
      softcap: [2],
      norms: [true],
      v: ['large', 'ties', 'equal', 'nan', 'infinite'],
      q: ['tiny', 'nan', 'infinite'],
      // int8 makes NaN of an infinity, which -infinity as a score is not
      k: ['equal', 'nan', ...(state === 'i8' ? [] : (['infinite'] as const))],
      batch: ['forking', 'edges'],
    },
  ),
  // all of the shape, mixed, without what is no number
  ...generate<Shape>(
    { ...base, state },
    {
      headDim: headDims.filter((headDim) => headDim <= 80),
      heads: [1, 3, 4, 6],
      kvHeads: [1, 2, 3],
      window: [0, 0, 2, 31, 33, 64],
      softcap: [0, 0, 3],
      norms: [false, true],
      ropeDim: [0, 0, 2, 16, 24, 32],
      ropeStyle: ['half', 'interleaved'],
      batch: ['filling', 'forking', 'edges'],
    },
    16,
    sound,
  ),
  ...generate<Shape>(
    { ...base, ...small, state, batch: 'long' },
    { window: [31, 255, 256, 257], headDim: [32], kvHeads: [2] },
  ),
  ...generate<Shape>({ ...base, state, norms: true, q: 'tiny', k: 'tiny' }, { headDim: [17, 64] }),
  ...(['half', 'interleaved'] as const).flatMap((ropeStyle) =>
    generate<Shape>({ ...base, state, ropeDim: 32, ropeStyle }, { ropeDim: [2, 16], headDim: [33, 64] }),
  ),
]

const shapes: readonly Shape[] = [
  ...states.flatMap(shapesOf),
  // one weight matters: errors of scores grow with them, which float32 alone can bound
  { ...base, q: 'wide', k: 'wide' },
  { ...base, ...small, q: 'wide', k: 'wide', batch: 'long' },
  { ...base, ...small, ropeDim: 16, batch: 'long' },
  ...generate<Shape>(
    { ...base, full: true },
    {
      headDim: [1, 17, 33, 64, 80],
      ropeDim: [16, 32],
      window: [5],
      heads: [2, 6],
      v: ['large', 'nan'],
      norms: [true],
      softcap: [2],
    },
  ),
]

const byName = new Map(shapes.map(attentionCase).map((opCase) => [opCase.name, opCase]))
export const attentionCases: readonly OpCase[] = [...byName.values()]
