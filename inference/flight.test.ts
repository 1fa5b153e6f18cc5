/** Steps that depart before the tokens of the last are read: the same output, and nobody notices but the clock. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { resultHeader } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { recordSteps } from '../compute/recorder.ts'
import { fail } from '../errors.ts'
import type { ModelOptions } from './capacity.ts'
import { leftovers, nothing, openFake } from './fixtures/model.ts'
import { type Asked, capacities, mixed } from './fixtures/requests.ts'
import type { FakePlanOptions } from './fixtures/runner.ts'
import type { Model } from './model.ts'
import type { GenerateOptions } from './sampling.ts'
import type { GenerationResult } from './stream.ts'

const answer = ({ tokens, logprobs, finishReason, stopReason }: GenerationResult) => ({
  tokens,
  logprobs,
  finishReason,
  stopReason,
})

async function alone(asked: readonly Asked[], plan: FakePlanOptions = {}) {
  const { model } = openFake({ prefixCache: false, maxSlots: 1 }, plan)
  const answers = []
  for (const { prompt, options } of asked) answers.push(answer(await model.generate(prompt, options).result()))
  return answers
}

const two = (options: ModelOptions = {}, plan: FakePlanOptions = {}) => openFake(options, { depth: 2, ...plan })
const turn = () => new Promise<void>((resolve) => setImmediate(resolve))

const asked = mixed(32, { penalised: 16 })

describe('whatever a step meets while another is in flight', () => {
  const plans: FakePlanOptions[] = [{}, { states: ['paged', 'fixed'] }]
  const limits = fc.record({
    ...capacities,
    prefillChunk: fc.integer({ min: 1, max: 70 }),
    preemptEvery: fc.integer({ min: 2, max: 40 }),
  })
  /** By step: what happens while it runs. */
  const events = fc.array(
    fc.oneof(
      { weight: 6, arbitrary: fc.constant({ kind: 'none' } as const) },
      {
        weight: 3,
        arbitrary: fc.record({ kind: fc.constant('wait' as const), turns: fc.integer({ min: 1, max: 4 }) }),
      },
      {
        weight: 2,
        arbitrary: fc.record({ kind: fc.constant('cancel' as const), request: fc.integer({ min: 0, max: 31 }) }),
      },
      { weight: 1, arbitrary: fc.constant({ kind: 'fail' } as const) },
    ),
    { minLength: 20, maxLength: 60 },
  )

  test.each(plans)('each request gives its output, or the error that is its own: %o', async (plan) => {
    const expected = await alone(asked, plan)
    let ahead = 0
    await fc.assert(
      fc.asyncProperty(limits, events, async (options, events) => {
        const { prefixCache, ...rest } = options
        const cached = plan.states ? {} : { prefixCache }
        const { model, runner } = two({ contextTokens: 100, ...rest, ...cached }, plan)
        const controllers = asked.map(() => new AbortController())
        let mayFail = 0
        runner.before = async (index) => {
          const event = events[index]
          if (event?.kind === 'wait') for (let i = 0; i < event.turns; i++) await turn()
          if (event?.kind === 'cancel') controllers[event.request]!.abort()
          if (event?.kind !== 'fail') return
          mayFail += runner.seen[index]!.sequences.length
          throw fail('OUT_OF_MEMORY', { thing: 'a step', needed: 2, available: 1 })
        }
        const run = async ({ prompt, options }: Asked, i: number) => {
          for (let turns = 0; turns < i % 8; turns++) await turn()
          return model.generate(prompt, { ...options, signal: controllers[i]!.signal }).result()
        }
        const settled = await Promise.allSettled(asked.map(run))
        let failed = 0
        for (const [i, outcome] of settled.entries()) {
          if (outcome.status === 'fulfilled') expect(answer(outcome.value)).toEqual(expected[i])
          else if (outcome.reason.code === 'OUT_OF_MEMORY') failed++
          else expect(outcome.reason).toMatchObject({ code: 'ABORTED' })
        }
        expect(failed).toBeLessThanOrEqual(mayFail)
        expect(leftovers(model)).toEqual(nothing)
        const again = await Promise.all(asked.slice(0, 4).map((each, i) => run(each, i).catch(() => undefined)))
        for (const [i, result] of again.entries()) if (result) expect(answer(result)).toEqual(expected[i])
        ahead += model.stats().stepsAhead
        await model.dispose()
      }),
      { numRuns: 40 },
    )
    expect(ahead).toBeGreaterThan(400)
  })
})

