/** Cases of the opcodes that read a matrix, in every dtype. */
import { activations, QUANT_GROUP } from '../../abi/ops/define.ts'
import {
  bound,
  gathered,
  INPUT,
  INPUT_ROWS,
  inputs,
  inputTensor,
  isQuantized,
  longSizes,
  type MatrixDType,
  matrixDTypes,
  matrixTensor,
  type OpCase,
  outputTokens,
  productBounds,
  prompt,
  rowTensor,
  sizes,
} from './case.ts'
import { amplitude, type BatchName, batches, describe, type FillName, fills, generate, within } from './generate.ts'

/** The cell of a matrix dtype, and how the plan's matrices come to have it. */
export const stored = (dtype: MatrixDType) => ({ weights: dtype, ...(isQuantized(dtype) && { quantize: dtype }) })

interface Embed {
  readonly width: number
  readonly fill: FillName
  readonly batch: BatchName
  readonly scale: number
  readonly positions: boolean
  readonly types: boolean
}

/** Of a table of positions: the context, and an offset. */
const POSITIONS = 2050
const OFFSET = 2

const embedCase = (dtype: MatrixDType, shape: Embed): OpCase => {
  const { width, fill, scale, positions, types } = shape
  return {
    op: 'embed',
    name: `${dtype}, ${describe(shape)}`,
    vocab: INPUT_ROWS,
    tensors: [
      { ...matrixTensor('table', INPUT_ROWS, width, dtype), fill: fills[fill] },
      { name: 'positions', shape: [POSITIONS, width], dtype: 'f32' },
      { name: 'types', shape: [2, width], dtype: 'f32' },
    ],
    ...stored(dtype),
    build: (graph) => {
      const weights = {
        table: graph.weight('table', [INPUT_ROWS, width]),
        positions: positions ? graph.weight('positions', [POSITIONS, width]) : undefined,
        types: types ? graph.weight('types', [2, width]) : undefined,
      }
      const extra = {
        ...(positions && { positions: POSITIONS, position_offset: OFFSET }),
        ...(types && { types: 2 }),
      }
      outputTokens(
        graph,
        graph.add('embed', 'embed', { weights, params: { vocab: INPUT_ROWS, width, scale, ...extra } }).out,
      )
    },
    steps: [
      ...batches[shape.batch],
      {
        sequences: [prompt(33, { position: 7 }), prompt(3, { slot: 2, position: POSITIONS - OFFSET - 3, blocks: [] })],
      },
    ],
    tolerance: bound('embed', 1, undefined, 3 * amplitude(fill)),
  }
}

export const embedCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) =>
  generate<Embed>(
    { width: 33, fill: 'plain', batch: 'few', scale: 1.5, positions: false, types: false },
    {
      width: [...sizes, 257],
      fill: isQuantized(dtype) ? ['large'] : ['large', 'nan', 'infinite'],
      batch: ['ragged'],
      scale: [1, -2],
      positions: [true],
      types: [true],
    },
    6,
  ).map((shape) => embedCase(dtype, shape)),
)

interface Linear {
  readonly n: number
  readonly k: number
  readonly fill: FillName
  readonly batch: BatchName
  readonly bias: boolean
  readonly residual: boolean
  readonly activation: keyof typeof activations
  readonly norm: boolean
  readonly branches: 1 | 2
}

/** Largest sum of K products of a weight in [-1, 1) and an input of size 1, of the few 1e4 of a case: four deviations. */
const largestSum = (k: number) => (4 / 3) * Math.sqrt(k)

/** By how much an error of a product grows on its way out. */
function linearScale({ k, fill, norm, activation, branches }: Linear): number {
  // Normed inputs, as the weights of the norm, are a few times larger.
  const input = norm ? 4 : amplitude(fill)
  // A branch multiplies the error of the other, and a square has the slope of its argument.
  const factor = 2 * input * largestSum(k)
  return input * (branches === 2 ? factor : 1) * (activation === 'relu2' ? factor : 1)
}

function linearCase(dtype: MatrixDType, shape: Linear): OpCase {
  const { n, k, branches, norm } = shape
  const rows = branches * n
  // Weights of two branches are stored in another order than the checkpoint's.
  const order = branches === 2 ? { branches } : {}
  return {
    op: 'linear',
    name: `${dtype}, ${describe({ ...shape, activation: shape.activation === 'none' ? 0 : shape.activation })}`,
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(k + n, within(shape.fill, 0, k)),
      matrixTensor('weight', rows, k, dtype),
      rowTensor('bias', rows),
      rowTensor('norm', k),
    ],
    ...stored(dtype),
    build: (graph) => {
      const [x, residual] = inputs(graph, k, n)
      const out = graph.add('linear', 'linear', {
        inputs: { x: x!, residual: shape.residual ? residual : undefined },
        weights: {
          weight: { ...graph.weight('weight', [rows, k]), ...order },
          bias: shape.bias ? { ...graph.weight('bias', [rows]), ...order } : undefined,
          norm: norm ? graph.weight('norm', [k]) : undefined,
        },
        params: {
          n,
          k,
          branches,
          activation: activations[shape.activation],
          ...(norm && { norm_eps: 1e-5, norm_offset: 1 }),
        },
      }).out
      outputTokens(graph, out)
    },
    steps: batches[shape.batch],
    ...productBounds('linear', k + 2, linearScale(shape)),
  }
}

