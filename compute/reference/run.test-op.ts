/** Runs one opcode of the reference on operands written down, for its tests. */
import { expect } from 'vitest'
import { evaluate } from '../../abi/ops/define.ts'
import { type OpName, opDef } from '../../abi/ops/index.ts'
import { fillParams } from '../../abi/param-block.ts'
import { createStep } from '../../abi/step.ts'
import { type BatchInput, packStep, type SequenceInput } from '../../parity/batch.ts'
import { type Matrix, type ReferenceStep, readStep, runReference, type State } from '../reference.ts'
import { uniform } from './philox.ts'

const limits = { tokens: 128, rows: 128, sequences: 8, blocksPerSequence: 8, history: 64, biases: 16, copies: 4 }
export const step = (batch: BatchInput): ReferenceStep => readStep(packStep(createStep(limits), batch))
export const sequence = (count: number, rest: Partial<SequenceInput> = {}): SequenceInput => ({
  slot: 1,
  blocks: [1, 2, 3, 4],
  position: 0,
  tokens: Array.from({ length: count }, (_, i) => i),
  ...rest,
})
export const tokens = (count: number) => step({ sequences: [sequence(count)] })

export const rowsOf = (rows: readonly (readonly number[])[]): Matrix => ({
  data: Float64Array.from(rows.flat()),
  offset: 0,
  stride: rows[0]!.length,
  rows: rows.length,
  width: rows[0]!.length,
})
export const weight = (rows: readonly (readonly number[])[]) => ({
  data: Float64Array.from(rows.flat()),
  rows: rows.length,
  cols: rows[0]!.length,
})

/** Deterministic values in [-1, 1). */
export function noise(rows: number, cols: number, seed: number): number[][] {
  const value = (r: number, c: number) => uniform(seed, 7, r * 4096 + c) * 2 - 1
  return Array.from({ length: rows }, (_, r) => Array.from({ length: cols }, (_, c) => value(r, c)))
}

export function memory(elements: number, blockTokens = 1): State {
  const units = new Map<number, Float64Array>()
  const unit = (index: number) => {
    if (!units.has(index)) units.set(index, new Float64Array(elements))
    return units.get(index)!
  }
  return { blockTokens, unit }
}
/** A state of the size that the definition gives it. */
export function stateOf(op: OpName, params: Readonly<Record<string, number>>): Record<string, State> {
  const [name, def] = Object.entries(opDef(op).states)[0]!
  const elements = evaluate(def.elements, params)
  return { [name]: def.kind === 'paged' ? memory(elements * 32, 32) : memory(elements) }
}

export interface Given {
  readonly params?: Record<string, number>
  readonly inputs?: Record<string, Matrix>
  readonly weights?: Record<string, ReturnType<typeof weight>>
  readonly states?: Record<string, State>
  readonly step?: ReferenceStep
}
export function run(op: OpName, { params = {}, inputs = {}, weights = {}, states = {}, step = tokens(1) }: Given) {
  const outputs = runReference(op, {
    params: fillParams(opDef(op), params as never) as Record<string, number>,
    inputs,
    weights,
    states,
    step,
  })
  const list = (m: Matrix) =>
    Array.from({ length: m.rows }, (_, r) => [...m.data.subarray(r * m.width, (r + 1) * m.width)])
  return Object.fromEntries(Object.entries(outputs).map(([name, m]) => [name, list(m)]))
}

export function close(
  actual: readonly (readonly number[])[] | undefined,
  expected: readonly (readonly number[])[],
  digits = 12,
) {
  expect(actual!.length).toBe(expected.length)
  for (const [r, values] of expected.entries())
    for (const [c, value] of values.entries()) expect(actual![r]![c], `(${r}, ${c})`).toBeCloseTo(value, digits)
}

export const dotted = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0)
export const softmax = (z: readonly number[]) => {
  const powers = z.map((x) => Math.exp(x))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map((p) => p / sum)
}
export const f32 = Math.fround
