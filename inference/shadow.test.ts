import fc from 'fast-check'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type ResultView, ROW_RESULT_BYTES, type StepView, stepHeader } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { capacity, type ModelOptions } from './capacity.ts'
import { leftovers, nothing, openFake } from './fixtures/model.ts'
import { type FakePlanOptions, FakeRunner, fakePlan } from './fixtures/runner.ts'
import type { Model } from './model.ts'
import type { GenerateOptions } from './sampling.ts'
import { chosen } from './shadow.ts'
import {
  assertCompares,
  assertShadow,
  type ShadowEvent,
  type ShadowOptions,
  shadowCapacity,
  shadowSchema,
} from './shadow-options.ts'

const ROW_WORDS = ROW_RESULT_BYTES / 4
const until = '2999-12-31'

/** `runner`, with `change` let loose on the results of each step. */
function altered(
  runner: Runner,
  change: (result: ResultView, step: StepView, row: number, position: number) => void,
): Runner {
  const step = async (view: StepView, result: ResultView) => {
    await runner.step(view, result)
    for (let row = 0; row < view.header[stepHeader.word.rows]!; row++)
      change(result, view, row, view.positions[view.rowToken[row]!]!)
  }
  return { info: runner.info, step, memory: () => runner.memory(), dispose: () => runner.dispose() }
}

interface Shadowed {
  readonly shadow?: Partial<ShadowOptions>
  readonly plan?: FakePlanOptions
  readonly sizes?: ModelOptions
  /** Stands before the live runner, or before the trusted one. */
  readonly live?: (runner: FakeRunner) => Runner
  readonly trusted?: (runner: FakeRunner) => Runner
}

function openShadowed({ shadow = {}, plan = {}, sizes = {}, live = (r) => r, trusted = (r) => r }: Shadowed = {}) {
  const fake = fakePlan(plan)
  const target = capacity(fake, sizes, 'fake.ingot')
  const own = shadowCapacity(fake, target, 'fake.ingot')
  const inner = new FakeRunner(fake, own)
  const events: ShadowEvent[] = []
  const options = shadowSchema.parse({
    until,
    sample: 1,
    onEvent: (event: ShadowEvent) => events.push(event),
    ...shadow,
  })!
  const liveInner = new FakeRunner(fake, target)
  const parts = {
    runner: live(liveInner),
    shadow: { runner: trusted(inner), capacity: own, options, tolerance: options.tolerance ?? 0 },
  }
  const { model } = openFake(sizes, plan, parts)
  // A step takes as long as the comparison of the one before: every second one is compared.
  liveInner.before = async () => {
    while (model.stats().shadow!.comparing) await turn()
  }
  return { model, live: liveInner, inner, events }
}

const asked = Array.from({ length: 24 }, (_, i) => ({
  prompt: Array.from({ length: 1 + ((i * 7) % 60) }, (_, j) => (i * j + 3 * j) % 50),
  options: {
    maxTokens: 1 + ((i * 5) % 20),
    seed: i,
    temperature: i % 2 ? 0 : 0.8,
    ...(i % 5 === 0 && { repetitionPenalty: 1.3, presencePenalty: 0.5 }),
    ...(i % 7 === 0 && { logitBias: { 3: 2.5 } }),
  } as GenerateOptions,
}))
const answers = async (model: Model, from = 0) =>
  Promise.all(
    asked.slice(from).map(async ({ prompt, options }) => (await model.generate(prompt, options).result()).tokens),
  )
const turn = () => new Promise((resolve) => setImmediate(resolve))
/** Resolves once nothing is being compared. */
async function settled(model: Model) {
  await turn()
  while (model.stats().shadow!.comparing) await turn()
  return model.stats().shadow!
}
const plain = async (plan: FakePlanOptions = {}) => answers(openFake({ prefixCache: false }, plan).model)

afterEach(() => void vi.useRealTimers())

