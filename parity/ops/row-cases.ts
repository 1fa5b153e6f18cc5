/** Cases of the opcodes that work row by row without a matrix. */
import { activations } from '../../abi/ops/define.ts'
import { pools } from '../../abi/ops/tokens.ts'
import type { GraphBuilder, Value } from '../../models/graph.ts'
import {
  bound,
  gathered,
  INPUT_ROWS,
  inputs,
  inputTensor,
  type OpCase,
  outputTokens,
  prompt,
  rowTensor,
  sizes,
} from './case.ts'
import { amplitude, type BatchName, batches, describe, type FillName, fills, generate, within } from './generate.ts'

const vocab = INPUT_ROWS
const anyFill = ['plain', 'large', 'tiny', 'nan', 'infinite'] as const
const anyBatch = ['few', 'ragged', 'counts'] as const

/** What most shapes have. */
interface Row {
  readonly width: number
  readonly fill: FillName
  readonly batch: BatchName
}
const row: Row = { width: 33, fill: 'plain', batch: 'few' }
const rowAxes = { width: sizes, fill: anyFill, batch: anyBatch } as const

/** Rows asked for out of order, twice, of some sequences only, and all. */
const rowChoices = {
  some: [prompt(9, { rows: [8, 0, 3] }), prompt(4, { slot: 2, rows: [] }), prompt(2, { slot: 3 })],
  last: [prompt(17, { rows: [16] }), prompt(1, { slot: 2, rows: [0] }), prompt(33, { slot: 3, rows: [32] })],
  twice: [prompt(5, { rows: [4, 4, 0, 4] })],
  all: [prompt(64)],
} as const

export const gatherCases: readonly OpCase[] = generate(
  { width: 33, fill: 'plain' as FillName, rows: 'some' as keyof typeof rowChoices },
  { width: sizes, fill: anyFill, rows: ['some', 'last', 'twice', 'all'] },
  4,
).map((shape) => ({
  op: 'gather_rows',
  name: describe(shape),
  vocab,
  // A copy of what is tiny is as good as any, and must not vanish.
  tensors: [inputTensor(shape.width, fills[shape.fill === 'tiny' ? 'ties' : shape.fill])],
  build: (graph) => graph.output('hidden', gathered(graph, inputs(graph, shape.width)[0]!)),
  steps: [{ sequences: rowChoices[shape.rows] }],
  tolerance: bound('gather_rows', shape.width),
}))

const poolShapes = generate(
  { ...row, normalize: 0 },
  { width: [1, 16, 17, 64, 65], fill: ['plain', 'large', 'nan', 'infinite'], batch: anyBatch, normalize: [0, 1] },
  4,
)
/** For the last token alone: a mean is no number wherever one of its tokens is none. */
const spoiledShapes = (['nan', 'infinite'] as const).map((fill): (typeof poolShapes)[number] => ({
  ...row,
  fill,
  batch: 'counts',
  normalize: 1,
}))

export const poolCases: readonly OpCase[] = Object.entries(pools).flatMap(([mode, id]) =>
  [...poolShapes, ...(mode === 'last' ? spoiledShapes : [])].map(
    ({ width, fill, batch, normalize }): OpCase => ({
      op: 'pool',
      name: `${mode}, ${describe({ width, fill, batch, normalize })}`,
      vocab,
      tensors: [inputTensor(width, fills[fill])],
      build: (graph) => {
        const [x] = inputs(graph, width)
        const params = { width, mode: id, normalize }
        graph.output('hidden', graph.add('pool', 'pool', { inputs: { x: x! }, params }).out)
      },
      steps: batches[batch],
      tolerance: bound('pool', width + 33, undefined, normalize ? 1 : amplitude(fill)),
    }),
  ),
)

/** Of the size of tiny inputs squared. */
const EPS = 1e-5

export const normCases: readonly OpCase[] = generate(
  { ...row, count: 1, weighted: true, offset: 0 },
  { ...rowAxes, count: [1, 3], weighted: [true, false], offset: [0, 0.5, 1] },
  12,
).map(({ width, fill, batch, count, weighted, offset }) => ({
  op: 'rms_norm',
  name: describe({ width, fill, batch, count, weighted, offset }),
  vocab,
  tensors: [inputTensor(count * width + 2, within(fill, 1, count * width + 1)), rowTensor('norm', width)],
  build: (graph) => {
    // one column in: misaligned
    const [, x] = inputs(graph, 1, count * width, 1)
    const weights = weighted ? { weight: graph.weight('norm', [width]) } : {}
    const params = { width, count, eps: EPS, weight_offset: offset }
    outputTokens(graph, graph.add('rms_norm', 'norm', { inputs: { x: x! }, weights, params }).out)
  },
  steps: batches[batch],
  // a normalised element is at most sqrt(width)
  tolerance: bound('rms_norm', width, undefined, (1 + offset) * Math.sqrt(width)),
}))

