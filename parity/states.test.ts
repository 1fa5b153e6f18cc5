/** The laws of states, as properties, for every kind of state on every backend that runs it; and injected faults. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { capabilities, lifecycles } from '../abi/state.ts'
import { stepHeader } from '../abi/step.ts'
import { type BackendName, backends } from '../compute/backends.ts'
import type { LinkedPackage } from '../compute/device.ts'
import type { Model } from '../index.ts'
import { capacity, draftCapacity } from '../inference/capacity.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { verifyPlan } from '../plans/verify.ts'
import { writePlan } from '../plans/write.ts'
import { fingerprint, mixedRequests } from './invariance.ts'
import {
  digest,
  Hand,
  MOST,
  openLinked,
  packageStates,
  places,
  type Snapshot,
  stateCases,
  stateModels,
  VOCAB,
} from './states.ts'

let folder: string
const packages = new Map<string, LinkedPackage>()
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-states-'))
  for (const model of stateModels) {
    const pkg = await packageStates(model, folder)
    verifyPlan(pkg.planBytes, pkg.path)
    packages.set(model.name, pkg)
  }
})
afterAll(() => rm(folder, { recursive: true }))

const [P, Q, R] = places as [(typeof places)[0], (typeof places)[0], (typeof places)[0]]
const token = fc.integer({ min: 0, max: VOCAB - 1 })
const tokens = (least: number) => fc.array(token, { minLength: least, maxLength: MOST - 2, size: 'max' })
const chunk = fc.constantFrom(1, 5, 31, 32, 33, MOST)
/** A sequence, how its parts are chunked, and a place in it. */
const cutSequence = tokens(3).chain((all) =>
  fc.record({ all: fc.constant(all), cut: fc.integer({ min: 1, max: all.length - 1 }), before: chunk, after: chunk }),
)
const runs = { numRuns: 7 }

it('every backend that is here and can fail on purpose is listed for the kinds that it runs', async () => {
  const here = Object.values(backends).filter(({ name, unavailable }) => !unavailable() && !/null|reference/.test(name))
  for (const { name: kind, backends: listed } of stateModels)
    for (const { name } of here) {
      const hand = await Hand.open(packages.get(kind)!, name).catch(({ code }) => code as string)
      const runs = typeof hand === 'object' && hand.runner.failAfter !== undefined
      expect(runs, `${kind} on ${name}: ${hand}`).toBe(listed.includes(name as BackendName))
      if (typeof hand === 'object') hand.runner.dispose()
      else expect(hand).toBe('LINK_GAPS')
    }
})

