import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type ResultView, ROW_RESULT_BYTES, type StepView, stepHeader } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { capacity, draftCapacity, type ModelOptions } from './capacity.ts'
import { leftovers, nothing, openFake } from './fixtures/model.ts'
import { type Asked, capacities, mixed } from './fixtures/requests.ts'
import { type FakePlanOptions, FakeRunner, fakePlan } from './fixtures/runner.ts'
import type { Work } from './request.ts'
import type { GenerateOptions } from './sampling.ts'
import { Guesses, guessCost, nextLength } from './speculate.ts'
import type { GenerationResult } from './stream.ts'

const ROW_WORDS = ROW_RESULT_BYTES / 4
/** Few tokens, so that lookups are right now and then. */
const small: FakePlanOptions = { vocab: 5 }

/** `runner`, but `change` edits what each row of a step sampled; it gets the position of the row's token. */
function altered(
  runner: FakeRunner,
  change: (token: number, position: number, row: number, step: StepView) => number,
): Runner {
  const step = async (view: StepView, result: ResultView) => {
    await runner.step(view, result)
    for (let row = 0; row < view.header[stepHeader.word.rows]!; row++) {
      const position = view.positions[view.rowToken[row]!]!
      result.rows[row * ROW_WORDS] = change(result.rows[row * ROW_WORDS]!, position, row, view)
    }
  }
  return { info: runner.info, step, memory: () => runner.memory(), dispose: () => runner.dispose() }
}

/** Right at two positions of three. */
const mostlyRight = (vocab: number) => (token: number, position: number) =>
  position % 3 === 1 ? (token + 1) % vocab : token

function openDrafted(options: ModelOptions, plan: FakePlanOptions = small, right = mostlyRight(plan.vocab ?? 50)) {
  const drafted = { ...options, speculative: { draft: 'draft.ingot', tokens: 4, cost: 0, ...options.speculative } }
  const target = capacity(fakePlan(plan), drafted, 'fake.ingot')
  const draftPlan = fakePlan(plan)
  const sizes = draftCapacity(draftPlan, target, 'draft.ingot')
  const inner = new FakeRunner(draftPlan, sizes)
  const draft = { runner: altered(inner, right), plan: draftPlan, capacity: sizes }
  return { ...openFake(drafted, plan, { draft }), inner }
}

const openLookup = (options: ModelOptions, plan: FakePlanOptions = small) => ({
  ...openFake({ ...options, speculative: { lookup: true, tokens: 4, cost: 0, ...options.speculative } }, plan),
  inner: undefined,
})
const ways = { draft: openDrafted, lookup: openLookup }

const answer = ({ tokens, logprobs, finishReason, stopReason }: GenerationResult) => ({
  tokens,
  logprobs,
  finishReason,
  stopReason,
})
type Opened = Pick<ReturnType<typeof openFake>, 'model'>

async function runAll({ model }: Opened, asked: Asked[], opt: (i: number) => GenerateOptions = () => ({})) {
  const results = await Promise.all(
    asked.map(({ prompt, options }, i) => model.generate(prompt, { ...options, ...opt(i) }).result()),
  )
  const stats = model.stats()
  expect(leftovers(model)).toEqual(nothing)
  await model.dispose()
  return { answers: results.map(answer), results, stats }
}

const asked = mixed(48, { vocab: 5, most: 40 })
let alone: object[] | undefined
/** Each request without speculation, alone. */
async function expected(): Promise<object[]> {
  if (alone) return alone
  alone = []
  for (const one of asked) alone.push(...(await runAll(openFake({ prefixCache: false }, small), [one])).answers)
  return alone
}

