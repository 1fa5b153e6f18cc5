/** Lowering: the graph as an ExecutionPlan. Names become indices, lifetimes are derived, registers are placed. */
import { byteSize, type DType } from '../../abi/dtypes.ts'
import { type Layout, paddedShape } from '../../abi/layouts.ts'
import { stateBytes } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { BLOCK_TOKENS, capabilities, STATE_ALIGN_BYTES, type StateDescriptor } from '../../abi/state.ts'
import { fail } from '../../errors.ts'
import { deriveLiveness, lowerBound } from '../../plans/liveness.ts'
import { type ExecutionPlan, type Instruction, PLAN_FORMAT, type Register, type Tensor } from '../../plans/plan.ts'
import type { Graph, Node, Weight } from '../graph.ts'
import type { ModelShape } from '../topology.ts'
import { place } from './place.ts'
import { scalingsOf } from './quantize.ts'

/** A tensor of the plan and where its bytes come from. */
export interface StoredWeight {
  readonly tensor: Tensor
  readonly weight: Weight
}

const ROW_ALIGN = 64
const roundUp = (value: number, multiple: number) => Math.ceil(value / multiple) * multiple

/** How tiles of a dtype are stored. */
export const tiled: Readonly<Record<Exclude<DType, 'i32'>, Layout>> = {
  f32: 'tile16',
  f16: 'tile16',
  bf16: 'tile16x2',
  i8: 'tile16x4',
  i4: 'tile16x8',
  e4m3: 'tile16x4',
}

/** Stored dtype and layout of a weight in a slot of `form`. */
function storage(weight: Weight, form: 'row' | 'tiled'): { dtype: DType; layout: Layout } {
  if (form === 'row') return { dtype: 'f32', layout: 'row' }
  if (weight.encoding === 'sub_scales') return { dtype: 'i8', layout: 'tile16' }
  const dtypes = { plain: weight.dtype, q8: 'i8', q4: 'i4', fp8: 'e4m3', scales: 'f16', row_scales: 'f32' } as const
  const dtype = dtypes[weight.encoding] as Exclude<DType, 'i32'>
  return { dtype, layout: tiled[dtype] }
}

/** Weights in order of first use, what scales a weight right behind it. */
export class TensorTable {
  readonly stored: StoredWeight[] = []
  readonly #index = new Map<string, number>()

  add(weight: Weight, form: 'row' | 'tiled'): number {
    const { dtype, layout } = storage(weight, form)
    const known = this.#index.get(weight.name)
    if (known !== undefined) {
      const { tensor, weight: other } = this.stored[known]!
      if (tensor.layout === layout && tensor.dtype === dtype && other.branches === weight.branches) return known
      const reason = `used as ${dtype} ${layout} and in another form`
      throw fail('PLAN_INVALID', { path: 'graph', rule: 'tensor', where: weight.name, reason })
    }
    const { name, rows, cols } = weight
    const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
    const bytes = byteSize(dtype, paddedRows * paddedCols)
    const tensor = Object.freeze({ name, dtype, layout, rows, cols, bytes })
    const index = this.stored.push({ tensor, weight }) - 1
    this.#index.set(name, index)
    for (const scaling of Object.values(scalingsOf(weight))) this.add(scaling, 'tiled')
    return index
  }
}

function describeState(node: Node, slot: string, id: number): StateDescriptor {
  const definition = opDef(node.op).states[slot]!
  const { kind } = definition
  const { name, dtype } = node.states[slot]!
  const blockTokens = kind === 'fixed' ? 1 : BLOCK_TOKENS
  return Object.freeze({
    id,
    name,
    kind,
    dtype,
    sizeBytes: roundUp(stateBytes(definition, dtype, node.params, blockTokens), STATE_ALIGN_BYTES),
    alignBytes: STATE_ALIGN_BYTES,
    blockTokens,
    ...capabilities[kind],
  })
}

/** "layers.3.attention" of the first output, "layers.3.attention.tokens" where there are several. */
const registerName = (node: Node, output: string) =>
  Object.keys(node.outputs).length === 1 ? node.label : `${node.label}.${output}`

/** Instructions and unplaced registers, the latter in order of definition: fusion leaves gaps in the graph's numbers. */
function lowerNodes(graph: Graph) {
  const table = new TensorTable()
  const states: StateDescriptor[] = []
  const registers: Pick<Register, 'name' | 'space' | 'dtype' | 'width' | 'stride'>[] = []
  const renumbered = new Map<number, number>()
  const define = (node: Node, output: string): number => {
    const from = graph.registers[node.outputs[output]!]!
    const stride = roundUp(byteSize(from.dtype, from.width), ROW_ALIGN)
    const index = registers.push({ name: registerName(node, output), ...from, stride }) - 1
    renumbered.set(node.outputs[output]!, index)
    return index
  }
  const instructions = graph.nodes.map((node) => {
    const definition = opDef(node.op)
    const inputs = Object.keys(definition.inputs).map((slot) => {
      const value = node.inputs[slot]
      return value && { ...value, register: renumbered.get(value.register)! }
    })
    const weights = Object.entries(definition.weights).map(([slot, { form }]) => {
      const weight = node.weights[slot]
      return weight && table.add(weight, form)
    })
    const uses = Object.entries(definition.states).map(([slot, { access }]) => {
      if (!node.states[slot]) return undefined
      return { state: states.push(describeState(node, slot, states.length)) - 1, access }
    })
    const outputs = Object.keys(definition.outputs).map((output) => define(node, output))
    return { op: node.op, version: 1, inputs, outputs, weights, states: uses, params: node.params, label: node.label }
  })
  const outputs = Object.fromEntries(Object.entries(graph.outputs).map(([name, r]) => [name, renumbered.get(r)!]))
  return { instructions, registers, states, outputs, stored: table.stored }
}

/** The plan of a graph and the source of each of its tensors. */
export function lower(
  graph: Graph,
  model: string,
  shape: ModelShape,
): { readonly plan: ExecutionPlan; readonly weights: readonly StoredWeight[] } {
  const { instructions, registers, states, outputs, stored } = lowerNodes(graph)
  const { first, last, lastUse } = deriveLiveness(instructions, registers.length, Object.values(outputs))
  const live = registers.map((register, i) => ({ ...register, first: first[i]!, last: last[i]! }))
  const bound = lowerBound(live, instructions.length)
  const { offsets, peak } = place(live, bound)
  const plan: ExecutionPlan = {
    format: PLAN_FORMAT,
    minRuntime: 1,
    model,
    vocab: shape.vocab,
    hidden: shape.hidden,
    maxContext: shape.maxContext,
    registers: live.map((register, i) => Object.freeze({ ...register, offset: offsets[i]! })),
    tensors: stored.map(({ tensor }) => tensor),
    states,
    instructions: instructions.map((each, i): Instruction => Object.freeze({ ...each, lastUse: lastUse[i]! })),
    outputs,
    memory: { peak, lowerBound: bound },
  }
  return { plan: Object.freeze(plan), weights: stored }
}
