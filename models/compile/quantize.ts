/**
 * Quantisation choice: which weights are stored as int8 (q8), int4 (q4) or e4m3 (fp8), and the tensors that scale them.
 * What the values are is in integers.ts and e4m3.ts.
 */
import { QUANT_BLOCK, QUANT_GROUP, type WeightDef } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { fail } from '../../errors.ts'
import type { Encoding, Graph, Node, Weight } from '../graph.ts'

export const quantizations = ['none', 'q8', 'q4', 'fp8'] as const
export type Quantization = (typeof quantizations)[number]

/** Keys and values in the checkpoint's dtype, or as int8 with a scale for each head of each position. */
export const stateFormats = ['checkpoint', 'q8'] as const
export type StateFormat = (typeof stateFormats)[number]

type Scaling = 'scales' | 'sub_scales'
const spans: Readonly<Record<Scaling, number>> = { scales: QUANT_BLOCK, sub_scales: QUANT_GROUP }

/** What scales a quantised weight; nothing for others. */
export function scalingsOf(weight: Weight): Readonly<Partial<Record<Scaling, Weight>>> {
  const scaling = (kind: Scaling, cols = Math.ceil(weight.cols / spans[kind]), encoding: Encoding = kind): Weight =>
    Object.freeze({ ...weight, name: `${weight.name}.${kind}`, cols, encoding })
  if (weight.encoding === 'fp8') return { scales: scaling('scales', 1, 'row_scales') }
  if (weight.encoding === 'q8') return { scales: scaling('scales') }
  return weight.encoding === 'q4' ? { scales: scaling('scales'), sub_scales: scaling('sub_scales') } : {}
}

/** The slot beside `slot` for its scales or sub-scales, where the opcode has one: weight -> scales, gate -> gate_scales. */
function scalingSlot(weights: Readonly<Record<string, WeightDef>>, slot: string, scaling: Scaling): string | undefined {
  if (weights[slot]!.form !== 'tiled' || slot.endsWith('scales')) return undefined
  return [`${slot}_${scaling}`, scaling].find((name) => name in weights)
}

/**
 * Opcodes without sub-scales (embeddings, heads) are q8 in every format, and so a tied head is one matrix: no later layer
 * averages the errors of a head out, and those of q8 are the smallest.
 */
function quantizeNode(node: Node, quantization: Exclude<Quantization, 'none'>): Node {
  const definition = opDef(node.op).weights
  const weights: Record<string, Weight> = { ...node.weights }
  for (const [slot, weight] of Object.entries(node.weights)) {
    // A row shorter than a group would spend more on its scale than it saves.
    if (!scalingSlot(definition, slot, 'scales') || weight.encoding !== 'plain' || weight.cols < QUANT_GROUP) continue
    const encoding = scalingSlot(definition, slot, 'sub_scales') ? quantization : 'q8'
    weights[slot] = Object.freeze({ ...weight, encoding })
    for (const [scaling, stored] of Object.entries(scalingsOf(weights[slot])))
      weights[scalingSlot(definition, slot, scaling as Scaling)!] = stored
  }
  return Object.freeze({ ...node, weights: Object.freeze(weights) })
}

/** The graph with its matrices marked for `quantization`: embeddings, linears and heads with K of at least 32. */
export function quantize(graph: Graph, quantization: Quantization): Graph {
  return quantization === 'none'
    ? graph
    : { ...graph, nodes: graph.nodes.map((node) => quantizeNode(node, quantization)) }
}

/** The graph with the states that have scales in their definition, those of keys and values, at int8 under `q8`. */
export function quantizeStates(graph: Graph, format: StateFormat): Graph {
  if (format === 'checkpoint') return graph
  const statesOf = ({ op, states }: Node) =>
    Object.fromEntries(
      Object.entries(states).map(([slot, state]) => [
        slot,
        opDef(op).states[slot]!.scales ? Object.freeze({ ...state, dtype: 'i8' as const }) : state,
      ]),
    )
  return { ...graph, nodes: graph.nodes.map((node) => Object.freeze({ ...node, states: statesOf(node) })) }
}

/** Checks a caller's choice. Throws OPTION_INVALID. */
export function stateFormat(choice: unknown): StateFormat {
  const known = stateFormats.find((name) => name === (choice ?? 'checkpoint'))
  if (known) return known
  throw fail('OPTION_INVALID', { option: 'state', expected: stateFormats.join(', '), got: String(choice) })
}

/** Checks a caller's choice. Throws OPTION_INVALID. */
export function quantization(choice: unknown): Quantization {
  const known = quantizations.find((name) => name === (choice ?? 'none'))
  if (known) return known
  throw fail('OPTION_INVALID', { option: 'quantize', expected: quantizations.join(', '), got: String(choice) })
}
