/**
 * How an opcode is declared. A definition is data: from it come the types of the graph builder, the widths that shape
 * inference computes, the C++ parameter structs and the table that the load-time verifier walks. What the opcode
 * *means* is its function in compute/reference.ts.
 */

import { byteSize, type DType } from '../dtypes.ts'

/** Which count a register grows with: packed tokens of the step, rows that want logits, or sequences. */
export const spaces = { tokens: 0, rows: 1, sequences: 2 } as const
export type Space = keyof typeof spaces
export const spaceNames = Object.keys(spaces) as Space[]

/** How a state is kept. `paged`: blocks of positions; `ring`: the last positions; `fixed`: one record a slot. */
export const stateKinds = { paged: 1, ring: 2, fixed: 3 } as const
export type StateKind = keyof typeof stateKinds
export const stateAccesses = { read: 1, write: 2, readwrite: 3 } as const
export type StateAccess = keyof typeof stateAccesses

export type ParamType = 'u32' | 'i32' | 'f32'
/** One field of a ParamBlock. `since` is the minor that appended it; `default` is its value in older blocks. */
export interface ParamField {
  readonly type: ParamType
  readonly since?: number
  readonly default?: number
}

/** ceil(param / divide) * multiply, or the constant `multiply` where `param` is absent. */
export interface Factor {
  readonly param?: string
  readonly divide?: number
  readonly multiply?: number
}
/** A size is the product of its factors. */
export type Size = readonly (string | number | Factor)[]

export interface OperandDef {
  /** 'any': all operands of the instruction marked so share one space. */
  readonly space: Space | 'any'
  readonly width: Size
  readonly dtype?: 'i32'
  readonly optional?: true
}
export interface WeightDef {
  /** Logical (rows, cols). */
  readonly shape: readonly [Size, Size]
  /** 'tiled': a matrix the product kernels stream; 'row': small or gathered, row-major. */
  readonly form: 'row' | 'tiled'
  readonly optional?: true
}
export interface StateDef {
  readonly kind: StateKind
  readonly access: StateAccess
  /** Elements per position (paged, ring) or per slot (fixed). */
  readonly elements: Size
  /** f32 scales beside the elements of an int8 state, counted likewise. Without them, int8 is no dtype of this state. */
  readonly scales?: Size
  readonly optional?: true
}

export interface OpDef {
  readonly id: number
  readonly name: string
  /** Highest version of the meaning; an instruction carries the lowest that expresses it. */
  readonly version: number
  /** ParamBlock version: a field is appended with a new minor; anything else is a new major. */
  readonly paramVersion: readonly [major: number, minor: number]
  readonly inputs: Readonly<Record<string, OperandDef>>
  readonly outputs: Readonly<Record<string, OperandDef>>
  readonly weights: Readonly<Record<string, WeightDef>>
  readonly states: Readonly<Record<string, StateDef>>
  readonly params: Readonly<Record<string, ParamField>>
}

export type ParamsOf<O extends OpDef> = { readonly [K in keyof O['params']]: number }
/** What a caller must give: fields with a default may be left out. */
export type ParamsInput<O extends OpDef> = {
  readonly [K in keyof O['params'] as O['params'][K] extends { default: number } ? never : K]: number
} & { readonly [K in keyof O['params'] as O['params'][K] extends { default: number } ? K : never]?: number }

/** Declares an opcode; the literal types are kept. */
export const op = <const O extends OpDef>(definition: O): O => Object.freeze(definition)

/** A factor in its full form. */
export function factor(f: string | number | Factor): Required<Omit<Factor, 'param'>> & { param: string | undefined } {
  if (typeof f === 'number') return { param: undefined, divide: 1, multiply: f }
  if (typeof f === 'string') return { param: f, divide: 1, multiply: 1 }
  return { param: f.param, divide: f.divide ?? 1, multiply: f.multiply ?? 1 }
}

/** Value of a size under `params`. */
export function evaluate(size: Size, params: Readonly<Record<string, number>>): number {
  let product = 1
  for (const f of size) {
    const { param, divide, multiply } = factor(f)
    product *= param === undefined ? multiply : Math.ceil(params[param]! / divide) * multiply
  }
  return product
}

/** Bytes of one unit of a state: a block of `positions`, or a slot's record (1), before alignment. */
export function stateBytes(def: StateDef, dtype: DType, params: Readonly<Record<string, number>>, positions: number) {
  const scales = dtype === 'i8' && def.scales ? byteSize('f32', evaluate(def.scales, params)) : 0
  return (byteSize(dtype, evaluate(def.elements, params)) + scales) * positions
}

export const u32 = { type: 'u32' } as const
export const i32 = { type: 'i32' } as const
export const f32 = { type: 'f32' } as const
/** A field that may be left out; older blocks decode to the same value. */
export const defaulted = <const F extends ParamField, const D extends number>(field: F, value: D) =>
  ({ ...field, default: value }) as const

/** A field that minor `minor` of the block appended. */
export const since = <const M extends number, const F extends ParamField>(minor: M, field: F) =>
  ({ ...field, since: minor }) as const

/** Rows that a linear of two branches takes from each in turn: those of a tile. */
export const BRANCH_RUN = 16

/** Elements along K that share one scale of q8 and q4, and one scale of the activations they are multiplied with. */
export const QUANT_BLOCK = 256
/** Elements along K that share one sub-scale of q4. */
export const QUANT_GROUP = 32
export const blocks = (param: string): Factor => ({ param, divide: QUANT_BLOCK })
export const groups = (param: string): Factor => ({ param, divide: QUANT_GROUP })

/** Pointwise functions, shared by linear epilogues, glu, activation and conv_state. */
export const activations = { none: 0, silu: 1, gelu: 2, gelu_tanh: 3, relu: 4, sigmoid: 5, tanh: 6, relu2: 7 } as const
export type Activation = keyof typeof activations
