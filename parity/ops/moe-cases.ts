/** Cases of the mixture of experts. */
import { activations } from '../../abi/ops/define.ts'
import { routers } from '../../abi/ops/moe.ts'
import {
  INPUT_ROWS,
  inputs,
  inputTensor,
  type MatrixDType,
  matrixDTypes,
  matrixTensor,
  type OpCase,
  outputTokens,
  productBounds,
} from './case.ts'
import { type BatchName, batches, describe, type FillName, generate, within } from './generate.ts'
import { stored } from './matrix-cases.ts'

interface Moe {
  readonly width: number
  readonly ff: number
  readonly experts: number
  readonly top_k: number
  readonly activation: keyof typeof activations
  readonly router: keyof typeof routers
  readonly normalize: 0 | 1
  readonly scale: number
  /** Of x, and of the router's logits: there, ties go to the lower expert. */
  readonly fill: FillName
  readonly routing: FillName
  readonly batch: BatchName
}

function moeCase(dtype: MatrixDType, shape: Moe): OpCase {
  const { width, ff, experts, top_k, normalize, scale } = shape
  return {
    op: 'moe',
    name: `${dtype}, ${describe(shape)}`,
    vocab: INPUT_ROWS,
    tensors: [
      inputTensor(width + experts, (v, row, column, all) =>
        within(shape.routing, width, all)(within(shape.fill, 0, width)(v, row, column, all), row, column, all),
      ),
      matrixTensor('gate', experts * ff, width, dtype),
      matrixTensor('up', experts * ff, width, dtype),
      matrixTensor('down', experts * width, ff, dtype),
    ],
    ...stored(dtype),
    build: (graph) => {
      const [x, router_logits] = inputs(graph, width, experts)
      const weights = {
        gate: graph.weight('gate', [experts * ff, width]),
        up: graph.weight('up', [experts * ff, width]),
        down: graph.weight('down', [experts * width, ff]),
      }
      const [activation, router] = [activations[shape.activation], routers[shape.router]]
      const params = { width, ff, experts, top_k, activation, router, normalize, scale }
      outputTokens(
        graph,
        graph.add('moe', 'moe', { inputs: { x: x!, router_logits: router_logits! }, weights, params }).out,
      )
    },
    steps: batches[shape.batch],
    // gate and up are sums of `width`, each times the other, and a sum of `ff` of those; scores add up to at most top_k
    ...productBounds('moe', width * ff, Math.sqrt(width) * Math.abs(scale) * (normalize ? 1 : top_k)),
  }
}

export const moeCases: readonly OpCase[] = matrixDTypes.flatMap((dtype) =>
  generate<Moe>(
    {
      width: 33,
      ff: 17,
      experts: 5,
      top_k: 2,
      activation: 'silu',
      router: 'softmax',
      normalize: 1,
      scale: 1,
      fill: 'plain',
      routing: 'plain',
      batch: 'few',
    },
    {
      width: [1, 16, 32, 64],
      ff: [1, 16, 31, 65],
      experts: [2, 16, 17],
      top_k: [1, 4, 5],
      activation: ['gelu', 'relu'],
      router: ['sigmoid'],
      normalize: [0],
      scale: [2.5],
      fill: ['nan', 'infinite'],
      routing: ['ties', 'equal', 'large'],
      batch: ['ragged', 'counts'],
    },
    4,
    ({ experts, top_k }) => top_k <= experts,
  ).map((shape) => moeCase(dtype, shape)),
)