describe.each(stateCases)('$name on $backend', ({ name, backend, rewinds }) => {
  const open = () => Hand.open(packages.get(name)!, backend)
  /** Rows of a sequence that nothing has disturbed, in one step. */
  const undisturbed = async (all: readonly number[]) => {
    using hand = await open()
    return await hand.run(P, all)
  }
  /** Digests of every unit of a sequence's state. */
  const state = (hand: Hand, place: (typeof places)[0]) =>
    hand.snapshot(place).map((units) => units.map((unit) => digest(unit)))

  it('clone then step is step then clone', () =>
    fc.assert(
      fc.asyncProperty(cutSequence, async ({ all, cut, before, after }) => {
        using hand = await open()
        await hand.run(P, all, 0, cut, before)
        await hand.clone(P, Q)
        const ofClone = await hand.run(Q, all, cut, all.length, after)
        expect(await hand.run(P, all, cut, all.length, after)).toEqual(ofClone)
        await hand.clone(P, R)
        expect(state(hand, R)).toEqual(state(hand, Q))
        const more = [...all, 1, 2]
        const next = await hand.run(P, more, all.length)
        for (const place of [Q, R]) expect(await hand.run(place, more, all.length)).toEqual(next)
      }),
      runs,
    ))

  it('evict and resume elsewhere is never evicted', () =>
    fc.assert(
      fc.asyncProperty(cutSequence, tokens(3), async ({ all, cut, before, after }, other) => {
        using hand = await open()
        const first = await hand.run(P, all, 0, cut, before)
        const evicted = hand.snapshot(P)
        await hand.run(P, other, 0, other.length, after)
        await hand.run(R, other, 0, other.length, before)
        hand.restore(evicted, R)
        expect([...first, ...(await hand.run(R, all, cut, all.length, after))]).toEqual(await undisturbed(all))
      }),
      runs,
    ))

  it('reset is fresh', () =>
    fc.assert(
      fc.asyncProperty(tokens(1), tokens(1), chunk, async (other, all, size) => {
        using hand = await open()
        await hand.run(P, other, 0, other.length, size)
        expect(await hand.run(P, all, 0, all.length, size)).toEqual(await undisturbed(all))
      }),
      runs,
    ))

  it('serialise and restore is the identity, in another process as well', () =>
    fc.assert(
      fc.asyncProperty(cutSequence, async ({ all, cut, before, after }) => {
        using hand = await open()
        using other = await open()
        const first = await hand.run(P, all, 0, cut, before)
        const saved = hand.snapshot(P)
        const text = JSON.stringify(saved.map((units) => units.map((bytes) => Buffer.from(bytes).toString('base64'))))
        const loaded: Snapshot = JSON.parse(text).map((units: string[]) =>
          units.map((unit) => new Uint8Array(Buffer.from(unit, 'base64'))),
        )
        other.restore(loaded, Q)
        expect(state(other, Q)).toEqual(state(hand, P))
        expect([...first, ...(await other.run(Q, all, cut, all.length, after))]).toEqual(await undisturbed(all))
      }),
      runs,
    ))

  it.runIf(rewinds)('rewind then replay is the identity, and another future is as if there had been none', () =>
    fc.assert(
      fc.asyncProperty(cutSequence, tokens(1), async ({ all, cut, before: size, after }, future) => {
        using hand = await open()
        const rows = await hand.run(P, all, 0, all.length, size)
        const before = state(hand, P)
        expect(await hand.run(P, all, cut, all.length, after)).toEqual(rows.slice(cut))
        expect(state(hand, P)).toEqual(before)
        const other = [...all.slice(0, cut), ...future].slice(0, MOST)
        expect(await hand.run(P, other, cut, other.length, after)).toEqual((await undisturbed(other)).slice(cut))
      }),
      runs,
    ),
  )

  it.skipIf(rewinds)('cannot be rewound, which is why more than it declares is refused', async () => {
    using hand = await open()
    const all = Array.from({ length: 40 }, (_, i) => (i * 31) % VOCAB)
    const rows = await hand.run(P, all)
    expect(await hand.run(P, all, 20)).not.toEqual(rows.slice(20))
  })

  it('a failure at any instruction leaves the state as it was before the step', async () => {
    const { instructions } = packages.get(name)!.plan
    const long = Array.from({ length: 70 }, (_, i) => (i * 29 + 3) % VOCAB)
    /** Slot and blocks of Q go on, R begins, and the last block of P is copied for another. */
    const batch = {
      sequences: [
        { ...Q, position: 40, tokens: long.slice(40, 70) },
        { ...R, position: 0, tokens: long.slice(0, 20) },
      ],
      resets: [R.slot],
      copies: [[P.blocks[1]!, places[3]!.blocks[0]!]] as const,
    }
    const prepare = async (hand: Hand) => {
      await hand.run(P, long, 0, 45)
      await hand.run(Q, long, 0, 40, 7)
      await hand.run(R, long.toReversed(), 0, 33)
    }
    using never = await open()
    await prepare(never)
    const rows = await never.step(batch)
    const after = places.map((place) => state(never, place))
    const untouched = await never.run(P, long, 45)

    for (let failing = 0; failing <= instructions.length; failing++) {
      using hand = await open()
      await prepare(hand)
      const before = places.map((place) => state(hand, place))
      hand.runner.failAfter!(failing)
      await expect(hand.step(batch)).rejects.toMatchObject({ code: 'STEP_FAILED' })
      for (const [index, { kind }] of packages.get(name)!.plan.states.entries())
        for (const [i, place] of places.entries())
          if (kind === 'fixed' || place === P) expect(state(hand, place)[index]).toEqual(before[i]![index])
      // Positions that were known are as they were: the step, once it succeeds, makes everything as it would have been.
      expect(await hand.step(batch)).toEqual(rows)
      expect(places.map((place) => state(hand, place))).toEqual(after)
      expect(await hand.run(P, long, 45)).toEqual(untouched)
    }
  })
})

describe('a step that fails inside the engine', () => {
  const requests = mixedRequests(12, VOCAB, 50)

  /** Prints of the requests, or the codes of the errors that they ended with. */
  const runAll = (model: Model, which = requests.map((_, i) => i)) =>
    Promise.all(
      which.map((i) => {
        const { ids, options } = requests[i]!
        return model
          .generate(ids, options)
          .result()
          .then(fingerprint, ({ code }) => code as string)
      }),
    )

  it.each(stateCases)('$name on $backend: its requests fail, others and the same ones again do not', async (each) => {
    const pkg = packages.get(each.name)!
    const sizes = { backend: each.backend, maxSlots: 5, contextTokens: 96, prefillChunk: 20, blocks: 12 }
    await using sound = await openLinked(pkg, sizes)
    const expected = await runAll(sound)
    const failures = fc.record({
      at: fc.integer({ min: 0, max: 40 }),
      instruction: fc.integer({ min: 0, max: pkg.plan.instructions.length }),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(failures, { minLength: 1, maxLength: 3 }), async (planned) => {
        const injected: number[] = []
        let steps = 0
        await using model = await openLinked(pkg, sizes, (runner) => {
          const inner = runner.step.bind(runner)
          runner.step = (step, result) => {
            const failure = planned.find(({ at }) => at === steps)
            if (failure) {
              runner.failAfter!(failure.instruction)
              injected.push(step.header[stepHeader.word.sequences]!)
            }
            steps++
            return inner(step, result)
          }
          return runner
        })
        const got = await runAll(model)
        const failed = got.flatMap((print, i) => (print === 'STEP_FAILED' ? [i] : []))
        expect(got.map((print, i) => (failed.includes(i) ? expected[i] : print))).toEqual(expected)
        expect(failed.length).toBe(injected.reduce((sum, count) => sum + count, 0))
        expect(model.stats()).toMatchObject({ failedSteps: injected.length, running: 0, blocks: { used: 0 } })
        steps = Number.POSITIVE_INFINITY
        expect(await runAll(model, failed)).toEqual(failed.map((i) => expected[i]))
      }),
      { numRuns: 6 },
    )
  })
})