describe('a step departs ahead', () => {
  test('of rows that sample nothing, in the middle of a prompt too', async () => {
    const prompt = Array.from({ length: 40 }, (_, i) => 1 + (i % 9))
    const outputs = []
    for (const depth of [1, 2] as const) {
      const { model } = openFake({ maxSlots: 4, maxRows: 4, prefillChunk: 7, prefixCache: false }, { depth })
      const beside = model.generate([1, 2, 3], { maxTokens: 30 }).result()
      const [logits, embedded] = await Promise.all([model.logits(prompt), model.embed([prompt])])
      outputs.push({ logits, embedded, beside: answer(await beside) })
      if (depth === 2) expect(model.stats().stepsAhead).toBeGreaterThan(9)
    }
    expect(outputs[1]).toEqual(outputs[0])
  })

  test('while the one before it runs, and its tokens stand for themselves', async () => {
    const { model, runner } = two()
    const seen: (readonly number[])[] = []
    runner.before = () => void seen.push([model.stats().steps, model.stats().stepsAhead])
    await model.generate([1, 2, 3], { maxTokens: 5 }).result()
    // Each begins before the one before it is committed.
    expect(seen).toEqual([0, 1, 2, 3, 4].map((i) => [Math.max(0, i - 1), Math.max(1, i)]))
    expect(runner.seen.map(({ tokens }) => tokens)).toEqual([3, 1, 1, 1, 1])
  })

  test('and wastes nothing where the end is known', async () => {
    const asked = mixed(24, { seed: 5 }).map(({ prompt, options: { maxTokens } }) => ({
      prompt,
      options: { maxTokens },
    }))
    const stats = []
    for (const depth of [1, 2] as const) {
      const { model } = openFake({ maxSlots: 24, prefixCache: false }, { depth })
      await Promise.all(asked.map(({ prompt, options }) => model.generate(prompt, options).result()))
      stats.push(model.stats())
    }
    const [plain, ahead] = stats
    expect(ahead).toMatchObject({ steps: plain!.steps, tokens: plain!.tokens, discardedTokens: 0 })
    expect([plain!.stepsAhead, ahead!.stepsAhead]).toEqual([0, ahead!.steps - 1])
  })

  test('and wastes one token where a stop token ends a request', async () => {
    const { model } = two({ maxSlots: 4 })
    const { tokens } = (await alone([{ prompt: [9, 8], options: { maxTokens: 9, temperature: 0 } }]))[0]!
    const at = tokens.findIndex((token, i) => i > 1 && tokens.indexOf(token) === i)
    const ask = (maxTokens: number) =>
      model.generate([9, 8], { maxTokens, temperature: 0, stopTokens: [tokens[at]!] }).result()
    const ended = await ask(50)
    expect([ended.tokens, ended.finishReason]).toEqual([tokens.slice(0, at + 1), 'stop'])
    await turn()
    expect(model.stats()).toMatchObject({ discardedTokens: 1, sampledTokens: at + 1 })
    await ask(at + 1)
    expect(model.stats()).toMatchObject({ discardedTokens: 1, sampledTokens: 2 * (at + 1) })
    expect(leftovers(model)).toEqual(nothing)
  })

  test('and the time between steps counts where there was one to take', async () => {
    const { runner: inner, model: idle } = two()
    const step: Runner['step'] = async (view, result) => {
      await inner.step(view, result)
      result.header[resultHeader.word.idle_microseconds] = 100
    }
    const runner = { info: inner.info, depth: 2, step, memory: () => inner.memory(), dispose: () => {} } as const
    const { model } = openFake({}, {}, { runner })
    for (const _ of [1, 2]) await model.generate([1, 2, 3], { maxTokens: 5 }).result()
    expect(model.stats()).toMatchObject({ steps: 10, idleMicrosecondsPerStep: 80 })
    await idle.dispose()
  })

  test('and waits where a request is preempted', async () => {
    const { model } = two({ preemptEvery: 4, maxSlots: 4 })
    const plain = asked.filter(({ options: { repetitionPenalty } }) => repetitionPenalty === undefined)
    const results = await Promise.all(plain.map(({ prompt, options }) => model.generate(prompt, options).result()))
    expect(results.map(answer)).toEqual(await alone(plain))
    const { preemptions, stepsAhead } = model.stats()
    expect([preemptions > 10, stepsAhead > 30]).toEqual([true, true])
  })

  test('but not where the host needs its tokens first', async () => {
    const penalised = two()
    const ask = (options: GenerateOptions) => penalised.model.generate([1, 2], { maxTokens: 10, ...options }).result()
    await ask({ presencePenalty: 0.5 })
    expect(penalised.model.stats().stepsAhead).toBe(0)
    await Promise.all([ask({ presencePenalty: 0.5 }), ask({ maxTokens: 30 })])
    expect(penalised.model.stats().stepsAhead).toBe(19)
    const guessing = two({ speculative: { lookup: true } })
    await guessing.model.generate([1, 2], { maxTokens: 10 }).result()
    expect(guessing.model.stats().stepsAhead).toBe(0)
    const recorded = { plan: guessing.model.plan, planHash: '', weightsHash: '' }
    expect(guessing.runner.depth).toBe(2)
    expect((await recordSteps(guessing.runner, recorded, { directory: '.', keep: 1 })).depth).toBe(1)
  })
})

