/** Cases of the opcodes that read a matrix, in every dtype. */
import { activations } from '../../abi/ops/define.ts'
import {
  bound,
  countSteps,
  gathered,
  INPUT,
  INPUT_ROWS,
  inputs,
  inputTensor,
  isQuantized,
  type MatrixDType,
  matrixDTypes,
  matrixTensor,
  type OpCase,
  outputTokens,
  productBound,
  prompt,
  rowTensor,
  sizes,
} from './case.ts'

const quantized = (dtype: MatrixDType) => ({ weights: dtype, ...(isQuantized(dtype) && { quantize: dtype }) })

export const embedCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) =>
  sizes.map((width): OpCase => {
    const positions = width % 2 ? 70 : 0
    return {
      op: 'embed',
      name: `${dtype}, width ${width}${positions ? ', positions and types' : ''}`,
      vocab: INPUT_ROWS,
      tensors: [
        matrixTensor('table', INPUT_ROWS, width, dtype),
        { name: 'positions', shape: [2050, width], dtype: 'f32' },
        { name: 'types', shape: [2, width], dtype: 'f32' },
      ],
      ...quantized(dtype),
      build: (graph) => {
        const table = graph.weight('table', [INPUT_ROWS, width])
        const extra = positions
          ? { positions: graph.weight('positions', [2050, width]), types: graph.weight('types', [2, width]) }
          : {}
        const more = positions ? { positions: 2050, position_offset: 2, types: 2 } : {}
        const params = { vocab: INPUT_ROWS, width, scale: 1.5, ...more }
        outputTokens(graph, graph.add('embed', 'embed', { weights: { table, ...extra }, params }).out)
      },
      steps: [...countSteps.slice(0, 2), { sequences: [prompt(33, { position: 7 }), prompt(3, { slot: 2 })] }],
      tolerance: bound('embed', 1, undefined, 3),
    }
  }),
)

/** (n, k) with each size on one side, an odd one on the other, and one beyond a block of K. */
const shapes: readonly (readonly [n: number, k: number])[] = [
  ...sizes.map((n) => [n, 33] as const),
  ...sizes.map((k) => [17, k] as const),
  [130, 700],
]

interface Epilogue {
  readonly name: string
  readonly bias?: boolean
  readonly residual?: boolean
  readonly activation?: number
  readonly norm?: boolean
  readonly branches?: 2
}
const epilogues: readonly Epilogue[] = [
  { name: 'bias', bias: true },
  { name: 'residual', residual: true },
  { name: 'gelu', activation: activations.gelu },
  { name: 'bias, silu, residual', bias: true, activation: activations.silu, residual: true },
  { name: 'norm', norm: true },
  { name: 'norm, bias, gelu_tanh', norm: true, bias: true, activation: activations.gelu_tanh },
]
const branched: readonly Epilogue[] = [
  { name: 'two branches', branches: 2 },
  { name: 'two branches, silu', branches: 2, activation: activations.silu },
  {
    name: 'norm, two branches, bias, gelu, residual',
    norm: true,
    branches: 2,
    bias: true,
    residual: true,
    activation: activations.gelu,
  },
]

function linearCase(dtype: MatrixDType, n: number, k: number, epilogue: Epilogue): OpCase {
  const { branches = 1, norm } = epilogue
  const rows = branches * n
  // Weights of two branches are stored in another order than the checkpoint's.
  const order = branches === 2 ? { branches } : {}
  // Normed inputs, as the weights of the norm, are a few times larger; a branch multiplies the error of the other.
  const scale = (norm ? 4 : 1) * (branches === 2 ? (norm ? 4 : 1) * 2 * (4 / 3) * Math.sqrt(k) : 1)
  return {
    op: 'linear',
    name: `${dtype}, ${n} x ${k}${epilogue.name && `, ${epilogue.name}`}`,
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(k + n),
      matrixTensor('weight', rows, k, dtype),
      rowTensor('bias', rows),
      rowTensor('norm', k),
    ],
    ...quantized(dtype),
    build: (graph) => {
      const [x, residual] = inputs(graph, k, n)
      const out = graph.add('linear', 'linear', {
        inputs: { x: x!, residual: epilogue.residual ? residual : undefined },
        weights: {
          weight: { ...graph.weight('weight', [rows, k]), ...order },
          bias: epilogue.bias ? { ...graph.weight('bias', [rows]), ...order } : undefined,
          norm: norm ? graph.weight('norm', [k]) : undefined,
        },
        params: {
          n,
          k,
          branches,
          activation: epilogue.activation ?? 0,
          ...(norm && { norm_eps: 1e-6, norm_offset: 1 }),
        },
      }).out
      outputTokens(graph, out)
    },
    steps: countSteps,
    tolerance: productBound('linear', k + 2, dtype) * scale,
  }
}

export const linearCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) => [
  ...shapes.map(([n, k]) => linearCase(dtype, n, k, { name: '' })),
  ...epilogues.map((epilogue) => linearCase(dtype, 33, 65, epilogue)),
  ...branched.flatMap((epilogue) => [16, 80].map((n) => linearCase(dtype, n, n === 16 ? 33 : 96, epilogue))),
])

/** Logits over `vocab` from rows of `k`; `tied`: the table of the embedding is the head. */
function logitsCase(
  dtype: MatrixDType,
  vocab: number,
  k: number,
  params: { scale?: number; softcap?: number },
): OpCase {
  const ids = (count: number) => Array.from({ length: count }, (_, i) => (i * 31 + 7) % Math.min(vocab, INPUT_ROWS))
  const step = (count: number) => ({ sequences: [prompt(count, { tokens: ids(count) })] })
  return {
    op: 'logits',
    name: `${dtype}, ${vocab} x ${k}${params.softcap ? ', capped' : ''}`,
    vocab,
    tensors: [
      { name: INPUT, shape: [Math.max(vocab, INPUT_ROWS), k], dtype: 'f32' },
      matrixTensor('head', vocab, k, dtype),
      rowTensor('bias', vocab),
    ],
    ...quantized(dtype),
    build: (graph) => {
      const rows = Math.max(vocab, INPUT_ROWS)
      const table = graph.weight(INPUT, [rows, k])
      const x = graph.add('embed', INPUT, { weights: { table }, params: { vocab: rows, width: k } }).out
      const head = { weight: graph.weight('head', [vocab, k]), bias: graph.weight('bias', [vocab]) }
      const { out } = graph.add('logits', 'logits', {
        inputs: { x: gathered(graph, x) },
        weights: head,
        params: { vocab, k, ...params },
      })
      graph.output('logits', out)
    },
    steps: [step(1), step(17), { sequences: [prompt(9, { tokens: ids(9), rows: [8, 2] })] }],
    tolerance: productBound('logits', k + 1, dtype) * (params.scale ?? 1),
  }
}

export const logitsCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) => [
  ...sizes.map((vocab) => logitsCase(dtype, vocab, 65, {})),
  logitsCase(dtype, 515, 96, { scale: 0.5 }),
  logitsCase(dtype, 33, 64, { scale: 2, softcap: 3 }),
])
