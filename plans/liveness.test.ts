import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { spaceNames } from '../abi/ops/define.ts'
import { Sketch } from './example.test-plan.ts'
import { deriveLiveness, lowerBound } from './liveness.ts'
import { NONE } from './plan.ts'
import { verifyPlan } from './verify.ts'
import { writePlan } from './write.ts'

const read = (register: number) => ({ register, column: 0, width: 1 })

describe('deriveLiveness', () => {
  const instructions = [
    { inputs: [], outputs: [0] },
    { inputs: [read(0), undefined], outputs: [1, 2] },
    { inputs: [read(1), read(0)], outputs: [3] },
    { inputs: [read(3), read(3)], outputs: [4] },
  ]

  test('a register lives from its definition to its last read, an output to the end', () => {
    expect(deriveLiveness(instructions, 6, [3])).toEqual({
      first: [0, 1, 1, 2, 3, NONE],
      last: [2, 2, 1, 4, 3, NONE],
      lastUse: [0, 0, 0b11, 0],
    })
  })

  test('without outputs, both reads of one register in one instruction are its last', () => {
    expect(deriveLiveness(instructions, 5, []).lastUse[3]).toBe(0b11)
  })
})

const register = fc
  .record({
    space: fc.constantFrom(...spaceNames),
    stride: fc.integer({ min: 1, max: 9 }).map((n) => n * 64),
    a: fc.nat(7),
    b: fc.nat(8),
  })
  .map(({ space, stride, a, b }) => ({ space, stride, first: Math.min(a, b), last: Math.max(a, b) }))

test('lowerBound is the most bytes live at one instruction', () => {
  fc.assert(
    fc.property(fc.array(register, { maxLength: 12 }), (registers) => {
      const at = (space: string, i: number) =>
        registers.filter((r) => r.space === space && r.first <= i && i <= r.last).reduce((sum, r) => sum + r.stride, 0)
      const brute = spaceNames.map((space) => Math.max(...Array.from({ length: 9 }, (_, i) => at(space, i))))
      expect(lowerBound(registers, 8)).toEqual(brute)
    }),
  )
})

test('the native verifier derives the same liveness and totals', () => {
  const step = fc.record({ op: fc.constantFrom('residual', 'activation', 'multiply'), x: fc.nat(), y: fc.nat() })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 24 }), fc.nat(), (steps, end) => {
      const s = new Sketch()
      const width = 20
      const made = [s.emit('embed', 'embed', { weights: { table: ['embed', 'f32'] }, params: { vocab: 8, width } })]
      for (const [i, { op, x, y }] of steps.entries()) {
        const inputs = { x: made[x % made.length]!, ...(op === 'activation' ? {} : { y: made[y % made.length]! }) }
        const params = { width, ...(op === 'activation' ? { activation: 3 } : {}) }
        made.push(s.emit(op as 'residual', `step.${i}`, { inputs, params }))
      }
      const hidden = s.emit('gather_rows', 'rows', { inputs: { x: made[end % made.length]! }, params: { width } })
      verifyPlan(writePlan(s.finish('random', 8, width, { hidden })), 'random')
    }),
  )
})
