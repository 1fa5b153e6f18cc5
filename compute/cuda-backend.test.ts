/** What holds with and without a device: the table, and how absence is told. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { addon, packageRoot } from '../abi/native.ts'
import { decoderPlan, menageriePlan } from '../plans/example.test-plan.ts'
import { backendOf, backends } from './backends.ts'
import { cudaTable } from './cuda.ts'
import { linkGaps } from './link.ts'

const built = existsSync(join(packageRoot(), 'build/Release/libingot_cuda.so'))
const status = addon().cuda()

describe('the table', () => {
  it.each(['f32', 'f16', 'bf16', 'i8', 'i4'] as const)('runs a decoder of %s weights', (dtype) => {
    expect(linkGaps(decoderPlan(dtype), cudaTable)).toEqual([])
  })

  it('names every opcode that it lacks', () => {
    const gaps = linkGaps(menageriePlan(), cudaTable)
    for (const op of ['moe', 'conv_state', 'ssm_scan', 'delta_rule', 'layer_norm'])
      expect(gaps.filter((gap) => gap.startsWith(`${op}:`))).toHaveLength(1)
  })
})

describe('a machine', () => {
  it('says by a stable code whether models open on it', () => {
    const codes = ['driver_missing', 'driver_too_old', 'no_device', 'compute_capability_below_sm80', 'device_failed']
    expect(built ? ['available', ...codes, 'library_unloadable'] : ['not_built']).toContain(status.code)
    expect(backends.cuda.unavailable()?.code).toBe(status.code === 'available' ? undefined : status.code)
  })

  it.skipIf(status.code === 'available')('without a device refuses by that code, in the addon as well', async () => {
    expect(() => backendOf('cuda')).toThrow(`(${status.code})`)
    const limits = { tokens: 8, rows: 8, sequences: 8, blocksPerSequence: 8 }
    const shared = { backend: 'cuda', isa: '', pin: 'never', threads: 1, limits, blocks: 8, slots: 8 } as const
    expect(addon().openModel({ ...shared, plan: new Uint8Array(8), weights: [] })).toMatchObject({
      code: expect.stringMatching(built ? /PLAN_INVALID|BACKEND_UNAVAILABLE/ : /BACKEND_UNAVAILABLE/),
    })
  })
})
