/** The ExecutionPlan as frozen values. Bytes: abi/plan.fbs. Everything that is an index counts from 0. */
import type { DType } from '../abi/dtypes.ts'
import type { Layout } from '../abi/layouts.ts'
import type { Space, StateAccess } from '../abi/ops/define.ts'
import type { OpName } from '../abi/ops/index.ts'
import type { StateDescriptor } from '../abi/state.ts'

/** Format of the bytes, and the runtime that this build is. A plan names the lowest runtime that understands it. */
export const PLAN_FORMAT = 1
export const RUNTIME_VERSION = 1
/** An absent operand, weight or state. */
export const NONE = 0xffffffff

export interface Register {
  readonly name: string
  readonly space: Space
  readonly dtype: DType
  /** Elements of a row. */
  readonly width: number
  /** Bytes from row to row, a multiple of 64. */
  readonly stride: number
  /** Bytes into the arena of its space, per row of capacity. */
  readonly offset: number
  /** Instruction that defines it. */
  readonly first: number
  /** Last instruction that reads it; the instruction count for an output of the plan. */
  readonly last: number
}

export interface Tensor {
  readonly name: string
  readonly dtype: DType
  readonly layout: Layout
  readonly rows: number
  readonly cols: number
  readonly bytes: number
}

/** Columns [column, column + width) of a register. */
export interface Operand {
  readonly register: number
  readonly column: number
  readonly width: number
}

export interface StateUse {
  readonly state: number
  readonly access: StateAccess
}

export interface Instruction {
  readonly op: OpName
  readonly version: number
  /** By position of the opcode's definition; undefined: absent. Trailing absent operands are not written. */
  readonly inputs: readonly (Operand | undefined)[]
  readonly outputs: readonly number[]
  readonly weights: readonly (number | undefined)[]
  readonly states: readonly (StateUse | undefined)[]
  /** All fields, defaults filled in. */
  readonly params: Readonly<Record<string, number>>
  /** Bit i: no later instruction reads the register of input i. */
  readonly lastUse: number
  /** Where in the model: "layers.3.attention". */
  readonly label: string
}

export const outputNames = ['tokens', 'logprobs', 'top_tokens', 'logits', 'hidden'] as const
export type OutputName = (typeof outputNames)[number]

/** Bytes per row of capacity, one entry a space in the order of `spaces`. */
export interface Memory {
  readonly peak: readonly number[]
  readonly lowerBound: readonly number[]
}

export interface ExecutionPlan {
  readonly format: number
  readonly minRuntime: number
  /** Model family, for people. */
  readonly model: string
  readonly vocab: number
  readonly hidden: number
  readonly maxContext: number
  readonly registers: readonly Register[]
  readonly tensors: readonly Tensor[]
  readonly states: readonly StateDescriptor[]
  readonly instructions: readonly Instruction[]
  readonly outputs: Readonly<Partial<Record<OutputName, number>>>
  readonly memory: Memory
}
