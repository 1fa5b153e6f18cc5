/** What bounds follow from a backend's table. */
import { describe, expect, it } from 'vitest'
import { bf16ToNumber, e4m3ToNumber, f16ToNumber, numberToBf16, numberToE4m3, numberToF16 } from '../abi/dtypes.ts'
import { cpuTable } from '../compute/cpu.ts'
import { cudaTable } from '../compute/cuda.ts'
import { type KernelTable, tableInMode } from '../compute/table.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import { aloneTolerance, operandRoundoff, roundoff, unitRoundoff } from './tolerances.ts'

const dtypes = ['f32', 'f16', 'bf16', 'i8', 'i4'] as const

describe('the largest error of rounding once', () => {
  it.each([
    ['bf16', numberToBf16, bf16ToNumber],
    ['f16', numberToF16, f16ToNumber],
    ['e4m3', numberToE4m3, e4m3ToNumber],
  ] as const)('is reached by %s, and never passed', (dtype, bitsOf, numberOf) => {
    const values = Array.from({ length: 2 ** 13 + 1 }, (_, i) => 1 + i / 2 ** 13)
    const worst = Math.max(...values.map((x) => Math.abs(numberOf(bitsOf(x)) - x) / x))
    expect(worst).toBeLessThanOrEqual(unitRoundoff[dtype])
    expect(worst).toBeGreaterThan(0.9 * unitRoundoff[dtype])
  })
})

describe('an instruction alone', () => {
  const allowed = (dtype: (typeof dtypes)[number], op: string, table: KernelTable | undefined) => {
    const plan = decoderPlan(dtype)
    const instruction = plan.instructions.findLast((each) => each.op === op)!
    return { alone: aloneTolerance(plan, instruction, 0, table), operand: operandRoundoff(plan, instruction, table) }
  }

  it('rounds its operands to what the table declares for the dtype of its weights', () => {
    const of = (table: KernelTable | undefined) => dtypes.map((dtype) => allowed(dtype, 'linear', table).operand)
    const { f16, bf16, i8 } = roundoff
    expect(of(cpuTable)).toEqual([0, 0, bf16, i8, i8])
    expect(of(cudaTable)).toEqual([0, f16, bf16, i8, bf16])
    expect(of(tableInMode(cudaTable, true))).toEqual([0, f16, bf16, bf16, bf16])
    expect(of(undefined)).toEqual([0, 0, 0, 0, 0])
  })

  it('errs by more where its output is kept rounded for the products that read it', () => {
    for (const dtype of ['f16', 'bf16'] as const) {
      const [cpu, cuda] = [cpuTable, cudaTable].map((table) => allowed(dtype, 'attention', table).alone)
      expect(cuda! - cpu!).toBeCloseTo(unitRoundoff[dtype], 12)
      // the last norm is an output of the plan, the embedding is read by norms and residuals
      for (const op of ['rms_norm', 'embed'])
        expect(allowed(dtype, op, cudaTable)).toEqual(allowed(dtype, op, cpuTable))
    }
    expect(allowed('f32', 'attention', cudaTable)).toEqual(allowed('f32', 'attention', cpuTable))
  })
})
