import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon } from '../../abi/native.ts'
import { opNames } from '../../abi/ops/index.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import { verifyPlan } from '../../plans/verify.ts'
import { type BackendRow, type ConformanceReport, conformance } from '../conformance.ts'
import { opCases } from './cases.ts'
import { magnitude } from './compare.ts'
import { Suite } from './suite.ts'

let suite: Suite
beforeAll(async () => {
  suite = await Suite.open()
})
afterAll(() => suite[Symbol.asyncDispose]())

/** What a person needs to see of a report that fails. */
const failures = ({ cells, staleExpectations }: ConformanceReport) => [
  ...cells.flatMap((cell) => cell.failures.map(({ case: name, reason }) => `${cell.op} ${name}: ${reason}`)),
  ...staleExpectations,
]

describe('the CPU conforms', () => {
  const [best, ...others] = addon().machine().available
  const row = (isa: string): BackendRow => ({ name: 'cpu', backend: cpuBackend, isa })

  it.each(opNames)('in %s, on the best instruction set', async (op) => {
    const report = await conformance(row(best!), { suite, ops: [op] })
    expect(failures(report)).toEqual([])
    expect(report.pass).toBe(true)
  })

  it.each(others)('in a slice of every opcode, on %s', async (isa) => {
    const report = await conformance(row(isa), { suite, slice: 'thin' })
    expect(failures(report)).toEqual([])
    expect(report.pass).toBe(true)
  })
})

describe('the cases', () => {
  it.each(opNames)('of %s are sound plans whose outputs do not vanish', async (op) => {
    for (const opCase of opCases[op] ?? []) {
      const { pkg, expected } = await suite.prepare(opCase)
      verifyPlan(pkg.planBytes, opCase.name)
      expect(magnitude(expected), opCase.name).toBeGreaterThan(0.01)
    }
  })
})
