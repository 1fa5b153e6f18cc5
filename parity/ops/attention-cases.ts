/** Cases of rope and attention: ragged batches, chunks, positions beyond several blocks, the edges of windows. */
import { ropeStyles } from '../../abi/ops/attention.ts'
import type { BatchInput } from '../batch.ts'
import { angle, roundoff } from '../tolerances.ts'
import { bound, type FloatDType, inputs, inputTensor, type OpCase, outputTokens, prompt, rowTensor } from './case.ts'

const LAST_POSITION = 1900

/** Enough blocks for every position. */
const many = (first: number) => Array.from({ length: 60 }, (_, i) => first + i)

export const ropeCases: readonly OpCase[] = Object.entries(ropeStyles).flatMap(([style, id]) =>
  [
    [2, 2],
    [16, 16],
    [17, 8],
    [64, 64],
    [80, 32],
    [128, 128],
  ].flatMap(([headDim, dim]) =>
    [1, 3].map(
      (heads): OpCase => ({
        op: 'rope',
        name: `${style}, ${heads} heads of ${headDim}, ${dim} rotated`,
        vocab: 67,
        tensors: [inputTensor(heads * headDim!), rowTensor('inv_freq', dim! / 2)],
        build: (graph) => {
          const [x] = inputs(graph, heads * headDim!)
          const weights = { inv_freq: graph.weight('inv_freq', [dim! / 2]) }
          const params = { heads, head_dim: headDim!, dim: dim!, style: id, attention_factor: 1.25 }
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
        tolerance: bound('rope', 2, undefined, 1.25) + 2 * angle(LAST_POSITION + 4),
      }),
    ),
  ),
)

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

interface Shape {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly kv?: FloatDType | 'i8'
  readonly window?: number
  readonly softcap?: number
  readonly norms?: boolean
  readonly ropeDim?: number
  readonly ropeStyle?: number
  readonly causal?: 0
}

const describe = ({ heads, kvHeads, headDim, kv = 'f32', ...rest }: Shape) =>
  [`${heads}/${kvHeads} heads of ${headDim}, ${kv}`, ...Object.entries(rest).map(([k, v]) => `${k} ${v}`)].join(', ')

function attentionCase(shape: Shape): OpCase {
  const { heads, kvHeads, headDim, kv = 'f32', norms, ropeDim = 0, causal = 1 } = shape
  return {
    op: 'attention',
    name: describe(shape),
    ...(causal && { state: kv }),
    vocab: 67,
    tensors: [
      inputTensor((heads + 2 * kvHeads) * headDim),
      ...['q_norm', 'k_norm'].map((name) => rowTensor(name, headDim)),
      ...(ropeDim ? [rowTensor('inv_freq', ropeDim / 2)] : []),
    ],
    build: (graph) => {
      const [q, k, v] = inputs(graph, heads * headDim, kvHeads * headDim, kvHeads * headDim)
      const out = graph.add('attention', 'attention', {
        inputs: { q: q!, k: k!, v: v! },
        weights: {
          inv_freq: ropeDim ? graph.weight('inv_freq', [ropeDim / 2]) : undefined,
          q_norm: norms ? graph.weight('q_norm', [headDim]) : undefined,
          k_norm: norms ? graph.weight('k_norm', [headDim]) : undefined,
        },
        states: { kv: causal ? { name: 'kv', dtype: kv } : undefined },
        params: {
          heads,
          kv_heads: kvHeads,
          head_dim: headDim,
          scale: 2 / Math.sqrt(headDim),
          causal,
          window: shape.window ?? 0,
          softcap: shape.softcap ?? 0,
          rope_dim: ropeDim,
          rope_style: shape.ropeStyle ?? 0,
          ...(norms && { norm_eps: 1e-6, norm_offset: 1 }),
        },
      }).out
      outputTokens(graph, out)
    },
    steps: filling,
    // normed heads have elements up to sqrt(head_dim), and scores follow
    tolerance: bound('attention', headDim, roundoff[kv], norms ? 4 : 1) + (ropeDim ? 8 * angle(80) : 0),
  }
}

const one = { heads: 4, kvHeads: 2, headDim: 32 }
export const attentionCases: readonly OpCase[] = [
  ...[1, 8, 15, 16, 17, 24, 31, 32, 33, 64, 80, 128, 256].map((headDim) => ({ ...one, headDim })),
  ...[
    [1, 1],
    [2, 2],
    [3, 1],
    [6, 2],
    [8, 1],
    [14, 2],
    [17, 1],
  ].map(([heads, kvHeads]) => ({
    ...one,
    heads: heads!,
    kvHeads: kvHeads!,
  })),
  ...(['f16', 'bf16'] as const).flatMap((kv) => [
    { ...one, kv },
    { ...one, kv, headDim: 80, heads: 6 },
  ]),
  ...[24, 32, 80].map((headDim) => ({ ...one, kv: 'i8' as const, headDim, heads: 6 })),
  { ...one, kv: 'i8', window: 33, norms: true, ropeDim: 32 } as const,
  ...[1, 2, 16, 31, 32, 33, 64, 1000].map((window) => ({ ...one, window })),
  { ...one, softcap: 2 },
  { ...one, norms: true },
  ...[2, 16, 32].flatMap((ropeDim) => [0, 1].map((ropeStyle) => ({ ...one, ropeDim, ropeStyle }))),
  { ...one, headDim: 24, ropeDim: 24, norms: true, kv: 'bf16' as const, window: 33 },
  { ...one, causal: 0 as const },
  { ...one, causal: 0 as const, headDim: 17, ropeDim: 16 },
].map(attentionCase)
