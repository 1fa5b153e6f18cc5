import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { PlanError } from '../errors.ts'
import { decoderPlan, menageriePlan } from './example.test-plan.ts'
import { readPlan } from './read.ts'
import { writePlan } from './write.ts'

describe('whatever the bytes', () => {
  const sound = [
    writePlan(decoderPlan('bf16', 1)),
    writePlan(decoderPlan('i8', 1)),
    writePlan(decoderPlan('i4', 1)),
    writePlan(decoderPlan('e4m3', 1)),
    writePlan(menageriePlan()),
  ]
  const edit = fc.record({ at: fc.nat(), byte: fc.nat(255), wide: fc.boolean() })

  const outcome = (bytes: Uint8Array): unknown => {
    try {
      return readPlan(bytes, 'mutated') && undefined
    } catch (error) {
      return error
    }
  }
  const soundOrPlanError = (bytes: Uint8Array) => {
    const error = outcome(bytes)
    if (error !== undefined) expect(error).toBeInstanceOf(PlanError)
  }

  test('a mutated plan reads, or is refused with a PlanError', () => {
    fc.assert(
      fc.property(fc.constantFrom(...sound), fc.array(edit, { minLength: 1, maxLength: 6 }), (plan, edits) => {
        const bytes = plan.slice()
        for (const { at, byte, wide } of edits)
          bytes.fill(byte, at % bytes.length, (at % bytes.length) + (wide ? 4 : 1))
        soundOrPlanError(bytes)
      }),
      { numRuns: 3000 },
    )
  })

  test('a cut plan is refused', () => {
    fc.assert(
      fc.property(fc.constantFrom(...sound), fc.double({ min: 0, max: 0.9, noNaN: true }), (plan, part) => {
        expect(outcome(plan.slice(0, Math.floor(plan.length * part)))).toBeInstanceOf(PlanError)
      }),
    )
  })

  test('noise is refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(outcome(bytes)).toBeInstanceOf(PlanError)
      }),
    )
  })
})