describe.each(['draft', 'lookup'] as const)('with %s, a request gives the output of plain decoding', (way) => {
  const open = ways[way]
  const tight = { maxSlots: 6, contextTokens: 100 }
  const variants: Record<string, ModelOptions> = {
    batched: { maxSlots: 48 },
    'in few slots': { maxSlots: 3 },
    'under a tight budget of tokens': { maxSlots: 8, maxTokensPerStep: 11 },
    'under a tight budget of rows': { maxSlots: 8, maxRows: 9 },
    'in chunks': { maxSlots: 5, prefillChunk: 7 },
    'one guess at a time': { maxSlots: 5, speculative: { tokens: 1 } },
    'many guesses at a time': { maxSlots: 5, speculative: { tokens: 13 } },
    'without prefix cache': { prefixCache: false },
    'when forced to be preempted': { maxSlots: 5, preemptEvery: 3 },
    'when blocks run out': { ...tight, blocks: 28 },
    'when blocks run out, without prefix cache': { ...tight, blocks: 27, prefixCache: false },
  }

  test.each(Object.entries(variants))('%s', async (_, options) => {
    const { answers, stats, results } = await runAll(open(options), asked)
    expect(answers).toEqual(await expected())
    const { proposed, accepted, acceptance } = stats.speculation!
    expect(accepted).toBeGreaterThan(10)
    expect(proposed - accepted).toBeGreaterThan(10)
    expect(acceptance).toBe(accepted / proposed)
    const sum = (of: 'proposedTokens' | 'acceptedTokens') => results.reduce((n, { usage }) => n + usage[of]!, 0)
    expect([sum('proposedTokens'), sum('acceptedTokens')]).toEqual([proposed, accepted])
    if (options.preemptEvery || options.blocks) expect(stats.preemptions).toBeGreaterThan(3)
  })

  test('beside requests that opt out, which guess nothing', async () => {
    const { answers, results } = await runAll(open({ maxSlots: 6 }), asked, (i) => ({ speculative: i % 2 === 0 }))
    expect(answers).toEqual(await expected())
    expect(results.some(({ usage }) => usage.acceptedTokens! > 0)).toBe(true)
    for (const { usage } of results.filter((_, i) => i % 2)) expect(usage).not.toHaveProperty('proposedTokens')
  })

  test('under random capacities, whatever else is cancelled', async () => {
    const limits = fc.record({
      ...capacities,
      preemptEvery: fc.integer({ min: 2, max: 9 }),
      speculative: fc.record({ tokens: fc.integer({ min: 1, max: 9 }) }),
    })
    const cancels = fc.array(fc.integer({ min: 0, max: 60 }), { minLength: 16, maxLength: 16 })
    await fc.assert(
      fc.asyncProperty(limits, cancels, fc.integer({ min: 0, max: 32 }), async (options, cancelAt, from) => {
        const { model, runner } = open({ contextTokens: 100, ...options })
        const controllers = cancelAt.map(() => new AbortController())
        runner.before = (index) => {
          for (const [i, at] of cancelAt.entries()) if (at === index) controllers[i]!.abort()
        }
        const settled = await Promise.allSettled(
          asked.slice(from, from + 16).map(({ prompt, options }, i) => {
            const { signal } = controllers[i]!
            return model.generate(prompt, { ...options, signal }).result()
          }),
        )
        for (const [i, outcome] of settled.entries()) {
          if (outcome.status === 'fulfilled') expect(answer(outcome.value)).toEqual((await expected())[from + i])
          else expect(outcome.reason).toMatchObject({ code: 'ABORTED' })
        }
        await model.generate([1], { maxTokens: 1 }).result()
        expect(leftovers(model)).toEqual(nothing)
      }),
      { numRuns: 25 },
    )
  })

  test('takes fewer steps, and never more tokens than were asked for', async () => {
    const prompt = [1, 2, 3]
    const options = { maxTokens: 60, temperature: 0, ignoreEos: true }
    const plain = await runAll(openFake({}, small), [{ prompt, options }])
    const { stats, results } = await runAll(open({}), [{ prompt, options }])
    expect(stats.steps).toBeLessThan(plain.stats.steps)
    expect(stats.sampledTokens).toBe(60)
    expect(stats.steps).toBe(60 - results[0]!.usage.acceptedTokens!)
  })

  test('logits and embeddings run beside it as ever', async () => {
    const { model } = open({ maxSlots: 4 })
    const { model: plain } = openFake({ maxSlots: 4 }, small)
    const busy = model.generate([1, 2], { maxTokens: 50, temperature: 0 }).result()
    const prompt = [1, 2, 3, 1, 2, 3, 4]
    expect(await Promise.all([model.logits(prompt), model.embed([prompt])])).toEqual(
      await Promise.all([plain.logits(prompt), plain.embed([prompt])]),
    )
    await busy
    expect(leftovers(model)).toEqual(nothing)
  })

  test('a prefix that was generated with guesses is found again, and is right', async () => {
    const { model } = open({ maxSlots: 2 })
    const ask = (ids: number[], count: number) =>
      model.generate(ids, { maxTokens: count, temperature: 0.9, seed: 4 }).result()
    const first = await ask([1, 2, 3, 4], 40)
    const next = [1, 2, 3, 4, ...first.tokens]
    const again = await ask(next, 12)
    expect(again.usage.cachedTokens).toBeGreaterThan(35)
    const { answers } = await runAll(openFake({ prefixCache: false }, small), [
      { prompt: next, options: { maxTokens: 12, temperature: 0.9, seed: 4 } },
    ])
    expect(again.tokens).toEqual(answers[0]!.tokens)
  })

  test('control: a step that accepts every guess is found out', async () => {
    const options = { maxSlots: 6, speculative: way === 'draft' ? { draft: 'd', tokens: 4 } : { lookup: true } }
    const sizes = capacity(fakePlan(small), options, 'fake.ingot')
    const gullible = altered(new FakeRunner(fakePlan(small), sizes), (token, _, row, step) => {
      const at = step.rowToken[row]!
      const guessed =
        at + 1 < step.header[stepHeader.word.tokens]! && step.tokenSequence[at + 1] === step.tokenSequence[at]
      return guessed ? step.tokenIds[at + 1]! : token
    })
    const drafts = draftCapacity(fakePlan(small), sizes, 'draft.ingot')
    const draft = {
      runner: altered(new FakeRunner(fakePlan(small), drafts), mostlyRight(5)),
      plan: fakePlan(small),
      capacity: drafts,
    }
    const opened = openFake(options, small, { runner: gullible, ...(way === 'draft' && { draft }) })
    const { answers, stats } = await runAll(opened, asked)
    expect(stats.speculation!.acceptance).toBe(1)
    expect(answers).not.toEqual(await expected())
  })
})