describe('a step that fails with another behind it', () => {
  const prompt = Array.from({ length: 16 }, (_, i) => i)

  /**
   * One request decodes. While step 4 runs a second arrives, all of whose blocks are cached: it is in the step behind step
   * 5, which fails once `behind` has seen the two of them.
   */
  async function scene(plan: FakePlanOptions, behind: (model: Model, cancel: () => void) => void) {
    const { model, runner } = two({ maxSlots: 4, contextTokens: 64 }, plan)
    const first = await model.generate(prompt, { maxTokens: 6 }).result()
    const from = runner.seen.length
    let second: Promise<GenerationResult> = Promise.reject(new Error('it never came'))
    second.catch(() => {})
    const controller = new AbortController()
    runner.before = async (index) => {
      if (index === from + 4) {
        await turn() // step 5 has departed
        second = model.generate(prompt, { maxTokens: 6, signal: controller.signal }).result()
        second.catch(() => {})
        await turn()
      }
      if (index !== from + 5) return
      await turn()
      behind(model, () => controller.abort())
      throw fail('OUT_OF_MEMORY', { thing: 'a step', needed: 2, available: 1 })
    }
    const running = model.generate([30, 31], { maxTokens: 20 }).result()
    await expect(running).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
    const [outcome] = await Promise.allSettled([second])
    expect(model.stats().failedSteps).toBe(1)
    expect(leftovers(model)).toEqual(nothing)
    return { first, outcome, steps: runner.seen.slice(from) }
  }

  test.each([{}, { states: ['paged', 'fixed'] }] as FakePlanOptions[])(
    'fails its own; who is in the other only is computed again: %o',
    async (plan) => {
      let running = 0
      const { first, outcome, steps } = await scene(plan, (model) => (running = model.stats().running))
      expect(running).toBe(2)
      expect(outcome).toMatchObject({ status: 'fulfilled', value: { tokens: first.tokens } })
      expect(steps.every(({ sequences }) => sequences.length === 1)).toBe(true)
      expect(steps.map(({ copies }) => copies)).toEqual(steps.map((_, i) => (i === 6 && !plan.states ? 1 : 0)))
    },
  )

  test('leaves nothing of who is cancelled meanwhile', async () => {
    const { outcome } = await scene({}, (_, cancel) => cancel())
    expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ABORTED' } })
  })

  test("a second failure is nobody else's either", async () => {
    const expected = await alone(asked)
    const { model, runner } = two({ maxSlots: 4, prefillChunk: 16 })
    runner.before = (index) => {
      if ([5, 6, 12].includes(index)) throw new Error('the device is on fire')
    }
    const settled = await Promise.allSettled(
      asked.map(({ prompt, options }) => model.generate(prompt, options).result()),
    )
    const failed = settled.filter(({ status }) => status === 'rejected')
    expect(failed.length).toBeGreaterThan(2)
    expect(failed.length).toBeLessThanOrEqual(12)
    expect(model.stats().failedSteps).toBe(3)
    for (const [i, outcome] of settled.entries())
      if (outcome.status === 'fulfilled') expect(answer(outcome.value)).toEqual(expected[i])
    expect(leftovers(model)).toEqual(nothing)
  })
})
