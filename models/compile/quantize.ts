/**
 * Quantisation choice: which weights are stored as int8 with one f16 scale for each group of 32 along K (q8). What the
 * values are is in layout.ts.
 */
import { QUANT_GROUP, type WeightDef } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { fail } from '../../errors.ts'
import type { Graph, Node, Weight } from '../graph.ts'

export const quantizations = ['none', 'q8'] as const
export type Quantization = (typeof quantizations)[number]

/** Slot that holds the scales of a weight slot, where the opcode has one: weight -> scales, gate -> gate_scales. */
function scalesSlot(weights: Readonly<Record<string, WeightDef>>, slot: string): string | undefined {
  if (weights[slot]!.form !== 'tiled' || slot === 'scales' || slot.endsWith('_scales')) return undefined
  return [`${slot}_scales`, 'scales'].find((name) => name in weights)
}

/** The scales that belong to a q8 weight. */
export const scalesOf = (weight: Weight): Weight =>
  Object.freeze({
    ...weight,
    name: `${weight.name}.scales`,
    cols: Math.ceil(weight.cols / QUANT_GROUP),
    encoding: 'q8_scales',
  })

function quantizeNode(node: Node): Node {
  const definition = opDef(node.op).weights
  const weights: Record<string, Weight> = { ...node.weights }
  for (const [slot, weight] of Object.entries(node.weights)) {
    const scales = scalesSlot(definition, slot)
    // A row shorter than a group would spend more on its scale than it saves.
    if (!scales || weight.encoding !== 'plain' || weight.cols < QUANT_GROUP) continue
    weights[slot] = Object.freeze({ ...weight, encoding: 'q8' })
    weights[scales] = scalesOf(weights[slot])
  }
  return Object.freeze({ ...node, weights: Object.freeze(weights) })
}

/** The graph with its matrices marked for `quantization`: embeddings, linears and heads with K of at least 32. */
export function quantize(graph: Graph, quantization: Quantization): Graph {
  return quantization === 'none' ? graph : { ...graph, nodes: graph.nodes.map(quantizeNode) }
}

/** Checks a caller's choice. Throws OPTION_INVALID, and QUANTIZE_UNSUPPORTED for q4. */
export function quantization(choice: unknown): Quantization {
  const known = quantizations.find((name) => name === (choice ?? 'none'))
  if (known) return known
  if (choice === 'q4')
    throw fail('QUANTIZE_UNSUPPORTED', { quantize: 'q4', reason: 'no opcode reads 4-bit weights yet; use q8 or none' })
  throw fail('OPTION_INVALID', { option: 'quantize', expected: quantizations.join(' or '), got: String(choice) })
}
