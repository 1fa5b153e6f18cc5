/** What holds with and without a device: the table, and how absence is told. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { addon, type NativeFault, type NativeModel, packageRoot } from '../abi/native.ts'
import { createResult, createStep } from '../abi/step.ts'
import { DeviceError } from '../errors.ts'
import { decoderPlan, menageriePlan } from '../plans/example.test-plan.ts'
import { backendOf, backends } from './backends.ts'
import { cudaTable } from './cuda.ts'
import { CudaRunner } from './cuda-backend.ts'
import { linkGaps } from './link.ts'

const built = existsSync(join(packageRoot(), 'build/Release/libingot_cuda.so'))
const status = addon().cuda()

describe('the table', () => {
  it.each(['f32', 'f16', 'bf16', 'i8', 'i4', 'e4m3'] as const)('runs a decoder of %s weights', (dtype) => {
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
    const codes = [
      'driver_missing',
      'driver_too_old',
      'no_device',
      'compute_capability_below_sm80',
      'device_not_built_for',
      'device_failed',
    ]
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

describe('choices of kernels', () => {
  const pkg = { path: 'a.ingot', plan: decoderPlan('bf16'), planBytes: new Uint8Array(), tensors: new Map() }
  const info = { backend: 'cuda', description: 'a GPU', isa: 'sm_90', threads: 1, deterministic: false }
  const { view: result } = createResult(1, { vocab: 0, hidden: 0 })
  const counts = { tokens: 1, rows: 1, sequences: 1, blocksPerSequence: 1, history: 0, biases: 0, copies: 0 }
  const sets = [3, 5, 4].map((rows) => [{ instructions: [1], rows, kernel: 'tile' }])

  /** A device on which set s takes 10 s + round microseconds, or that fails. */
  const runnerOf = (fault: NativeFault | null) =>
    new CudaRunner(
      {
        compare: async (_: ArrayBuffer, __: ArrayBuffer, times: ArrayBuffer, asked: typeof sets) => {
          new Float64Array(times).forEach((_, i, all) => {
            all[i] = 10 * (i % asked.length) + Math.floor(i / asked.length)
          })
          return fault
        },
        choiceUse: () => ({ given: 2, taken: 1, hits: 7, misses: 3 }),
        memory: () => ({
          ...{ weightsBytes: 1, arenaBytes: 2, stateBytes: 3, scratchBytes: 4 },
          captures: { count: 2, bytes: 3, milliseconds: 1.5 },
        }),
      } as unknown as NativeModel,
      pkg,
      info,
      false,
    )

  it('are compared by set and round', async () => {
    const times = await runnerOf(null).compare(createStep(counts), result, sets, 2)
    expect(times).toEqual([
      [0, 1],
      [10, 11],
      [20, 21],
    ])
    const fault = { code: 'STEP_FAILED', details: { where: 'compare', reason: 'no kernel x can serve that' } }
    await expect(runnerOf(fault).compare(createStep(counts), result, sets, 2)).rejects.toMatchObject(fault)
  })

  it('are counted, and captures are part of the memory', () => {
    expect(runnerOf(null).choiceUse()).toMatchObject({ hits: 7, misses: 3 })
    expect(runnerOf(null).memory().captures).toEqual({ count: 2, bytes: 3, milliseconds: 1.5 })
  })

  it('hold for one device, driver and build', () => {
    const { backend, driver } = backends.cuda.identity!()
    expect({ backend, driver }).toEqual({ backend: 'cuda', driver: expect.stringMatching(/^CUDA \d+\.\d$/) })
    expect(addon().cudaKernels()).toMatch(built ? /^[0-9a-f]{64}, (no cuBLASLt|cuBLASLt \d+)$/ : /^$/)
  })
})

describe('a fault of the device', () => {
  const lost: NativeFault = { code: 'DEVICE_LOST', details: { device: 'a GPU', reason: 'cudaErrorIllegalAddress' } }

  /** A device whose steps end as `faults` say, in turn, once the event loop has gone on. */
  function runnerOf(faults: (NativeFault | null)[]) {
    let disposed = 0
    const model = {
      step: () => new Promise<NativeFault | null>((resolve) => setTimeout(() => resolve(faults.shift()!), 2)),
      readState: () => {
        throw Object.assign(new Error(lost.code), lost)
      },
      dispose: () => void disposed++,
    } as unknown as NativeModel
    const pkg = { path: 'a.ingot', plan: decoderPlan('bf16'), planBytes: new Uint8Array(), tensors: new Map() }
    const info = { backend: 'cuda', description: 'a GPU', isa: 'sm_90', threads: 1, deterministic: false }
    const step = createStep({
      tokens: 1,
      rows: 1,
      sequences: 1,
      blocksPerSequence: 1,
      history: 0,
      biases: 0,
      copies: 0,
    })
    const runner = new CudaRunner(model, pkg, info, true)
    return { runner, run: () => runner.step(step, createResult(1, { vocab: 0, hidden: 0 }).view), gone: () => disposed }
  }

  it('is that of one step, of the two that may be on their way', async () => {
    const { run } = runnerOf([null, lost, null])
    const outcomes = await Promise.allSettled([run(), run()])
    expect(outcomes).toMatchObject([{ status: 'fulfilled' }, { status: 'rejected', reason: lost }])
    await run()
  })

  it('rejects the step that met it, and says whether it can be tried again', async () => {
    const failed: NativeFault = { code: 'DEVICE_FAILED', details: { where: 'layers.0.attention', reason: 'a launch' } }
    const { runner, run, gone } = runnerOf([null, failed, null, lost, lost])
    await run()
    await expect(run()).rejects.toMatchObject({ ...failed, message: expect.stringContaining('retry it') })
    await run()
    for (let i = 0; i < 2; i++) {
      const error = await run().catch((reason: unknown) => reason)
      expect(error).toBeInstanceOf(DeviceError)
      expect(error).toMatchObject({ ...lost, message: expect.stringMatching(/^a GPU takes no more work: cudaError/) })
    }
    expect('sentinels' in runner).toBe(false) // no executor of a device lays any
    expect(() => runner.readState(0, 0)).toThrow(expect.objectContaining(lost))
    runner.dispose()
    expect(gone()).toBe(1)
    await expect(run()).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
  })
})
