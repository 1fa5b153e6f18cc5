/** Cases of the opcodes that work row by row without a matrix. */
import { activations } from '../../abi/ops/define.ts'
import { pools } from '../../abi/ops/tokens.ts'
import {
  bound,
  countSteps,
  gathered,
  inputs,
  inputTensor,
  type OpCase,
  outputTokens,
  prompt,
  rowTensor,
  sizes,
} from './case.ts'

const steps = [countSteps[0]!, countSteps[5]!]
const base = { vocab: 67, steps }

const ragged = { sequences: [prompt(1), prompt(17, { slot: 2 }), prompt(5, { slot: 3, position: 3 })] }

export const gatherCases: readonly OpCase[] = sizes.map((width) => ({
  ...base,
  op: 'gather_rows',
  name: `width ${width}`,
  tensors: [inputTensor(width)],
  build: (graph) => graph.output('hidden', gathered(graph, inputs(graph, width)[0]!)),
  steps: [{ sequences: [prompt(9, { rows: [8, 0, 3] }), prompt(4, { slot: 2, rows: [] }), prompt(2, { slot: 3 })] }],
  tolerance: bound('gather_rows', width),
}))

export const poolCases: readonly OpCase[] = Object.entries(pools).flatMap(([mode, id]) =>
  [0, 1].flatMap((normalize) =>
    [1, 17, 64].map(
      (width): OpCase => ({
        ...base,
        op: 'pool',
        name: `${mode}, width ${width}${normalize ? ', normalised' : ''}`,
        tensors: [inputTensor(width)],
        build: (graph) => {
          const [x] = inputs(graph, width)
          graph.output(
            'hidden',
            graph.add('pool', 'pool', { inputs: { x: x! }, params: { width, mode: id, normalize } }).out,
          )
        },
        steps: [...steps, ragged],
        tolerance: bound('pool', width + 33),
      }),
    ),
  ),
)

export const normCases: readonly OpCase[] = sizes.flatMap((width) =>
  [1, 3].flatMap((count) =>
    [true, false].map(
      (weighted): OpCase => ({
        ...base,
        op: 'rms_norm',
        name: `${count} of ${width}${weighted ? ', weighted' : ''}`,
        tensors: [inputTensor(count * width + 2), rowTensor('norm', width)],
        build: (graph) => {
          const [, x] = inputs(graph, 1, count * width, 1)
          outputTokens(
            graph,
            graph.add('rms_norm', 'norm', {
              inputs: { x: x! },
              weights: weighted ? { weight: graph.weight('norm', [width]) } : {},
              params: { width, count, eps: 1e-5, weight_offset: weighted ? 0.5 : 0 },
            }).out,
          )
        },
        // a normalised element is at most sqrt(width)
        tolerance: bound('rms_norm', width, undefined, 1.5 * Math.sqrt(width)),
      }),
    ),
  ),
)

type Pointwise = 'glu' | 'activation' | 'residual' | 'multiply'

/** A case over two inputs x and y of `width` columns. */
function pointwise(
  op: Pointwise,
  name: string,
  width: number,
  build: (graph: Parameters<OpCase['build']>[0], x: ReturnType<typeof inputs>[number], y: typeof x) => typeof x,
  scale = 2,
): OpCase {
  return {
    ...base,
    op,
    name: `${name}width ${width}`,
    tensors: [inputTensor(2 * width + 1)],
    build: (graph) => {
      const [x, , y] = inputs(graph, width, 1, width)
      outputTokens(graph, build(graph, x!, y!))
    },
    tolerance: bound(op, 1, undefined, scale),
  }
}

const functions = Object.entries(activations)
const widths = [1, 17, 65]

export const gluCases = functions.flatMap(([name, activation]) =>
  widths.map((width) =>
    pointwise(
      'glu',
      `${name}, `,
      width,
      (graph, gate, up) => graph.add('glu', 'glu', { inputs: { gate, up }, params: { width, activation } }).out,
    ),
  ),
)

/** x is multiplied up first, so that the functions are seen where they bend and where they saturate. */
const WIDEN = 12

export const activationCases = functions.flatMap(([name, activation]) =>
  widths.map((width) =>
    pointwise(
      'activation',
      `${name}, `,
      width,
      (graph, x, y) => {
        const wide = graph.add('residual', 'widen', { inputs: { x, y }, params: { width, scale: WIDEN } }).out
        return graph.add('activation', 'activation', { inputs: { x: wide }, params: { width, activation } }).out
      },
      name === 'relu2' ? WIDEN ** 2 : WIDEN,
    ),
  ),
)

export const residualCases = sizes.flatMap((width) =>
  [1, 0.22].map((scale) =>
    pointwise(
      'residual',
      `scale ${scale}, `,
      width,
      (graph, x, y) => graph.add('residual', 'residual', { inputs: { x, y }, params: { width, scale } }).out,
    ),
  ),
)

export const multiplyCases = sizes.map((width) =>
  pointwise(
    'multiply',
    '',
    width,
    (graph, x, y) => graph.add('multiply', 'multiply', { inputs: { x, y }, params: { width } }).out,
  ),
)
