import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon } from '../../abi/native.ts'
import { opNames } from '../../abi/ops/index.ts'
import { cpuTable } from '../../compute/cpu.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import { referenceBackend } from '../../compute/reference.ts'
import { verifyPlan } from '../../plans/verify.ts'
import { opCases } from './cases.ts'
import { choices, distance, magnitude, runSteps } from './compare.ts'
import { packageCase } from './open.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-ops-'))
})
afterAll(() => rm(folder, { recursive: true }))

it('has cases for every opcode that the CPU runs', () => {
  const supported = opNames.filter((name) => !('unsupported' in cpuTable[name]))
  expect(supported.filter((name) => !opCases[name]?.length)).toEqual([])
})

for (const [op, cases] of Object.entries(opCases))
  describe(op, () => {
    it.each(cases.map((opCase) => [opCase.name, opCase] as const))('%s', async (_, opCase) => {
      const pkg = await packageCase(opCase, folder)
      verifyPlan(pkg.planBytes, opCase.name)
      const expected = await runSteps(referenceBackend, pkg, opCase.steps)
      expect(magnitude(expected)).toBeGreaterThan(0.01)
      for (const isa of addon().machine().available) {
        const actual = await runSteps(cpuBackend, pkg, opCase.steps, isa)
        expect(distance(expected, actual), `largest error on ${isa}`).toBeLessThanOrEqual(opCase.tolerance)
        expect(choices(actual).join(), `tokens on ${isa}`).toBe(choices(expected).join())
      }
    })
  })
