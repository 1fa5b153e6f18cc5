/**
 * The v1 opcodes: macro-ops, at most 32. Ids are written into plans: append, never renumber, never reuse.
 * Order of the keys is order of the ids.
 */
import { attention, rope } from './attention.ts'
import type { OpDef } from './define.ts'
import { linear, logits } from './linear.ts'
import { moe } from './moe.ts'
import { layer_norm, rms_norm } from './norm.ts'
import { activation, glu, multiply, residual } from './pointwise.ts'
import { conv_state, delta_rule, ssm_scan } from './recurrent.ts'
import { sample } from './sample.ts'
import { embed, gather_rows, pool } from './tokens.ts'

export const ops = {
  embed,
  gather_rows,
  pool,
  rms_norm,
  layer_norm,
  linear,
  logits,
  rope,
  attention,
  glu,
  activation,
  residual,
  multiply,
  moe,
  conv_state,
  ssm_scan,
  delta_rule,
  sample,
} as const

export type OpName = keyof typeof ops
export type Ops = typeof ops
export const opNames = Object.keys(ops) as OpName[]
export const MAX_OPCODES = 32

const byId = new Map<number, OpName>(opNames.map((name) => [ops[name].id, name]))
/** The opcode of a plan id, or undefined for an id this runtime does not know. */
export const opName = (id: number): OpName | undefined => byId.get(id)
/** A definition with its literal types widened, for code that walks any opcode. */
export const opDef = (name: OpName): OpDef => ops[name]
