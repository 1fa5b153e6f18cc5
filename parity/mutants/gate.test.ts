import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../../abi/native.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import { mutated, registered, withTargets } from './build.ts'
import { kernelDefects } from './defects.ts'
import { builtDefects, Gate } from './gate.ts'

const source = (file: string) => readFileSync(join(packageRoot(), 'native', 'cpu', file), 'utf8')

describe('defects of kernels', () => {
  it('are many, and each is its own', () => {
    expect(kernelDefects.length).toBeGreaterThan(40)
    expect(new Set([...kernelDefects, ...builtDefects()].map(({ name }) => name)).size).toBe(
      kernelDefects.length + builtDefects().length,
    )
  })
  it.each(kernelDefects)('$name changes what stands once in $file', (defect) => {
    expect(mutated(defect, source(defect.file))).not.toBe(source(defect.file))
  })
  it('are built and registered beside the sound kernels', () => {
    const { name } = kernelDefects[0]!
    const set = `sets.push_back({"${name}", &${name}::patched_table(), &portable::probes, portable::pack_tile, nullptr});`
    expect(registered(source('dispatch.cc'), kernelDefects)).toContain(set)
    expect(withTargets(source('../../CMakeLists.txt'), kernelDefects)).toContain(`add_library(mutant_${name} OBJECT`)
  })
  it('fail where their text is gone', () => {
    const stale = { ...kernelDefects[0]!, find: 'nobody writes this' }
    expect(() => mutated(stale, source(stale.file))).toThrow(expect.objectContaining({ code: 'MUTANT_STALE' }))
  })
})

describe('the gate', () => {
  let gate: Gate
  beforeAll(async () => {
    gate = await Gate.open()
  })
  afterAll(() => gate[Symbol.asyncDispose]())

  const cheap = [
    'plan_wrong_epsilon',
    'plan_softcap_dropped',
    'rows_rotated',
    'top_logprobs_one_short',
    'resets_ignored',
  ]
  it.each(builtDefects().filter(({ name }) => cheap.includes(name)))('catches $name', async ({ row, ops }) => {
    expect(await gate.ops(row, ops)).toMatchObject({ by: 'op' })
  })

  // The negative control: what is not defective passes the same cases.
  it('holds nothing against the sound kernels', async () => {
    const ops = ['rms_norm', 'logits', 'gather_rows', 'sample'] as const
    expect(await gate.ops({ name: 'sound', backend: cpuBackend }, ops)).toBeUndefined()
  })
})
