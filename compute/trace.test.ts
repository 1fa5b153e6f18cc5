import { describe, expect, it } from 'vitest'
import { addon, type NativeModel } from '../abi/native.ts'
import { createResult, ROW_RESULT_BYTES, type StepView } from '../abi/step.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import { backends } from './backends.ts'
import type { Runner, Trace } from './device.ts'
import { type ExamplePackage, exampleLimits, examplePackage, promptStep } from './example.test-package.ts'
import { reachedUnits, traceBytes } from './trace.ts'

const options = { limits: exampleLimits, blocks: 33, slots: 9, threads: 1, isa: '' }
const prompts = [[1, 2, 3], Array.from({ length: 40 }, (_, i) => (i * 7) % 40), [39]]

const result = () => createResult(exampleLimits.rows, { vocab: 0, hidden: 0 }).view
async function traced(runner: Runner, step: StepView = promptStep(prompts)) {
  const view = result()
  return { trace: await runner.trace!(step, view), tokens: tokensOf(view.rows) }
}
const tokensOf = (rows: Int32Array) => prompts.map((_, row) => rows[(row * ROW_RESULT_BYTES) / 4]!)

async function tracedOn(backend: 'cpu' | 'reference', pkg: ExamplePackage, changes = {}) {
  const runner = await backends[backend].open(pkg, { ...options, ...changes })
  try {
    return await traced(runner)
  } finally {
    runner.dispose()
  }
}

/** Largest distance of each instruction's first output from the reference's, over the largest value. */
const distances = (a: Trace, b: Trace) =>
  a.instructions.map(({ outputs: [expected] }, i) => {
    const [want, got] = [expected!, b.instructions[i]!.outputs[0]!].map(({ values }) => Array.from(values))
    const largest = Math.max(...want!.map(Math.abs))
    return Math.max(...want!.map((value, k) => Math.abs(value - got![k]!) / largest))
  })

describe('a trace', () => {
  it('shows what every instruction wrote, the same on both backends up to rounding', async () => {
    using pkg = examplePackage()
    const reference = await tracedOn('reference', pkg)
    const cpu = await tracedOn('cpu', pkg)
    expect(cpu.trace.instructions.length).toBe(pkg.plan.instructions.length)
    for (const [index, { outputs }] of cpu.trace.instructions.entries()) {
      const { outputs: registers } = pkg.plan.instructions[index]!
      expect(outputs.map(({ register }) => register)).toEqual(registers)
      for (const { register, rows, width, values } of outputs) {
        expect(values.length).toBe(rows * width)
        expect(width).toBe(pkg.plan.registers[register]!.width)
        expect(rows).toBe(pkg.plan.registers[register]!.space === 'tokens' ? 44 : 3)
      }
    }
    // the sampled token is the last instruction's first output
    expect([...cpu.trace.instructions.at(-1)!.outputs[0]!.values]).toEqual(cpu.tokens)
    const distance = distances(reference.trace, cpu.trace)
    expect(distance[0]).toBe(0)
    // keys and values are kept in bf16
    expect(Math.max(...distance)).toBeLessThan(0.02)
  })

  it('has the same bits on every instruction set, and the same result as a step', async () => {
    using pkg = examplePackage(decoderPlan('bf16'))
    const first = await tracedOn('cpu', pkg)
    for (const isa of addon().machine().available)
      expect(await tracedOn('cpu', pkg, { isa, threads: 2 })).toEqual(first)
    const runner = await backends.cpu.open(pkg, options)
    const view = result()
    await runner.step(promptStep(prompts), view)
    expect(tokensOf(view.rows)).toEqual(first.tokens)
    runner.dispose()
  })

  it('digests the units that an instruction writes', async () => {
    using pkg = examplePackage()
    for (const backend of ['cpu', 'reference'] as const) {
      const runner = await backends[backend].open(pkg, options)
      const { trace } = await traced(runner)
      const writing = trace.instructions.filter(({ units }) => units.length > 0)
      expect(writing.length).toBe(pkg.plan.instructions.filter(({ op }) => op === 'attention').length)
      // blocks of 3, 40 and 1 positions
      expect(writing[0]!.units.map(({ unit }) => unit)).toEqual([1, 5, 6, 9])
      const again = await traced(runner, promptStep([prompts[0]!, prompts[1]!, [38]]))
      const changed = again.trace.instructions.find(({ units }) => units.length > 0)!.units
      expect(changed.slice(0, 3)).toEqual(writing[0]!.units.slice(0, 3))
      expect(changed[3]).not.toEqual(writing[0]!.units[3])
      runner.dispose()
    }
  })

  it('needs a buffer of the right size, an idle model and an open one', async () => {
    using pkg = examplePackage()
    const runner = await backends.cpu.open(pkg, options)
    const { model: native } = runner as unknown as { model: NativeModel }
    const step = promptStep(prompts)
    const bytes = traceBytes(pkg.plan, step)
    for (const wrong of [bytes - 4, bytes + 4, 4])
      expect(await native.step(step.buffer, result().buffer, new ArrayBuffer(wrong))).toMatchObject({
        code: 'STEP_FAILED',
        details: { where: 'the trace buffer' },
      })
    expect(() => native.step(step.buffer, result().buffer, 'no' as unknown as ArrayBuffer)).toThrow(TypeError)
    expect(await native.step(step.buffer, result().buffer, new ArrayBuffer(bytes))).toBeNull()
    runner.dispose()
    await expect(runner.trace!(step, result())).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
    expect('trace' in (await backends.null.open(pkg, options))).toBe(false)
  })

  it('reaches the blocks of the positions that a step computes', () => {
    const plan = decoderPlan()
    const step = promptStep(prompts)
    const paged = plan.states.findIndex(({ kind }) => kind === 'paged')
    expect(reachedUnits(plan, step, paged)).toEqual([1, 5, 6, 9])
  })
})
