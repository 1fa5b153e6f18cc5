import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { addon, type NativeModel, type NativeModelOptions, packageRoot } from '../abi/native.ts'
import { createResult, ROW_RESULT_BYTES, resultHeader, rowReference, type StepView, stepHeader } from '../abi/step.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import { backends } from './backends.ts'
import type { Runner, RunnerOptions } from './device.ts'
import { type ExamplePackage, exampleLimits, examplePackage, promptStep } from './example.test-package.ts'

const options: RunnerOptions = { limits: exampleLimits, blocks: 33, slots: 9, threads: 1, isa: '' }
const prompts = [[1, 2, 3], Array.from({ length: 40 }, (_, i) => (i * 7) % 40), [39]]

interface Run {
  readonly tokens: readonly number[]
  readonly logits: Float32Array
  readonly launches: number
}

async function run(runner: Runner, step: StepView = promptStep(prompts)): Promise<Run> {
  const { vocab } = decoderPlan()
  const { view, offsets } = createResult(exampleLimits.rows, { vocab, hidden: 0 })
  step.header[stepHeader.word.result_logits] = offsets.logits
  await runner.step(step, view)
  const rows = step.header[stepHeader.word.rows]!
  return {
    tokens: Array.from({ length: rows }, (_, row) => view.rows[(row * ROW_RESULT_BYTES) / 4]!),
    logits: view.logits.slice(0, rows * vocab),
    launches: view.header[resultHeader.word.launches]!,
  }
}

async function runOn(pkg: ExamplePackage, changes: Partial<RunnerOptions> = {}): Promise<Run> {
  const runner = await backends.cpu.open(pkg, { ...options, ...changes })
  try {
    return await run(runner)
  } finally {
    runner.dispose()
  }
}

/** Options of the addon itself, without the backend around it. */
function nativeOptions({ plan, planBytes, file, tensors }: ExamplePackage, bytes: number): NativeModelOptions {
  const ranges = plan.tensors.map(({ name }, tensor) => {
    const { offset, bytes } = tensors.get(name)!
    return { tensor, offset, bytes }
  })
  const { limits, blocks, slots } = options
  return {
    plan: planBytes,
    weights: [{ path: file, bytes, tensors: ranges }],
    pin: 'automatic',
    isa: '',
    threads: 2,
    limits,
    blocks,
    slots,
  }
}

const weightsBytes = ({ tensors }: ExamplePackage) =>
  Math.max(...[...tensors.values()].map(({ offset, bytes }) => Math.ceil((offset + bytes) / 64) * 64))

const openNative = (pkg: ExamplePackage) => addon().openModel(nativeOptions(pkg, weightsBytes(pkg))) as NativeModel