describe('more than a state declares is refused when the model is opened', () => {
  const plans = () => stateModels.map(({ name, rewinds }) => ({ plan: packages.get(name)!.plan, rewinds }))
  const refused = (field: string) =>
    expect.objectContaining({ code: 'OPTION_INVALID', message: expect.stringMatching(field) })

  it('speculation, by lookup and as a draft, where a state cannot be rewound', () => {
    const target = capacity(plans()[0]!.plan, { speculative: { draft: 'd' }, contextTokens: 64 }, 'p')
    for (const { plan, rewinds } of plans()) {
      const lookup = () => capacity(plan, { speculative: { lookup: true } }, 'p')
      const draft = () => draftCapacity(plan, target, 'd')
      if (rewinds) expect(() => [lookup(), draft()]).not.toThrow()
      else for (const ask of [lookup, draft]) expect(ask).toThrow(refused('^speculative: .* state .*takes back 0'))
    }
  })

  it('a prefix cache, where a state forks at its head only; left to the model, it is off', () => {
    for (const { plan, rewinds } of plans()) {
      const ask = () => capacity(plan, { prefixCache: true }, 'p')
      if (rewinds) expect(ask().prefixCache).toBe(true)
      else expect(ask).toThrow(refused('^prefixCache: .*forks at: head'))
      expect(capacity(plan, {}, 'p').prefixCache).toBe(rewinds)
    }
  })

  const changed = (name: string, change: object): ExecutionPlan => {
    const { plan } = packages.get(name)!
    return { ...plan, states: plan.states.map((state) => ({ ...state, ...change })) }
  }

  it.each([
    ['a recurrence that says it rewinds', 'ssm', { rewind: 1 }],
    ['a recurrence that says it forks anywhere', 'delta rule', { fork: 'any' }],
    ['a recurrence that need not start as zero', 'convolution', { zeroInit: false }],
    ['a lifecycle beyond the kind', 'paged f32', { lifecycle: capabilities.paged.lifecycle + 16 }],
  ])('by the verifier: %s', (_, name, change) => {
    expect(() => verifyPlan(writePlan(changed(name, change)), 'p')).toThrow(
      expect.objectContaining({ code: 'PLAN_INVALID', message: expect.stringContaining('state-capability') }),
    )
  })

  it('a draft that takes back less than a whole context: its slots change hands', () => {
    const target = capacity(packages.get('paged f32')!.plan, { speculative: { draft: 'd' }, contextTokens: 64 }, 'p')
    const weak = changed('paged f32', { rewind: 63 })
    expect(() => draftCapacity(weak, target, 'd')).toThrow(refused('takes back 63'))
  })

  it.each([
    ['init', 'paged f32'],
    ['reset', 'ssm'],
    ['evict', 'convolution'],
  ] as const)('a state without %s, which every sequence needs', (missing, name) => {
    const plan = changed(name, { lifecycle: 15 & ~lifecycles[missing] })
    expect(() => capacity(plan, {}, 'p')).toThrow(
      expect.objectContaining({ code: 'PLAN_INVALID', message: expect.stringContaining('state-lifecycle') }),
    )
  })

  it('more state than `stateBytes` has room for, each slot with the copy that a failed step is taken back from', () => {
    const { plan } = packages.get('attention and recurrences')!
    const { needs, slots, blocks } = capacity(plan, { maxSlots: 3, contextTokens: 64 }, 'p')
    const bytes = 2 * slots * needs.bytesPerSlot + (blocks + 5) * needs.bytesPerBlock
    const ask = (stateBytes: number) => capacity(plan, { maxSlots: 3, contextTokens: 64, stateBytes }, 'p')
    expect([ask(bytes).blocks, ask(bytes - 1).blocks]).toEqual([blocks + 5, blocks + 4])
    expect(() => ask(2 * slots * needs.bytesPerSlot)).toThrow(refused('^stateBytes'))
  })

  it('a prefix cache over blocks that cannot be copied', () => {
    const plan = changed('paged f32', { lifecycle: 15 & ~lifecycles.clone })
    expect(() => capacity(plan, { prefixCache: true }, 'p')).toThrow(refused('^prefixCache'))
    expect(capacity(plan, {}, 'p').prefixCache).toBe(false)
  })
})