export const layerNormCases: readonly OpCase[] = generate(
  { ...row, weighted: true, biased: true },
  { ...rowAxes, width: sizes.slice(1), weighted: [true, false], biased: [true, false] },
  6,
).map(({ width, fill, batch, weighted, biased }) => ({
  op: 'layer_norm',
  name: describe({ width, fill, batch, weighted, biased }),
  vocab,
  tensors: [inputTensor(width, fills[fill]), rowTensor('norm', width), rowTensor('bias', width)],
  build: (graph) => {
    const [x] = inputs(graph, width)
    const weights = {
      weight: weighted ? graph.weight('norm', [width]) : undefined,
      bias: biased ? graph.weight('bias', [width]) : undefined,
    }
    outputTokens(
      graph,
      graph.add('layer_norm', 'norm', { inputs: { x: x! }, weights, params: { width, eps: EPS } }).out,
    )
  },
  steps: batches[batch],
  tolerance: bound('layer_norm', width, undefined, Math.sqrt(width)),
}))

/** A case over two inputs x and y of `width` columns, y misaligned. */
const pointwise = (
  op: 'glu' | 'activation' | 'residual' | 'multiply',
  name: string,
  { width, fill, batch }: Row,
  scale: number,
  build: (graph: GraphBuilder, x: Value, y: Value) => Value,
): OpCase => ({
  op,
  name: `${name}${describe({ width, fill, batch })}`,
  vocab,
  tensors: [inputTensor(2 * width + 1, fills[fill])],
  build: (graph) => {
    const [x, , y] = inputs(graph, width, 1, width)
    outputTokens(graph, build(graph, x!, y!))
  },
  steps: batches[batch],
  tolerance: bound(op, 1, undefined, scale),
})

const functions = Object.entries(activations)
const functionAxes = { width: [1, 17, 65], fill: ['plain', 'large', 'nan', 'infinite'], batch: anyBatch } as const
/** Largest value of an activation, and of its slope but for a constant, on [-x, x]. */
const reach = (name: string, x: number) => (name === 'relu2' ? x * x : Math.max(1, x))

export const gluCases = functions.flatMap(([name, activation]) =>
  generate(row, functionAxes).map((shape) =>
    pointwise(
      'glu',
      `${name}, `,
      shape,
      2 * reach(name, amplitude(shape.fill)) * amplitude(shape.fill),
      (graph, gate, up) =>
        graph.add('glu', 'glu', { inputs: { gate, up }, params: { width: shape.width, activation } }).out,
    ),
  ),
)

/** x is multiplied up first, so that the functions are seen where they bend and where they saturate. */
const WIDEN = 12

export const activationCases = functions.flatMap(([name, activation]) =>
  generate(row, functionAxes).map((shape) =>
    pointwise('activation', `${name}, `, shape, reach(name, WIDEN * amplitude(shape.fill)), (graph, x, y) => {
      const { width } = shape
      const wide = graph.add('residual', 'widen', { inputs: { x, y }, params: { width, scale: WIDEN - 1 } }).out
      return graph.add('activation', 'activation', { inputs: { x: wide }, params: { width, activation } }).out
    }),
  ),
)

export const residualCases = [1, 0.22, -2].flatMap((scale) =>
  generate(row, { ...rowAxes, fill: ['plain', 'large', 'nan', 'infinite'] }).map((shape) =>
    pointwise(
      'residual',
      `scale ${scale}, `,
      shape,
      2 * Math.max(1, Math.abs(scale)) * amplitude(shape.fill),
      (graph, x, y) =>
        graph.add('residual', 'residual', { inputs: { x, y }, params: { width: shape.width, scale } }).out,
    ),
  ),
)

export const multiplyCases = generate(row, { ...rowAxes, fill: ['plain', 'large', 'nan', 'infinite'] }).map((shape) =>
  pointwise(
    'multiply',
    '',
    shape,
    amplitude(shape.fill) ** 2,
    (graph, x, y) => graph.add('multiply', 'multiply', { inputs: { x, y }, params: { width: shape.width } }).out,
  ),
)