describe('a step', () => {
  test.each(['f32', 'bf16', 'i8', 'i4'] as const)('of %s weights agrees with the reference', async (dtype) => {
    using pkg = examplePackage(decoderPlan(dtype))
    const reference = await run(await backends.reference.open(pkg, options))
    for (const isa of addon().machine().available) {
      const got = await runOn(pkg, { isa })
      const worst = got.logits.reduce((most, value, i) => Math.max(most, Math.abs(value - reference.logits[i]!)), 0)
      expect(worst, isa).toBeLessThan(dtype === 'i8' || dtype === 'i4' ? 0.1 : 0.05)
      expect(reference.logits.some((value) => Math.abs(value) > 0.5)).toBe(true)
      if (dtype === 'f32') expect(got.tokens).toEqual(reference.tokens)
      expect(got.launches).toBe(pkg.plan.instructions.length)
    }
  })

  test('gives the same bits on any number of threads', async () => {
    using pkg = examplePackage()
    const one = await runOn(pkg)
    for (const threads of [2, 3, 0]) expect(await runOn(pkg, { threads })).toEqual(one)
  })

  test('that is wrong is refused, and the next one runs', async () => {
    using pkg = examplePackage()
    const runner = await backends.cpu.open(pkg, options)
    const good = await run(runner)
    const step = promptStep(prompts)
    step.tokenIds[4] = 40
    await expect(run(runner, step)).rejects.toMatchObject({
      code: 'STEP_FAILED',
      details: { where: 'step.token_ids[4]', reason: 'expected an index below 40, got 40' },
    })
    expect(await run(runner)).toEqual(good)
    runner.dispose()
  })

  test('runs after the one before it, and is refused behind two', async () => {
    using pkg = examplePackage()
    const runner = await backends.cpu.open(pkg, options)
    const alone = await run(runner)
    const [first, second, third] = await Promise.allSettled([run(runner), run(runner), run(runner)])
    expect(first).toEqual({ status: 'fulfilled', value: alone })
    expect(second).toEqual({ status: 'fulfilled', value: alone })
    expect(third).toMatchObject({ reason: { code: 'STEP_FAILED' } })
    runner.dispose()
  })

  test('on its way is waited for by dispose, and so is the one behind it', async () => {
    using pkg = examplePackage()
    const model = openNative(pkg)
    const step = promptStep(prompts).buffer
    const results = [new ArrayBuffer(8192), new ArrayBuffer(8192)] as const
    const both = results.map((result) => model.step(step, result))
    model.dispose()
    expect(results.map((result) => new Uint32Array(result)[resultHeader.word.rows])).toEqual([3, 3])
    expect(await Promise.all(both)).toEqual([null, null])
  })

  test('that follows another may name its tokens, as long as it succeeds', async () => {
    using pkg = examplePackage()
    const runner = await backends.cpu.open(pkg, { ...options, pipelined: true })
    expect(runner.depth).toBe(2)
    const { tokens } = await run(runner)
    const plain = promptStep([[1, 2, tokens[2]!], [tokens[0]!]])
    const expected = await run(runner, plain)
    const behind = (...rows: number[]) => {
      const step = promptStep([[1, 2, rowReference(rows[0]!)], [rowReference(rows[1]!)]])
      step.header[stepHeader.word.follows] = 1
      return step
    }
    expect((await Promise.all([run(runner), run(runner, behind(2, 0))]))[1]).toEqual(expected)
    const where = (name: string) => ({ reason: { code: 'STEP_FAILED', details: { where: name } } })
    const beyond = await Promise.allSettled([run(runner), run(runner, behind(0, prompts.length))])
    expect(beyond).toMatchObject([{ status: 'fulfilled' }, where('step.token_ids[3]')])
    runner.failAfter!(2)
    const failed = await Promise.allSettled([run(runner), run(runner, behind(2, 0))])
    expect(failed).toMatchObject([{ status: 'rejected' }, where('step.follows')])
    expect(await run(runner, plain)).toEqual(expected)
    runner.dispose()
  })
})

describe('opening', () => {
  test('says what runs', async () => {
    using pkg = examplePackage()
    const runner = await backends.cpu.open(pkg, { ...options, isa: 'portable', threads: 1 })
    expect(runner.info).toEqual({
      backend: 'cpu',
      pinning: { pinned: false, reason: 'one thread' },
      description: 'portable C++, 1 thread',
      isa: 'portable',
      threads: 1,
      deterministic: true,
    })
    const { weightsBytes, arenaBytes, stateBytes } = runner.memory()
    expect(weightsBytes).toBe(pkg.plan.tensors.reduce((sum, { bytes }) => sum + bytes, 0))
    expect(stateBytes).toBeGreaterThanOrEqual(pkg.plan.states.reduce((sum, { sizeBytes }) => sum + 33 * sizeBytes, 0))
    expect(arenaBytes).toBeGreaterThanOrEqual(64 * pkg.plan.memory.peak[0]!)
    runner.dispose()
  })

  test.each([
    ['an unknown instruction set', { isa: 'mmx' }, 'ISA_UNAVAILABLE'],
    ['a negative thread count', { threads: -1 }, 'OPTION_INVALID'],
    ['more state than memory', { blocks: 2 ** 30 }, 'OUT_OF_MEMORY'],
  ])('refuses %s', async (_, changes, code) => {
    using pkg = examplePackage()
    await expect(backends.cpu.open(pkg, { ...options, ...changes })).rejects.toMatchObject({ code })
  })

  test('refuses weights that are cut off, misaligned, missing or not named', async () => {
    using pkg = examplePackage()
    const tensors = new Map(pkg.tensors)
    const open = () => backends.cpu.open({ ...pkg, tensors }, options)
    const embed = tensors.get('embed')!
    tensors.set('embed', { ...embed, offset: embed.offset + 4 })
    await expect(open()).rejects.toMatchObject({ code: 'PACKAGE_INVALID', details: { thing: 'tensor embed' } })
    tensors.set('embed', embed)
    tensors.delete('inv_freq')
    await expect(open()).rejects.toMatchObject({ code: 'TENSOR_MISSING' })
    tensors.set('inv_freq', pkg.tensors.get('inv_freq')!)
    writeFileSync(pkg.file, new Uint8Array(100))
    await expect(open()).rejects.toMatchObject({ code: 'FILE_TRUNCATED', details: { path: pkg.file } })
    tensors.set('embed', { ...embed, file: join(pkg.path, 'gone') })
    await expect(open()).rejects.toMatchObject({ code: 'FILE_MISSING' })
  })

  test('verifies the plan and names the package', async () => {
    using pkg = examplePackage()
    const planBytes = pkg.planBytes.slice()
    planBytes[planBytes.length >> 1]! ^= 0xff
    planBytes[4] = 0
    await expect(backends.cpu.open({ ...pkg, planBytes }, options)).rejects.toMatchObject({
      code: 'PLAN_INVALID',
      details: { path: pkg.path },
    })
  })
})