describe('the draft', () => {
  test('that is always right makes every step worth its guesses and one more', async () => {
    const { model, inner } = openDrafted({}, small, (token) => token)
    const { usage } = await model.generate([1, 2, 3], { maxTokens: 51, seed: 3, temperature: 1 }).result()
    expect(usage).toMatchObject({ proposedTokens: 40, acceptedTokens: 40 })
    const { steps, speculation } = model.stats()
    expect([steps, speculation!.draftSteps]).toEqual([11, inner!.seen.length])
    await model.dispose()
    expect(inner!.disposed).toBe(true)
  })

  test('guesses for all sequences in the same steps', async () => {
    const { model, inner } = openDrafted({ maxSlots: 8 })
    await Promise.all(Array.from({ length: 8 }, (_, i) => model.generate([i % 5], { maxTokens: 20 }).result()))
    expect(inner!.seen.some((step) => step.sequences.length === 8)).toBe(true)
  })

  test('catches up with a long prompt by its budget while others go on', async () => {
    const { model, inner } = openDrafted({ maxSlots: 2, maxTokensPerStep: 16, maxRows: 10 })
    const long = Array.from({ length: 150 }, (_, i) => (i * i) % 5)
    const results = await Promise.all([
      model.generate([1, 2], { maxTokens: 60, temperature: 0 }).result(),
      model.generate(long, { maxTokens: 40, temperature: 0 }).result(),
    ])
    for (const { usage } of results) expect(usage.acceptedTokens).toBeGreaterThan(0)
    expect(Math.max(...inner!.seen.map((step) => step.tokens))).toBeLessThanOrEqual(16)
  })

  test('whose step fails, fails the requests that it guessed for, and then is right again', async () => {
    const { model, inner } = openDrafted({ maxSlots: 4 }, small, (token) => token)
    inner!.before = (index) => {
      if (index === 3) throw new Error('the draft is on fire')
    }
    const failed = model.generate([1, 2], { maxTokens: 30, temperature: 0 }).result()
    await expect(failed).rejects.toMatchObject({ code: 'STEP_FAILED' })
    expect(leftovers(model)).toEqual(nothing)
    const { usage } = await model.generate([1, 2], { maxTokens: 30, temperature: 0 }).result()
    expect(usage.acceptedTokens).toBe(usage.proposedTokens)
  })
})

