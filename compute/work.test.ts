import { describe, expect, it } from 'vitest'
import { decoderPlan } from '../plans/example.test-plan.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { stepBytes, stepShape, work } from './work.ts'

/** Work of the first instruction with that opcode. */
function of(plan: ExecutionPlan, op: string, shape = stepShape(1, 1, 0)) {
  const index = plan.instructions.findIndex((instruction) => instruction.op === op)
  return { ...work(plan, shape)[index]!, instruction: plan.instructions[index]! }
}

describe('stepShape', () => {
  it('counts what two sequences of three tokens know and attend to after five', () => {
    // tokens at positions 5, 6 and 7 attend to 6, 7 and 8 positions
    expect(stepShape(2, 3, 5)).toEqual({ tokens: 6, rows: 2, sequences: 2, positions: 16, attended: 42 })
  })
})

describe('work', () => {
  const plan = decoderPlan('bf16')
  const { heads, kv_heads, head_dim } = of(plan, 'attention').instruction.params as Record<string, number>

  it('of a linear is its stored weight once, and two operations a weight and token', () => {
    const { weightBytes, stateBytes, operations, arithmetic, instruction } = of(plan, 'linear', stepShape(2, 3, 5))
    const tensor = plan.tensors[instruction.weights[0]!]!
    expect(weightBytes).toBe(tensor.bytes)
    expect(stateBytes).toBe(0)
    expect(operations).toBe(2 * 6 * tensor.rows * tensor.cols)
    expect(arithmetic).toBe('bf16')
  })

  it('of attention is the state of known positions, and two products a pair', () => {
    const { stateBytes, operations, instruction } = of(plan, 'attention', stepShape(2, 3, 5))
    const state = plan.states[instruction.states[0]!.state]!
    const perPosition = state.sizeBytes / state.blockTokens
    expect(stateBytes).toBe((16 + 6) * perPosition)
    expect(operations).toBe(2 * 2 * 42 * heads! * head_dim!)
    expect(perPosition).toBeGreaterThanOrEqual(2 * kv_heads! * head_dim!)
  })

  it('of attention in a window is bounded by it', () => {
    const windowed = (window: number): ExecutionPlan => ({
      ...plan,
      instructions: plan.instructions.map((i) =>
        i.op === 'attention' ? { ...i, params: { ...i.params, window } } : i,
      ),
    })
    const far = stepShape(1, 1, 99)
    expect(of(windowed(10), 'attention', far).operations).toBe(of(plan, 'attention', stepShape(1, 1, 9)).operations)
    expect(of(windowed(10), 'attention', far).stateBytes).toBe(of(plan, 'attention', stepShape(1, 1, 9)).stateBytes)
    expect(of(windowed(1000), 'attention', far)).toMatchObject({ operations: of(plan, 'attention', far).operations })
  })

  it('of an embedding is one row a token', () => {
    const { weightBytes, instruction } = of(plan, 'embed', stepShape(3, 1, 0))
    const table = plan.tensors[instruction.weights[0]!]!
    expect(weightBytes).toBeCloseTo((3 * table.bytes) / table.rows, 6)
  })

  it('counts a matrix by the arithmetic of its stored type', () => {
    const types = (['f32', 'bf16', 'i8', 'i4', 'e4m3'] as const).map(
      (dtype) => of(decoderPlan(dtype), 'linear').arithmetic,
    )
    expect(types).toEqual(['f32', 'bf16', 'i8', 'i8', 'bf16'])
  })

  it('of a decoding step reads every tensor but the rows of the embedding once', () => {
    const shape = stepShape(1, 1, 7)
    const { weightBytes: row } = of(plan, 'embed', shape)
    const tied = plan.instructions.find(({ op }) => op === 'logits')!.weights[0]!
    const table = plan.instructions.find(({ op }) => op === 'embed')!.weights[0]!
    const stored = plan.tensors.reduce((sum, { bytes }, i) => sum + (i === table && i !== tied ? 0 : bytes), 0)
    const state = work(plan, shape).reduce((sum, { stateBytes }) => sum + stateBytes, 0)
    expect(stepBytes(plan, shape)).toBeCloseTo(stored + row + state, 6)
    expect(stepBytes(plan, stepShape(8, 1, 7)) - stepBytes(plan, shape)).toBeCloseTo(7 * (row + state), 6)
  })
})