describe('the addon', () => {
  test('throws a TypeError for wrong arguments', () => {
    using pkg = examplePackage()
    const native = addon()
    const any = native as unknown as Record<string, (...args: unknown[]) => unknown>
    const good = nativeOptions(pkg, weightsBytes(pkg))
    const wrong: unknown[][] = [
      ['verifyPlan'],
      ['verifyPlan', 'plan'],
      ['verifyPlan', new Float32Array(4)],
      ['mapFile', 7],
      ['openModel'],
      ['openModel', null],
      ['openModel', {}],
      ['openModel', { ...good, plan: 'x' }],
      ['openModel', { ...good, weights: {} }],
      ['openModel', { ...good, weights: [1] }],
      ['openModel', { ...good, weights: [{ ...good.weights[0], tensors: [{ tensor: -1 }] }] }],
      ['openModel', { ...good, threads: 1.5 }],
      ['openModel', { ...good, threads: Number.NaN }],
      ['openModel', { ...good, limits: undefined }],
      ['openModel', { ...good, limits: { ...good.limits, tokens: 2 ** 31 } }],
      ['openModel', { ...good, blocks: Number.POSITIVE_INFINITY }],
      ['openModel', { ...good, isa: 3 }],
    ]
    for (const [name, ...args] of wrong) expect(() => any[name as string]!(...args), String(args)).toThrow(TypeError)
    const throwing = {
      get isa() {
        throw new RangeError('from a getter')
      },
    }
    expect(() => any.openModel!(throwing)).toThrow('from a getter')
    const model = openNative(pkg)
    const step = model.step.bind(model) as (...args: unknown[]) => unknown
    expect(() => step()).toThrow(TypeError)
    expect(() => step(new ArrayBuffer(8), new SharedArrayBuffer(8))).toThrow(TypeError)
    expect(() => new (model.constructor as new () => unknown)()).toThrow(TypeError)
    model.dispose()
  })

  test('reads and writes units of state', async () => {
    using pkg = examplePackage()
    const model = openNative(pkg)
    const unit = model.readState(1, 32)
    expect(unit).toEqual(new Uint8Array(pkg.plan.states[1]!.sizeBytes))
    model.writeState(1, 32, unit.fill(7))
    expect(model.readState(1, 32)).toEqual(unit)
    expect(model.readState(1, 31)[0]).toBe(0)
    expect(() => model.readState(1, 33)).toThrow(RangeError)
    expect(() => model.readState(2, 0)).toThrow(RangeError)
    expect(() => model.writeState(0, 0, unit.subarray(1))).toThrow(RangeError)
    const running = model.step(promptStep(prompts).buffer, new ArrayBuffer(8192))
    expect(() => model.readState(1, 32)).toThrow('running')
    expect(await running).toBeNull()
    model.dispose()
    expect(() => model.readState(1, 32)).toThrow('disposed')
  })

  test('finishes the running step when disposed, and is disposed once', async () => {
    using pkg = examplePackage()
    const model = openNative(pkg)
    const running = model.step(promptStep(prompts).buffer, new ArrayBuffer(8192))
    model.dispose()
    model.dispose()
    expect(await running).toBeNull()
    expect(await model.step(new ArrayBuffer(8), new ArrayBuffer(8))).toMatchObject({ code: 'STEP_FAILED' })
    const captures = { count: 0, bytes: 0, milliseconds: 0 }
    expect(model.memory()).toEqual({ weightsBytes: 0, arenaBytes: 0, stateBytes: 0, scratchBytes: 0, captures })
  })

  test('has no kernels to choose from, and reads what is to be compared before anything runs', async () => {
    using pkg = examplePackage()
    const model = openNative(pkg)
    expect(model.choices(0, 8, true)).toEqual([])
    expect(model.choices(2 ** 32 - 1, 0, false)).toEqual([])
    expect(model.choiceUse()).toEqual({ given: 0, taken: 0, hits: 0, misses: 0 })
    const { buffer: step } = promptStep(prompts)
    const [result, times] = [new ArrayBuffer(8192), new ArrayBuffer(24)]
    const sets = [[{ instructions: [0], rows: 1, kernel: 'tile' }]]
    expect(await model.compare(step, result, times, sets)).toMatchObject({ code: 'STEP_FAILED' })
    for (const wrong of [
      [],
      [[{}]],
      [[{ ...sets[0]![0]!, rows: -1 }]],
      [[{ ...sets[0]![0]!, instructions: [0.5] }]],
      'x',
    ])
      expect(() => model.compare(step, result, times, wrong as never)).toThrow(TypeError)
    const running = model.step(step, result)
    expect(() => model.compare(step, result, times, sets)).toThrow('a step is running')
    await running
    model.dispose()
  })

  test('frees models that are collected or disposed', async () => {
    using pkg = examplePackage()
    setFlagsFromString('--expose-gc')
    const collect: () => void = runInNewContext('gc')
    const step = promptStep(prompts).buffer
    const cycle = async (dispose: boolean) => {
      const model = openNative(pkg)
      await model.step(step, new ArrayBuffer(8192))
      if (dispose) model.dispose()
    }
    const settle = async () => {
      for (let i = 0; i < 3; i++) {
        collect()
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
      return process.memoryUsage().rss
    }
    for (let i = 0; i < 100; i++) await cycle(i % 2 === 0)
    const before = await settle()
    for (let i = 0; i < 300; i++) {
      await cycle(i % 2 === 0)
      if (i % 50 === 0) await settle()
    }
    expect((await settle()) - before).toBeLessThan(8e6)
  })
})

describe('worker threads', () => {
  const source = `
    const { workerData, parentPort } = require('node:worker_threads')
    const { path, options, step, steps } = workerData
    const model = require(path).openModel(options)
    ;(async () => {
      for (let i = 0; i < steps; i++) {
        const both = [model.step(step, new ArrayBuffer(8192)), model.step(step, new ArrayBuffer(8192))]
        const fault = (await Promise.all(both)).find(Boolean)
        if (fault) throw new Error(JSON.stringify(fault))
        if (i === 2) parentPort.postMessage('running')
      }
    })()`
  const start = (pkg: ExamplePackage, steps: number) =>
    new Worker(source, {
      eval: true,
      workerData: {
        path: join(packageRoot(), 'build/Release/ingot.node'),
        options: nativeOptions(pkg, weightsBytes(pkg)),
        step: promptStep(prompts).buffer,
        steps,
      },
    })
  const event = (worker: Worker, name: 'message' | 'exit') =>
    new Promise((resolve, reject) => worker.once(name, resolve).once('error', reject))

  test('run models at the same time', async () => {
    using pkg = examplePackage()
    const exits = Array.from({ length: 4 }, () => event(start(pkg, 50), 'exit'))
    expect(await Promise.all(exits)).toEqual([0, 0, 0, 0])
  })

  test('may be terminated in the middle of a step', async () => {
    using pkg = examplePackage()
    for (let round = 0; round < 10; round++) {
      const workers = [start(pkg, 1e9), start(pkg, 1e9)]
      await Promise.all(workers.map((worker) => event(worker, 'message')))
      await Promise.all(workers.map((worker) => worker.terminate()))
    }
    expect((await runOn(pkg)).tokens).toHaveLength(3)
  })
})