describe('refused', () => {
  test.each([
    [{ draft: 'a', lookup: true }],
    [{}],
    [{ lookup: false }],
    [{ lookup: true, tokens: 0 }],
    [{ lookup: true, tokens: 65 }],
    [{ lookup: true, length: 3 }],
  ])('%j', (speculative) => {
    expect(() => capacity(fakePlan(), { speculative }, 'p')).toThrow(
      expect.objectContaining({ code: 'OPTION_INVALID' }),
    )
  })

  test('a state that cannot be rewound, of the model or of its draft', () => {
    const refusal = expect.objectContaining({
      code: 'OPTION_INVALID',
      message: expect.stringContaining('state fixed.1, which takes back 0'),
    })
    const plan = fakePlan({ states: ['paged', 'fixed'] })
    expect(() => capacity(plan, { speculative: { lookup: true } }, 'p')).toThrow(refusal)
    const target = capacity(fakePlan(), { speculative: { draft: 'd' } }, 'p')
    expect(() => draftCapacity(plan, target, 'd')).toThrow(refusal)
  })

  test('a draft with a shorter context', () => {
    const target = capacity(fakePlan(), { speculative: { draft: 'd' } }, 'p')
    expect(() => draftCapacity(fakePlan({ maxContext: 64 }), target, 'd')).toThrow(/a context of 256.*got 64/)
  })

  test('a request that asks for it where the model was not opened for it', async () => {
    const { model } = openFake()
    await expect(model.generate([1], { speculative: true }).result()).rejects.toMatchObject({ code: 'OPTION_INVALID' })
    const { usage } = await model.generate([1], { speculative: false, maxTokens: 2 }).result()
    expect(usage).not.toHaveProperty('proposedTokens')
    expect(model.stats()).not.toHaveProperty('speculation')
  })
})

test('the next length is within bounds, grows by one and falls to what was right', () => {
  const most = fc.integer({ min: 1, max: 64 })
  fc.assert(
    fc.property(most, fc.nat(), fc.nat(), fc.nat(), (most, a, b, c) => {
      const length = 1 + (a % most)
      const proposed = b % (length + 1)
      const accepted = c % (proposed + 1)
      const next = nextLength(length, proposed, accepted, most)
      expect(next).toBeGreaterThanOrEqual(1)
      expect(next).toBeLessThanOrEqual(Math.min(most, length + 1))
      if (proposed > accepted) expect(next).toBe(accepted + 1)
    }),
  )
})

