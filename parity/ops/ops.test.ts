import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon } from '../../abi/native.ts'
import { opNames } from '../../abi/ops/index.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import { verifyPlan } from '../../plans/verify.ts'
import { type BackendRow, conformance } from '../conformance.ts'
import { opCases } from './cases.ts'
import { magnitude } from './compare.ts'
import { Suite } from './suite.ts'

let suite: Suite
beforeAll(async () => {
  suite = await Suite.open()
})
afterAll(() => suite[Symbol.asyncDispose]())

const [best, ...others] = addon().machine().available
const row = (isa: string | undefined): BackendRow => ({ name: 'cpu', backend: cpuBackend, isa })

describe.each(opNames)('%s', (op) => {
  it('conforms on the best instruction set of the CPU', async () => {
    const report = await conformance(row(best), { suite, ops: [op] })
    expect(report.cells.flatMap(({ failures }) => failures)).toEqual([])
    expect(report).toMatchObject({ pass: true, isa: best, staleExpectations: [] })
  })

  it('has cases by other names, of sound plans, whose outputs do not vanish', async () => {
    const cases = opCases[op]
    expect(new Set(cases.map(({ name }) => name)).size).toBe(cases.length)
    for (const opCase of cases) {
      const { pkg, expected } = await suite.prepare(opCase)
      verifyPlan(pkg.planBytes, opCase.name)
      expect(magnitude(await expected()), opCase.name).toBeGreaterThan(0.01)
    }
  })
})

it.each(others)('a slice of every opcode conforms on %s', async (isa) => {
  const report = await conformance(row(isa), { suite, slice: 'thin' })
  expect(report.cells.flatMap(({ failures }) => failures)).toEqual([])
  expect(report).toMatchObject({ pass: true, isa })
})
