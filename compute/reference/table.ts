/** The reference kernel of every opcode, and how one is called by name. */
import { evaluate } from '../../abi/ops/define.ts'
import { type OpName, type Ops, opDef } from '../../abi/ops/index.ts'
import { attention, rope } from './attention.ts'
import { type Matrix, matrix, type ReferenceKernel, type ReferenceStep, type State, type Weight } from './kernel.ts'
import { linear, logits } from './linear.ts'
import { moe } from './moe.ts'
import { layer_norm, rms_norm } from './norm.ts'
import { activation, glu, multiply, residual } from './pointwise.ts'
import { conv_state, delta_rule, ssm_scan } from './recurrent.ts'
import { sample } from './sample.ts'
import { embed, gather_rows, pool } from './tokens.ts'

/** A kernel for every opcode: a missing one is a type error. */
export type ReferenceTable = { readonly [N in OpName]: ReferenceKernel<Ops[N]> }

export const referenceTable = {
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
} as const satisfies ReferenceTable

/** What one instruction reads, by name of the opcode's definition; absent optional operands are left out. */
export interface NamedValues {
  readonly params: Readonly<Record<string, number>>
  readonly inputs: Readonly<Record<string, Matrix>>
  readonly weights: Readonly<Record<string, Weight>>
  readonly states: Readonly<Record<string, State>>
  readonly step: ReferenceStep
}

/** Runs one opcode: allocates its outputs, advances the states, returns the outputs by name. */
export function runReference(op: OpName, values: NamedValues): Readonly<Record<string, Matrix>> {
  const definition = opDef(op)
  const shared = Object.entries(definition.inputs).find(([, { space }]) => space === 'any')?.[0]
  const outputs: Record<string, Matrix> = {}
  for (const [name, { space, width }] of Object.entries(definition.outputs)) {
    const rows = space === 'any' ? values.inputs[shared!]!.rows : values.step[space]
    outputs[name] = matrix(rows, evaluate(width, values.params))
  }
  const kernel = referenceTable[op] as unknown as ReferenceKernel
  kernel({ ...values, outputs } as unknown as Parameters<ReferenceKernel>[0])
  return outputs
}
