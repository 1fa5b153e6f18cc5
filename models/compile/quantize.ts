/**
 * Quantisation choice: which weights are stored as int8 (q8) or int4 (q4) with one f16 scale for each group of 32 along
 * K. What the values are is in integers.ts.
 */
import { QUANT_GROUP, type WeightDef } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { fail } from '../../errors.ts'
import type { Graph, Node, Weight } from '../graph.ts'

export const quantizations = ['none', 'q8', 'q4'] as const
export type Quantization = (typeof quantizations)[number]

/** Slot that holds the scales of a weight slot, where the opcode has one: weight -> scales, gate -> gate_scales. */
function scalesSlot(weights: Readonly<Record<string, WeightDef>>, slot: string): string | undefined {
  if (weights[slot]!.form !== 'tiled' || slot === 'scales' || slot.endsWith('_scales')) return undefined
  return [`${slot}_scales`, 'scales'].find((name) => name in weights)
}

export const isQuantized = ({ encoding }: Weight): boolean => encoding === 'q8' || encoding === 'q4'

/** The scales that belong to a quantised weight. */
export const scalesOf = (weight: Weight): Weight =>
  Object.freeze({
    ...weight,
    name: `${weight.name}.scales`,
    cols: Math.ceil(weight.cols / QUANT_GROUP),
    encoding: 'scales',
  })

/**
 * Format of a node's matrices. Under q4, embeddings and heads stay at q8: no later layer averages their errors out, and
 * a row of an embedding is read once a token. Of 400 tasks storyteller-7m answers 355 so, 347 with everything at q4,
 * 358 at q8.
 */
const formatOf = ({ op }: Node, quantization: 'q8' | 'q4'): 'q8' | 'q4' =>
  op === 'embed' || op === 'logits' ? 'q8' : quantization

function quantizeNode(node: Node, encoding: 'q8' | 'q4'): Node {
  const definition = opDef(node.op).weights
  const weights: Record<string, Weight> = { ...node.weights }
  for (const [slot, weight] of Object.entries(node.weights)) {
    const scales = scalesSlot(definition, slot)
    // A row shorter than a group would spend more on its scale than it saves.
    if (!scales || weight.encoding !== 'plain' || weight.cols < QUANT_GROUP) continue
    weights[slot] = Object.freeze({ ...weight, encoding })
    weights[scales] = scalesOf(weights[slot])
  }
  return Object.freeze({ ...node, weights: Object.freeze(weights) })
}

/** The graph with its matrices marked for `quantization`: embeddings, linears and heads with K of at least 32. */
export function quantize(graph: Graph, quantization: Quantization): Graph {
  return quantization === 'none'
    ? graph
    : { ...graph, nodes: graph.nodes.map((node) => quantizeNode(node, formatOf(node, quantization))) }
}

/** Checks a caller's choice. Throws OPTION_INVALID. */
export function quantization(choice: unknown): Quantization {
  const known = quantizations.find((name) => name === (choice ?? 'none'))
  if (known) return known
  throw fail('OPTION_INVALID', { option: 'quantize', expected: quantizations.join(', '), got: String(choice) })
}