describe('a shadow that agrees', () => {
  const variants: Record<string, Shadowed> = {
    'of every step': {},
    'of some steps': { shadow: { sample: 0.3, seed: 4 } },
    'in small steps and few slots': { sizes: { maxSlots: 3, maxTokensPerStep: 9, prefillChunk: 5 } },
    'with prefix hits and preemption': { sizes: { maxSlots: 6, contextTokens: 100, blocks: 40, preemptEvery: 5 } },
    'over fixed state, which it resets': { plan: { states: ['paged', 'fixed'] }, sizes: { maxSlots: 4 } },
    'beside speculation': { plan: { vocab: 50 }, sizes: { speculative: { lookup: true, tokens: 4 } } },
  }
  test.each(Object.entries(variants))('%s changes nothing, and says so', async (_, given) => {
    const { model, events } = openShadowed(given)
    expect(await answers(model)).toEqual(await plain(given.plan))
    const stats = await settled(model)
    expect(stats).toMatchObject({ divergences: 0, ties: 0, worst: 0, demoted: false })
    expect(stats.compared).toBeGreaterThan(3)
    expect(stats.rows).toBeGreaterThanOrEqual(stats.compared)
    expect(stats).not.toHaveProperty('ended')
    expect(events).toEqual([])
    expect(leftovers(model)).toEqual(nothing)
    await model.dispose()
  })

  test('beside logits() and embed()', async () => {
    const { model } = openShadowed({ sizes: { maxSlots: 4 } })
    const { model: alone } = openFake({ maxSlots: 4 })
    const ids = Array.from({ length: 90 }, (_, i) => i % 50)
    const ask = (of: Model) =>
      Promise.all([
        of.logits(ids),
        of.embed([ids, [1, 2]]),
        of
          .generate([4], { maxTokens: 9 })
          .result()
          .then(({ tokens }) => tokens),
      ])
    expect(await ask(model)).toEqual(await ask(alone))
    expect(await settled(model)).toMatchObject({ divergences: 0 })
  })

  test('chooses the same steps for the same seed, as many as asked for', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        (seed, share) => {
          const steps = Array.from({ length: 4000 }, (_, i) => i + 1)
          const first = steps.filter((step) => chosen(step, share, seed))
          expect(steps.filter((step) => chosen(step, share, seed))).toEqual(first)
          // Six standard deviations.
          expect(Math.abs(first.length / 4000 - share)).toBeLessThan(6 * Math.sqrt((share * (1 - share)) / 4000) + 1e-9)
        },
      ),
      { numRuns: 40 },
    )
  })

  test('holds up no step: what is chosen meanwhile is skipped', async () => {
    const waiting: (() => void)[] = []
    const { model, inner, live } = openShadowed()
    live.before = () => {}
    inner.before = () => new Promise((resolve) => waiting.push(resolve))
    const { tokens } = await model.generate([1, 2, 3], { maxTokens: 30, temperature: 0 }).result()
    expect(tokens.length).toBe(30)
    expect(live.seen.length).toBe(30)
    expect(inner.seen.length).toBe(1)
    expect(model.stats().shadow).toMatchObject({ compared: 0, skipped: 29 })
    const disposal = model.dispose()
    for (const release of waiting) release()
    await disposal
    expect(inner.disposed).toBe(true)
  })
})

/** The live path adds `by` to a logit of one position. */
const offByOne = (at: number, by: number) => (runner: FakeRunner) =>
  altered(runner, (result, step, row, position) => {
    if (position === at && step.header[stepHeader.word.result_logits]) result.logits[row * 50 + 7]! += by
  })