describe('guesses that cost more than they give', () => {
  /** Decodes `tokens`, each guess right where `right` says so; returns plain steps that were saved, and what was spent. */
  function decode(cost: number, tokens: number, right: (position: number) => boolean, most = 4) {
    const guesses = new Guesses({ by: 'draft', tokens: most, cost })
    const work = { prompt: new Int32Array(1), maxTokens: tokens + most + 2 } as Work
    let [known, steps] = [1, 0]
    const asked: number[] = []
    while (known < tokens) {
      const proposed = guesses.wanted({ work, known })
      let accepted = 0
      while (accepted < proposed && right(known + accepted)) accepted++
      if (proposed > 0) {
        guesses.settle(proposed, accepted, known)
        asked.push(known)
      }
      known += 1 + accepted
      steps++
    }
    return { steps, spent: steps + cost * guesses.proposed, proposed: guesses.proposed, asked, known }
  }

  test('end up at plain decoding, with a try now and then', () => {
    const { asked, spent, known } = decode(0.5, 4000, () => false)
    expect(spent / known).toBeLessThan(1.01)
    expect(asked.length).toBeLessThan(50)
    const gaps = asked.slice(1).map((at, i) => at - asked[i]!)
    expect(Math.max(...gaps.slice(-10))).toBeLessThanOrEqual(130)
    expect(asked.at(-1)).toBeGreaterThan(3800)
  })

  test('never lose more than a little, whatever is right when; and gain where they are right', () => {
    const outcomes = fc.record({
      cost: fc.double({ min: 0.05, max: 2, noNaN: true }),
      share: fc.double({ min: 0, max: 1, noNaN: true }),
      seed: fc.integer({ min: 1, max: 2 ** 31 }),
      most: fc.integer({ min: 1, max: 16 }),
    })
    fc.assert(
      fc.property(outcomes, ({ cost, share, seed, most }) => {
        let state = seed
        const coins = Array.from({ length: 3100 }, () => {
          state = (Math.imul(state, 1664525) + 1013904223) >>> 0
          return state / 2 ** 32 < share
        })
        const { spent, known } = decode(cost, 3000, (position) => coins[position]!, most)
        // A first try, and then at worst a try of one pause, as often as pauses allow.
        expect(spent - known).toBeLessThan(2 + cost * most + (known / 8) * cost)
        if (share < 0.5 * cost) expect(spent / known).toBeLessThan(1.01 + (0.2 * cost * most + 2) / known + 0.1 * cost)
        if (share > 0.95 && cost < 0.3 && most > 3) expect(spent / known).toBeLessThan(0.75)
      }),
    )
  })

  test('right ones are never given up, and those that become right are taken up again', () => {
    const all = decode(0.9, 1000, () => true)
    expect(all.steps).toBe(Math.ceil(999 / 5))
    const late = decode(0.3, 2000, (position) => position > 1000)
    expect(late.steps).toBeLessThan(1000 + 200 + 140)
  })

  test('cost what the weights say: a row more where memory is waited for, most of a step in caches, and a draft', () => {
    const plan = (bytes: number) => ({ ...fakePlan(), tensors: [{ bytes }, { bytes }] }) as never
    expect(guessCost(plan(4e6))).toBe(0.65)
    expect(guessCost(plan(3e8))).toBeCloseTo(0.05)
    expect(guessCost(plan(3e7))).toBeCloseTo(0.65 * (2 ** 25 / 6e7))
    expect(guessCost(plan(3e8), plan(6e7))).toBeCloseTo(0.25)
  })

  test('in the engine: a draft that is always wrong is hardly asked, and outputs are those of plain decoding', async () => {
    const wrong = (token: number) => (token + 1) % 5
    const options = { maxSlots: 6, contextTokens: 250, speculative: { cost: 0.5 } }
    const long = asked.slice(0, 6).map(({ prompt, options }) => ({
      prompt,
      options: { ...options, maxTokens: 200, stopTokens: [], ignoreEos: true },
    }))
    const drafted = openDrafted(options, small, wrong)
    const { answers, stats } = await runAll(drafted, long)
    expect(answers).toEqual((await runAll(openFake({ contextTokens: 250 }, small), long)).answers)
    const { proposed, accepted } = stats.speculation!
    expect(accepted).toBe(0)
    expect(proposed).toBeLessThan(0.07 * stats.sampledTokens)
    expect(drafted.inner.seen.length).toBeLessThan(0.5 * stats.steps)
  })
})
