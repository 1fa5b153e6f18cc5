import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError, DeviceError, fail } from '../errors.ts'
import type { ModelOptions } from './capacity.ts'
import { leftovers, nothing, openFake as openAt } from './fixtures/model.ts'
import { type Asked, capacities, mixed, picker } from './fixtures/requests.ts'
import type { FakePlanOptions } from './fixtures/runner.ts'
import type { GenerationResult } from './stream.ts'

const answer = ({ tokens, logprobs, finishReason }: GenerationResult) => ({ tokens, logprobs, finishReason })

describe.each([1, 2] as const)('steps in flight: %i', (depth) => {
  const openFake = (options: ModelOptions = {}, plan: FakePlanOptions = {}) => openAt(options, { depth, ...plan })

  async function runAll(asked: Asked[], options: ModelOptions, plan: FakePlanOptions = {}) {
    const { model, runner } = openFake(options, plan)
    const results = await Promise.all(asked.map(({ prompt, options }) => model.generate(prompt, options).result()))
    const stats = model.stats()
    expect(leftovers(model)).toEqual(nothing)
    await model.dispose()
    return { answers: results.map(answer), results, stats, runner }
  }

  async function runAlone(asked: Asked[], plan: FakePlanOptions = {}) {
    const answers = []
    for (const request of asked) answers.push(...(await runAll([request], { prefixCache: false }, plan)).answers)
    return answers
  }

  describe('a request gives the same output', () => {
    const asked = mixed(64)
    const small = { maxSlots: 6, contextTokens: 100 }
    const variants: Record<string, ModelOptions> = {
      batched: { maxSlots: 64 },
      'in few slots': { maxSlots: 3 },
      'in chunks of 1': { prefillChunk: 1 },
      'in chunks of 7': { prefillChunk: 7 },
      'in chunks of 64': { prefillChunk: 64 },
      'under a tight budget': { maxSlots: 8, maxTokensPerStep: 8 },
      'without prefix cache': { prefixCache: false },
      'when forced to be preempted': { preemptEvery: 3 },
      'when preempted, without prefix cache, in chunks': { preemptEvery: 2, prefixCache: false, prefillChunk: 7 },
      'when blocks run out': { ...small, blocks: 30 },
      'when blocks run out, without prefix cache': { ...small, blocks: 30, prefixCache: false },
    }
    let alone: Awaited<ReturnType<typeof runAlone>>
    const expected = async () => (alone ??= await runAlone(asked))

    for (const [name, options] of Object.entries(variants)) {
      test(name, async () => {
        const { answers, stats } = await runAll(asked, options)
        expect(answers).toEqual(await expected())
        if (options.preemptEvery || options.blocks) expect(stats.preemptions).toBeGreaterThan(3)
        if (options.prefixCache !== false) expect(stats.prefixHits).toBeGreaterThan(5)
        else expect(stats.prefixHits).toBe(0)
      })
    }

    test('in any order', async () => {
      const { answers } = await runAll(asked.toReversed(), { maxSlots: 5 })
      expect(answers.toReversed()).toEqual(await expected())
    })

    test('with fixed state, which is reset and never shared', async () => {
      const plan: FakePlanOptions = { states: ['paged', 'fixed'] }
      const { answers, stats } = await runAll(asked, { maxSlots: 4, preemptEvery: 5, prefillChunk: 9 }, plan)
      expect(answers).toEqual(await runAlone(asked, plan))
      expect(stats.prefixHits).toBe(0)
    })

    test('under random capacities', async () => {
      const limits = fc.record({
        ...capacities,
        prefillChunk: fc.integer({ min: 1, max: 70 }),
        preemptEvery: fc.integer({ min: 1, max: 9 }),
      })
      await fc.assert(
        fc.asyncProperty(limits, fc.integer({ min: 0, max: 40 }), async (options, from) => {
          const { answers } = await runAll(asked.slice(from, from + 16), { contextTokens: 100, ...options })
          expect(answers).toEqual((await expected()).slice(from, from + 16))
        }),
        { numRuns: 25 },
      )
    })
  })

  describe('prefix cache', () => {
    test('starts from cached blocks, always recomputes the last token, and copies a full last block', async () => {
      const { model, runner } = openFake({ maxSlots: 2, contextTokens: 64 })
      const prompt = Array.from({ length: 16 }, (_, i) => i)
      const ask = (ids: number[]) => model.generate(ids, { maxTokens: 5, temperature: 0 }).result()
      const first = await ask(prompt)
      const again = await ask(prompt)
      expect(again.tokens).toEqual(first.tokens)
      expect([first.usage.cachedTokens, again.usage.cachedTokens]).toEqual([0, 15])
      expect(runner.seen.reduce((sum, step) => sum + step.copies, 0)).toBe(1)
      const longer = await ask([...prompt, ...first.tokens])
      expect(longer.usage.cachedTokens).toBe(20)
      expect((await ask([...prompt.slice(0, 10), 49])).usage.cachedTokens).toBe(8)
      const turn = [...prompt, ...first.tokens, 1, 2, 3, 4, 5, 6, 7, 8]
      await ask(turn)
      expect((await ask([...turn, 9])).usage.cachedTokens).toBe(28)
      expect(leftovers(model)).toEqual(nothing)
    })

    test('two alike at once copy the same block and end up sharing it', async () => {
      const { model, runner } = openFake({ maxSlots: 4, contextTokens: 64 })
      const prompt = Array.from({ length: 16 }, (_, i) => i + 3)
      const ask = () => model.generate(prompt, { maxTokens: 9 }).result()
      const first = await ask()
      const many = await Promise.all([ask(), ask(), ask()])
      for (const { tokens } of many) expect(tokens).toEqual(first.tokens)
      expect(runner.seen.reduce((sum, step) => sum + step.copies, 0)).toBe(3)
      expect(leftovers(model)).toEqual(nothing)
    })

    test('a context whose every block is cached still fits in the smallest pool', async () => {
      const { model } = openFake({ maxSlots: 1, contextTokens: 16, blocks: 5 })
      const prompt = Array.from({ length: 16 }, (_, i) => i)
      const [first] = await model.embed([prompt])
      const [second] = await model.embed([prompt])
      expect(second).toEqual(first)
      expect(model.stats().prefixTokens).toBe(15)
    })

    test('old blocks are evicted, and what is left is still right', async () => {
      const { model } = openFake({ maxSlots: 2, contextTokens: 32, blocks: 12 })
      const pick = picker(5)
      const prompts = Array.from({ length: 12 }, () => Array.from({ length: 20 }, () => pick(50)))
      const ask = async () => {
        const outputs = []
        for (const prompt of prompts) outputs.push((await model.generate(prompt, { maxTokens: 8 }).result()).tokens)
        return outputs
      }
      expect(await ask()).toEqual(await ask())
      expect(model.stats().blocks.cached).toBeGreaterThan(5)
    })
  })

  /** Resolves when `count` steps have begun; steps from then on wait for release(). */
  function gate(runner: ReturnType<typeof openFake>['runner'], at: number) {
    let reached = () => {}
    let release = () => {}
    const begun = new Promise<void>((resolve) => (reached = resolve))
    const open = new Promise<void>((resolve) => (release = resolve))
    runner.before = (index) => {
      if (index < at) return
      reached()
      return open
    }
    return { begun, release }
  }

  describe('cancellation', () => {
    const long = Array.from({ length: 80 }, (_, i) => i % 50)

    test.each([
      ['while decoding', [1, 2, 3], 4],
      ['during prefill', long, 3],
    ])('%s frees slot and blocks when the step settles', async (_, prompt, at) => {
      const { model, runner } = openFake({ prefillChunk: 4, maxSlots: 2 })
      const { begun, release } = gate(runner, at)
      const controller = new AbortController()
      const generation = model.generate(prompt, { maxTokens: 50, signal: controller.signal })
      const other = model.generate([5, 6], { maxTokens: 20, seed: 1 }).result()
      await begun
      controller.abort(new Error('enough'))
      await expect(generation.result()).rejects.toMatchObject({ code: 'ABORTED', cause: { message: 'enough' } })
      const before = runner.seen.length
      release()
      await other
      const later = runner.seen.slice(before)
      expect(later.every((step) => step.sequences.length === 1)).toBe(true)
      expect(leftovers(model)).toEqual(nothing)
      expect((await other).tokens).toEqual(
        (await runAll([{ prompt: [5, 6], options: { maxTokens: 20, seed: 1 } }], {})).results[0]!.tokens,
      )
    })

    test('in the queue', async () => {
      const { model, runner } = openFake({ maxSlots: 1 })
      const { begun, release } = gate(runner, 1)
      const running = model.generate([1], { maxTokens: 3 }).result()
      const controller = new AbortController()
      const queued = model.generate([2], { signal: controller.signal }).result()
      await begun
      expect(model.stats().waiting).toBe(1)
      controller.abort()
      await expect(queued).rejects.toMatchObject({ code: 'ABORTED' })
      expect(model.stats().waiting).toBe(0)
      release()
      await running
      expect(new Set(runner.seen.flatMap((step) => step.sequences.map((s) => s.slot))).size).toBe(1)
      expect(leftovers(model)).toEqual(nothing)
    })

    test('before it began', async () => {
      const { model, runner } = openFake()
      await expect(model.generate([1], { signal: AbortSignal.abort() }).result()).rejects.toMatchObject({
        code: 'ABORTED',
      })
      expect(runner.seen.length).toBe(0)
    })

    test('leaving the iteration cancels', async () => {
      const { model, runner } = openFake()
      const generation = model.generate([1, 2], { maxTokens: 200 })
      let count = 0
      for await (const _ of generation) if (++count === 3) break
      await expect(generation.result()).rejects.toMatchObject({ code: 'ABORTED' })
      await model.generate([1], { maxTokens: 1 }).result()
      expect(runner.seen.length).toBeLessThan(10)
      expect(leftovers(model)).toEqual(nothing)
    })

    test('a deadline passes while running and while queued', async () => {
      const { model, runner } = openFake({ maxSlots: 1 })
      runner.before = () => new Promise((resolve) => setTimeout(resolve, 3))
      const running = model.generate([1], { deadlineMs: 40 })
      const queued = model.generate([2], { deadlineMs: 10 })
      await expect(queued.result()).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED', details: { milliseconds: 10 } })
      await expect(running.result()).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' })
      await model.generate([3], { maxTokens: 1 }).result()
      expect(leftovers(model)).toEqual(nothing)
    })

    test('whatever is cancelled whenever, the others give the same output and nothing is left', async () => {
      const asked = mixed(24, { seed: 9 })
      const expected = await runAlone(asked)
      const plans = fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 24, maxLength: 24 })
      await fc.assert(
        fc.asyncProperty(plans, fc.integer({ min: 2, max: 8 }), async (cancelAt, maxSlots) => {
          const { model, runner } = openFake({ maxSlots, contextTokens: 100, blocks: 40, prefillChunk: 9 })
          const controllers = asked.map(() => new AbortController())
          runner.before = (index) => {
            for (const [i, at] of cancelAt.entries()) if (at === index) controllers[i]!.abort()
          }
          const settled = await Promise.allSettled(
            asked.map(({ prompt, options }, i) =>
              model.generate(prompt, { ...options, signal: controllers[i]!.signal }).result(),
            ),
          )
          for (const [i, outcome] of settled.entries()) {
            if (outcome.status === 'fulfilled') expect(answer(outcome.value)).toEqual(expected[i])
            else expect(outcome.reason).toMatchObject({ code: 'ABORTED' })
          }
          await model.generate([1], { maxTokens: 1 }).result()
          expect(leftovers(model)).toEqual(nothing)
        }),
        { numRuns: 20 },
      )
    })
  })

  describe('a failed step', () => {
    test('fails its own requests only; state is as before and the engine goes on', async () => {
      const asked = mixed(20, { seed: 3 })
      const expected = await runAlone(asked)
      const { model, runner } = openFake({ maxSlots: 4, prefillChunk: 16 })
      const failed: number[] = []
      runner.before = (index) => {
        if (index === 5) throw fail('OUT_OF_MEMORY', { thing: 'a step', needed: 2, available: 1 })
        if (index === 12) throw new Error('the device is on fire')
      }
      const settled = await Promise.allSettled(
        asked.map(({ prompt, options }) => model.generate(prompt, options).result()),
      )
      for (const [i, outcome] of settled.entries()) {
        if (outcome.status === 'fulfilled') expect(answer(outcome.value)).toEqual(expected[i])
        else {
          failed.push(i)
          expect(outcome.reason).toBeInstanceOf(DeviceError)
          expect(['OUT_OF_MEMORY', 'STEP_FAILED']).toContain(outcome.reason.code)
        }
      }
      expect(failed.length).toBeGreaterThan(1)
      expect(failed.length).toBeLessThanOrEqual(8)
      expect(model.stats().failedSteps).toBe(2)
      expect(leftovers(model)).toEqual(nothing)
      const again = await Promise.all(failed.map((i) => model.generate(asked[i]!.prompt, asked[i]!.options).result()))
      expect(again.map(answer)).toEqual(failed.map((i) => expected[i]))
    })
  })

  describe('a lost device', () => {
    const lost = { code: 'DEVICE_LOST', details: { device: 'a GPU', reason: 'cudaErrorIllegalAddress in layers.3' } }

    test('fails all that runs or waits, refuses what comes later at once, and is nobody else’s matter', async () => {
      const { model, runner } = openFake({ maxSlots: 2 })
      const { model: other } = openFake({ maxSlots: 2 })
      const story = () => other.generate([1, 2], { maxTokens: 40, seed: 1 }).result()
      const [expected, meanwhile] = [await story(), story()]
      runner.before = (index) => {
        if (index === 5) throw fail('DEVICE_LOST', lost.details)
      }
      const asked = Array.from({ length: 6 }, (_, i) => model.generate([i, 7], { maxTokens: 30 }).result())
      for (const outcome of await Promise.allSettled(asked)) {
        expect(outcome).toMatchObject({ status: 'rejected', reason: lost })
        expect((outcome as PromiseRejectedResult).reason).toBeInstanceOf(DeviceError)
      }
      expect(leftovers(model)).toEqual(nothing)
      expect(model.stats().failedSteps).toBe(1)

      const steps = runner.seen.length
      await expect(model.generate([1]).result()).rejects.toMatchObject(lost)
      await expect(model.logits([1, 2])).rejects.toMatchObject(lost)
      await expect(model.embed([[1, 2]])).rejects.toMatchObject(lost)
      expect(runner.seen.length).toBe(steps)

      expect(answer(await meanwhile)).toEqual(answer(expected))
      expect(answer(await story())).toEqual(answer(expected))
      await model.dispose()
      expect(runner.disposed).toBe(true)
      await expect(model.generate([1]).result()).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
      await other.dispose()
    })

    test('is told from a step that failed: then the engine goes on', async () => {
      const { model, runner } = openFake({ maxSlots: 1 })
      runner.before = (index) => {
        if (index === 1) throw fail('DEVICE_FAILED', { where: 'layers.0', reason: 'cudaErrorInvalidValue' })
      }
      const [first, second] = [model.generate([1], { maxTokens: 3 }), model.generate([2], { maxTokens: 3 })]
      await expect(first.result()).rejects.toMatchObject({ code: 'DEVICE_FAILED' })
      expect((await second.result()).tokens).toHaveLength(3)
      await model.dispose()
    })
  })

  describe('limits', () => {
    test('the queue refuses what is beyond slots and queueLimit', async () => {
      const { model } = openFake({ maxSlots: 2, queueLimit: 3 })
      const all = Array.from({ length: 7 }, (_, i) => model.generate([i], { maxTokens: 2 }).result())
      const settled = await Promise.allSettled(all)
      expect(settled.map((outcome) => outcome.status)).toEqual([
        ...Array(5).fill('fulfilled'),
        ...Array(2).fill('rejected'),
      ])
      await expect(all[6]).rejects.toMatchObject({ code: 'QUEUE_FULL', details: { limit: 3 } })
      await expect(all[6]).rejects.toBeInstanceOf(ConfigError)
    })

    test('a long prefill does not hold up decodes', async () => {
      const { model, runner } = openFake({ maxSlots: 2, maxTokensPerStep: 8 })
      const short = model.generate([1], { maxTokens: 30 }).result()
      const long = model
        .generate(
          Array.from({ length: 200 }, (_, i) => i % 50),
          { maxTokens: 1 },
        )
        .result()
      await Promise.all([short, long])
      const mixedSteps = runner.seen.filter((step) => step.sequences.length === 2)
      expect(mixedSteps.length).toBeGreaterThan(25)
      expect(mixedSteps.slice(1, -1).every((step) => step.tokens === 8 && step.sequences[0]!.count === 1)).toBe(true)
    })

    test('dispose fails what is pending, waits for the step and is idempotent', async () => {
      const { model, runner } = openFake({ maxSlots: 1 })
      const { begun, release } = gate(runner, 2)
      const running = model.generate([1]).result()
      const queued = model.generate([2]).result()
      await begun
      const disposal = model.dispose()
      await expect(running).rejects.toMatchObject({ code: 'DISPOSED' })
      await expect(queued).rejects.toMatchObject({ code: 'DISPOSED' })
      expect(runner.disposed).toBe(false)
      release()
      await disposal
      expect(runner.disposed).toBe(true)
      await model.dispose()
    })

    test('timers get their turn while steps follow each other without a pause', async () => {
      const { model } = openFake({ maxSlots: 16 })
      let last = performance.now()
      let worst = 0
      const timer = setInterval(() => {
        worst = Math.max(worst, performance.now() - last)
        last = performance.now()
      }, 1)
      await Promise.all(Array.from({ length: 64 }, (_, i) => model.generate([i % 50], { maxTokens: 100 }).result()))
      clearInterval(timer)
      expect(worst).toBeGreaterThan(0)
      expect(worst).toBeLessThan(200)
    })
  })
})