describe('a shadow that does not agree', () => {
  test('counts and tells, and new requests run on the trusted path', async () => {
    const { model, inner, live, events } = openShadowed({ live: offByOne(20, 0.25), sizes: { maxSlots: 4 } })
    const first = model.generate([1, 2, 3], { maxTokens: 40, temperature: 0 })
    const { tokens } = await first.result()
    const stats = await settled(model)
    expect(tokens.length).toBe(40)
    expect(stats).toMatchObject({ divergences: 1, demoted: true, ended: { code: 'divergences_exceeded' } })
    expect(stats.ended!.reason).toContain('position 20: logits')
    expect(events.map(({ type }) => type)).toEqual(['divergence', 'demoted'])
    expect(events[0]).toMatchObject({ position: 20, what: 'logits', allowed: 0, error: expect.closeTo(0.25 / 1.7, 1) })
    const steps = [live.seen.length, inner.seen.length]
    expect(await answers(model)).toEqual(await plain())
    expect([live.seen.length, inner.seen.length > steps[1]!]).toEqual([steps[0], true])
    expect(model.stats().trusted).toMatchObject({ running: 0, waiting: 0, blocks: { used: 0 } })
    expect(await model.embed([[1, 2]])).toEqual(await openFake().model.embed([[1, 2]]))
    await model.dispose()
    expect([inner.disposed, live.disposed]).toEqual([true, true])
  })

  test('what is under way when it is demoted ends where it began', async () => {
    const { model, live } = openShadowed({ live: offByOne(10, 9) })
    const long = model.generate([1], { maxTokens: 200, temperature: 0 }).result()
    while (!model.stats().shadow!.demoted) await turn()
    const next = model.generate([1, 2], { maxTokens: 60, temperature: 0 }).result()
    const [a, b] = await Promise.all([long, next])
    expect([a.tokens.length, b.tokens.length]).toEqual([200, 60])
    expect(live.seen.every(({ sequences }) => sequences.length === 1)).toBe(true)
    await model.dispose()
  })

  test.each([
    ['two of them pass', { maxDivergences: 2 }, 2, false],
    ['a third does not', { maxDivergences: 2 }, 3, true],
    ['any number, by policy', { demote: 'never' }, 9, false],
  ] as const)('%s', async (_, shadow, count, demoted) => {
    let left = count as number
    const live = (runner: FakeRunner) =>
      altered(runner, (result, step, row) => {
        if (step.header[stepHeader.word.result_logits] && left-- > 0) result.logits[row * 50]! += 1
      })
    const { model, events } = openShadowed({ shadow, live })
    await model.generate([1, 2], { maxTokens: 80, temperature: 0 }).result()
    expect(await settled(model)).toMatchObject({ divergences: count, demoted })
    expect(events.filter(({ type }) => type === 'divergence').length).toBe(count)
    await model.dispose()
  })

  test('refuses new requests where it is told to', async () => {
    const { model } = openShadowed({ shadow: { demote: 'refuse' }, live: offByOne(6, 1) })
    await model.generate([1, 2, 3], { maxTokens: 20 }).result()
    await settled(model)
    const refusal = { code: 'SHADOW_DEMOTED', details: { code: 'divergences_exceeded' } }
    await expect(model.generate([1]).result()).rejects.toMatchObject(refusal)
    await expect(model.embed([[1]])).rejects.toMatchObject(refusal)
    await expect(model.logits([1])).rejects.toMatchObject(refusal)
    expect(leftovers(model)).toEqual(nothing)
    await model.dispose()
  })

  test('a sampler that errs on equal logits is found by its tokens', async () => {
    const wrong = (runner: FakeRunner) =>
      altered(runner, (result, _, row, position) => {
        if (position === 10) result.rows[row * ROW_WORDS] = (result.rows[row * ROW_WORDS]! + 1) % 50
      })
    const { model, events } = openShadowed({ live: wrong, shadow: { tolerance: 0.1 } })
    await model.generate([1, 2, 3], { maxTokens: 20, temperature: 1, seed: 3 }).result()
    await settled(model)
    expect(events[0]).toMatchObject({ type: 'divergence', what: 'token', position: 10, error: 0 })
    await model.dispose()
  })

  test('a greedy token that the error of its logits does not explain is a divergence, one that it does a tie', async () => {
    /** Errors of at most 0.05; the token is that of logits with these, or simply another. */
    const rounded = (choose: (logits: number[]) => number) => (runner: FakeRunner) =>
      altered(runner, (result, step, row) => {
        if (!step.header[stepHeader.word.result_logits]) return
        const logits = result.logits.subarray(row * 50, (row + 1) * 50)
        for (let i = 0; i < 50; i++) logits[i]! += 0.05 * (i % 2)
        result.rows[row * ROW_WORDS] = choose([...logits])
      })
    const best = (logits: number[]) => logits.indexOf(Math.max(...logits))
    const ask = async (choose: (logits: number[]) => number) => {
      const { model } = openShadowed({ live: rounded(choose), shadow: { tolerance: 0.1, demote: 'never' } })
      const ask = (first: number) => model.generate([first], { maxTokens: 24, temperature: 0 }).result()
      await Promise.all(Array.from({ length: 12 }, (_, i) => ask(i)))
      const stats = await settled(model)
      await model.dispose()
      return stats
    }
    expect(await ask(best)).toMatchObject({ divergences: 0, ties: expect.toSatisfy((ties) => ties > 0) })
    expect((await ask((logits) => logits.indexOf(Math.min(...logits)))).divergences).toBeGreaterThan(10)
  })

  test('NaN in the live path is a divergence whatever the tolerance', async () => {
    const { model } = openShadowed({ live: offByOne(4, Number.NaN), shadow: { tolerance: 1e9 } })
    await model.generate([1, 2, 3], { maxTokens: 9 }).result()
    expect(await settled(model)).toMatchObject({ divergences: 1, demoted: true, worst: Number.NaN })
    await model.dispose()
  })

  test.each(['a block', 'a slot'])('stale state of the live path shows: %s', async (what) => {
    const stale = (runner: FakeRunner): Runner => ({
      ...altered(runner, () => {}),
      step: (step, result) => {
        if (what === 'a slot') step.header[stepHeader.word.resets] = 0
        else if (step.header[stepHeader.word.copies]) step.header[stepHeader.word.copies] = 0
        return runner.step(step, result)
      },
    })
    const plan: FakePlanOptions = what === 'a slot' ? { states: ['paged', 'fixed'] } : {}
    const { model } = openShadowed({ live: stale, plan, sizes: { maxSlots: 1, contextTokens: 64 } })
    const prompt = Array.from({ length: 16 }, (_, i) => i)
    for (let i = 0; i < 3; i++) {
      await model.generate(prompt, { maxTokens: 4, temperature: 0 }).result()
      await settled(model)
    }
    expect(model.stats().shadow!.demoted).toBe(true)
    await model.dispose()
  })
})