const linear: Linear = {
  n: 33,
  k: 65,
  fill: 'plain',
  batch: 'counts',
  bias: false,
  residual: false,
  activation: 'none',
  norm: false,
  branches: 1,
}
const soundBranches = ({ n, branches }: Linear) => branches === 1 || n % 16 === 0
/** An infinity comes out of int8 products as NaN, which no function makes a number again. */
const bounded = (dtype: MatrixDType, fill: FillName, bounds: boolean) =>
  isQuantized(dtype) && fill === 'infinite' && bounds

export const linearCases: readonly OpCase[] = [...matrixDTypes, 'fp8' as const].flatMap((dtype) => {
  const names = Object.keys(activations) as Linear['activation'][]
  const shapes = [
    ...generate<Linear>(
      linear,
      {
        n: [...sizes, 130],
        k: [...sizes, ...longSizes],
        fill: ['large', 'ties', 'nan', 'infinite'],
        batch: ['ragged'],
        bias: [true],
        residual: [true],
        activation: dtype === 'f32' ? names : ['gelu', 'relu2'],
        norm: [true],
      },
      10,
      ({ fill, activation }) => !bounded(dtype, fill, activation !== 'none'),
    ),
    ...generate<Linear>({ ...linear, norm: true }, { k: sizes, fill: ['tiny', 'large', 'nan'], bias: [true] }),
    ...generate<Linear>(
      { ...linear, n: 16, branches: 2 },
      {
        n: [32, 48, 80, 128],
        k: [31, 64, 96, 257],
        activation: ['silu', 'gelu'],
        residual: [true],
        bias: [true],
        norm: [true],
        fill: ['large', 'nan'],
      },
      6,
      soundBranches,
    ),
  ]
  // what a comparison could make a number again
  for (const activation of ['relu', 'relu2'] as const) shapes.push({ ...linear, fill: 'nan', activation })
  const byName = new Map(shapes.map((shape) => [describe(shape), shape]))
  // shorter rows stay float32: nothing of fp8, which not every backend runs
  const all = [...byName.values()].filter(({ k }) => dtype !== 'fp8' || k >= QUANT_GROUP)
  return all.map((shape) => linearCase(dtype, shape))
})

interface Logits {
  readonly vocab: number
  readonly k: number
  readonly fill: FillName
  readonly scale: number
  readonly softcap: number
  readonly bias: boolean
}

/** Logits over `vocab` from rows of `k`. */
function logitsCase(dtype: MatrixDType, shape: Logits): OpCase {
  const { vocab, k, scale, softcap } = shape
  const rows = Math.max(vocab, INPUT_ROWS)
  const ids = (count: number) => Array.from({ length: count }, (_, i) => (i * 31 + 7) % Math.min(vocab, INPUT_ROWS))
  const step = (count: number) => ({ sequences: [prompt(count, { tokens: ids(count) })] })
  return {
    op: 'logits',
    name: `${dtype}, ${describe(shape)}`,
    vocab,
    tensors: [
      { name: INPUT, shape: [rows, k], dtype: 'f32', fill: fills[shape.fill] },
      matrixTensor('head', vocab, k, dtype),
      rowTensor('bias', vocab),
    ],
    ...stored(dtype),
    build: (graph) => {
      const table = graph.weight(INPUT, [rows, k])
      const x = graph.add('embed', INPUT, { weights: { table }, params: { vocab: rows, width: k } }).out
      const bias = shape.bias ? graph.weight('bias', [vocab]) : undefined
      const { out } = graph.add('logits', 'logits', {
        inputs: { x: gathered(graph, x) },
        weights: { weight: graph.weight('head', [vocab, k]), bias },
        params: { vocab, k, scale, softcap },
      })
      graph.output('logits', out)
    },
    steps: [
      step(1),
      step(17),
      {
        sequences: [
          prompt(9, { tokens: ids(9), rows: [8, 2] }),
          prompt(3, { slot: 2, tokens: ids(3), rows: [2] }),
          prompt(1, { slot: 3, tokens: ids(2).slice(-1) }),
        ],
      },
    ],
    ...productBounds('logits', k + 1, Math.max(1, Math.abs(scale)) * amplitude(shape.fill)),
  }
}

export const logitsCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) =>
  generate<Logits>(
    { vocab: 33, k: 65, fill: 'plain', scale: 1, softcap: 0, bias: true },
    {
      vocab: [...sizes, 515],
      k: [...sizes, 96, 257, 700],
      fill: ['large', 'ties', 'nan', 'infinite'],
      scale: [0.5, 2],
      softcap: [3, 30],
      bias: [false],
    },
    4,
    ({ fill, softcap }) => !bounded(dtype, fill, softcap > 0),
  ).map((shape) => logitsCase(dtype, shape)),
)
