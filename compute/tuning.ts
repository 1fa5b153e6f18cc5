/**
 * Instructions by what their kernels are chosen by: opcode, dtype and shape. Those that agree, the same of every layer,
 * take the same kernel in launches of as many rows; rows are told apart by the power of two that they do not exceed.
 */
import type { NativeChoice } from '../abi/native.ts'
import type { Space } from '../abi/ops/define.ts'
import { type OpName, opDef } from '../abi/ops/index.ts'
import type { StepLimits } from '../abi/step.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'
import type { KernelChoice } from './device.ts'

/** Parameters that tell the shapes of an opcode apart. Opcodes that no backend has several kernels for are not here. */
const shapes: Partial<Record<OpName, readonly string[]>> = {
  linear: ['n', 'k', 'branches', 'activation'],
  logits: ['vocab', 'k'],
  attention: ['heads', 'kv_heads', 'head_dim', 'window'],
}

/** Instructions that share a choice. */
export interface Tunable {
  readonly opcode: OpName
  /** Of the weight, or else of the state. */
  readonly dtype: string
  readonly shape: string
  readonly instructions: readonly number[]
  /** Of their output. */
  readonly space: Space
}

/** "n 2048, k 512, branches 1, norm": parameters that are not 0, then the optional operands that are there. */
function shapeOf({ op, params, inputs, weights }: Instruction, names: readonly string[]): string {
  const { inputs: inputDefs, weights: weightDefs } = opDef(op)
  const present = (defs: Readonly<Record<string, { readonly optional?: boolean }>>, given: readonly unknown[]) =>
    Object.entries(defs).flatMap(([name, { optional }], i) => (optional && given[i] !== undefined ? [name] : []))
  const sizes = names.flatMap((name) => (params[name] ? [`${name} ${params[name]}`] : []))
  return [...sizes, ...present(inputDefs, inputs), ...present(weightDefs, weights)].join(', ')
}

function dtypeOf(plan: ExecutionPlan, { op, weights, states }: Instruction): string {
  const weight = weights[Object.keys(opDef(op).weights).indexOf('weight')]
  const state = states.find((use) => use !== undefined)
  if (weight !== undefined) return plan.tensors[weight]!.dtype
  return state ? plan.states[state.state]!.dtype : 'f32'
}

const keyOf = ({ opcode, dtype, shape }: Pick<KernelChoice, 'opcode' | 'dtype' | 'shape'>) =>
  `${opcode}\0${dtype}\0${shape}`

/** By opcode, dtype and shape, in the plan's order. */
export function tunables(plan: ExecutionPlan): readonly Tunable[] {
  const groups = new Map<string, Tunable & { readonly instructions: number[] }>()
  for (const [index, instruction] of plan.instructions.entries()) {
    const { op: opcode, outputs } = instruction
    const names = shapes[opcode]
    const output = plan.registers[outputs[0]!]
    if (!names || !output) continue
    const own = { opcode, dtype: dtypeOf(plan, instruction), shape: shapeOf(instruction, names), space: output.space }
    const known = groups.get(keyOf(own))
    if (known) known.instructions.push(index)
    else groups.set(keyOf(own), { ...own, instructions: [index] })
  }
  return [...groups.values()]
}

/** Rows that a launch can have at most, in the bucket of `rows`; 0: there is no such launch. */
export function rowsOf(rows: number, space: Space, limits: StepLimits): number {
  return limits[space] > rows / 2 ? Math.min(rows, limits[space]) : 0
}

/** The bucket of a launch: the power of two that its rows do not exceed. */
export const bucketOf = (rows: number): number => 2 ** Math.ceil(Math.log2(rows))

/** What a runner of `plan` is told: the choices that are of its instructions, and of launches that there can be. */
export function choicesFor(
  plan: ExecutionPlan,
  entries: readonly KernelChoice[],
  limits: StepLimits,
): readonly NativeChoice[] {
  const known = new Map(tunables(plan).map((tunable) => [keyOf(tunable), tunable]))
  return entries.flatMap((entry) => {
    const tunable = known.get(keyOf(entry))
    if (!tunable || rowsOf(entry.rows, tunable.space, limits) === 0) return []
    return [{ instructions: tunable.instructions, rows: entry.rows, kernel: entry.chosen }]
  })
}