describe('a shadow ends', () => {
  test('when its own step fails: the live path goes on, and nobody is demoted', async () => {
    const { model, inner, events } = openShadowed()
    inner.before = (index) => {
      if (index === 2) throw new Error('the shadow is on fire')
    }
    expect(await answers(model)).toEqual(await plain())
    const { demoted, ended } = await settled(model)
    expect([demoted, ended]).toEqual([false, { code: 'shadow_failed', reason: 'the shadow is on fire' }])
    expect(events).toEqual([{ type: 'stopped', code: 'shadow_failed', reason: 'the shadow is on fire' }])
    await model.dispose()
  })

  test('when its date passes while it runs', async () => {
    vi.useFakeTimers({ toFake: ['Date'], now: Date.parse('2026-06-30T23:00:00Z') })
    const { model, events } = openShadowed({ shadow: { until: '2026-06-30' } })
    await model.generate([1], { maxTokens: 5 }).result()
    expect((await settled(model)).compared).toBeGreaterThan(0)
    vi.setSystemTime(Date.parse('2026-07-01T00:00:01Z'))
    await model.generate([1], { maxTokens: 5 }).result()
    expect(await settled(model)).toMatchObject({ demoted: false, ended: { code: 'expired' } })
    expect(events.map(({ type }) => type)).toEqual(['stopped'])
    await model.dispose()
  })

  test('with a warning of the process where nobody listens, and in spite of a listener that throws', async () => {
    const emit = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    for (const onEvent of [
      undefined,
      () => {
        throw new Error('deaf')
      },
    ]) {
      const { model } = openShadowed({ live: offByOne(5, 1), shadow: { onEvent } })
      await model.generate([1, 2], { maxTokens: 9 }).result()
      expect((await settled(model)).demoted).toBe(true)
      await model.dispose()
    }
    const codes = emit.mock.calls.map(([, options]) => (options as { code: string }).code)
    expect(codes).toEqual(['divergences_exceeded', 'SHADOW_CALLBACK', 'SHADOW_CALLBACK'])
    emit.mockRestore()
  })
})

describe('refused', () => {
  const parse = (options: object) => shadowSchema.safeParse({ until, ...options }).success
  test.each([
    [{ until: undefined }],
    [{ until: 'next year' }],
    [{ until: '2026-02-30' }],
    [{ sample: 0 }],
    [{ sample: 1.1 }],
    [{ tolerance: -1 }],
    [{ maxDivergences: 0.5 }],
    [{ demote: 'maybe' }],
    [{ onEvent: 'log' }],
    [{ smaple: 0.1 }],
  ])('%j', (options) => {
    expect(parse({})).toBe(true)
    expect(parse(options)).toBe(false)
  })

  test('a date that has passed; its last day counts', () => {
    const options = shadowSchema.parse({ until: '2027-03-01' })!
    vi.useFakeTimers({ toFake: ['Date'], now: Date.parse('2027-03-01T23:59:59Z') })
    expect(() => assertShadow(options, fakePlan(), 'p')).not.toThrow()
    vi.setSystemTime(Date.parse('2027-03-02T00:00:00Z'))
    expect(() => assertShadow(options, fakePlan(), 'p')).toThrow(
      expect.objectContaining({ code: 'SHADOW_EXPIRED', details: { package: 'p', until: '2027-03-01' } }),
    )
  })

  test('a model without logits, a shorter context, a backend that would hold the event loop or is not deterministic', () => {
    const refusal = expect.objectContaining({ code: 'OPTION_INVALID', message: expect.stringMatching('^shadow: ') })
    const options = shadowSchema.parse({ until })!
    expect(() => assertShadow(options, fakePlan({ outputs: ['hidden'] }), 'p')).toThrow(refusal)
    const target = capacity(fakePlan(), {}, 'p')
    expect(() => shadowCapacity(fakePlan({ maxContext: 64 }), target, 'p')).toThrow(refusal)
    const runner = (onEventLoop: boolean) =>
      ({ info: { backend: 'slow', ...(onEventLoop && { onEventLoop }) } }) as unknown as Runner
    const plan = (rows: number) => ({ ...fakePlan(), tensors: [{ rows, cols: 1024 }] }) as never
    expect(() => assertCompares(runner(false), plan(1), true)).toThrow(refusal)
    expect(() => assertCompares(runner(true), plan(4096))).toThrow(refusal)
    expect(() => [assertCompares(runner(false), plan(4096)), assertCompares(runner(true), plan(2048))]).not.toThrow()
  })
})
