import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { BlockPool } from './blocks.ts'
import { type Policy, type Sequence, schedule } from './scheduler.ts'

interface Fake extends Sequence {
  known: number
  computed: number
  blocks: number[]
  remaining: number
  proposed: number
  /** Steps since it arrived. */
  age: number
}

const make = (arrival: number, known: number, remaining: number, allRows = false): Fake => ({
  arrival,
  known,
  computed: 0,
  blocks: [],
  copy: false,
  allRows,
  proposed: 0,
  remaining,
  age: 0,
})

/** Plays the engine's part around the scheduler, checking every rule after every step. */
class World {
  readonly pool: BlockPool
  readonly policy: Policy
  readonly slots: number
  running: Fake[] = []
  waiting: Fake[] = []
  finished: Fake[] = []
  preemptions = 0
  guesses = 0

  constructor(policy: Policy, slots: number, blocks: number) {
    this.policy = policy
    this.slots = slots
    this.pool = new BlockPool(blocks + 1)
  }

  step(): void {
    const resources = { refs: this.pool.refs, blocks: this.pool.free, slots: this.slots - this.running.length }
    const frozen = JSON.stringify([this.running, this.waiting])
    const plan = schedule(this.running, this.waiting, resources, this.policy)
    expect(JSON.stringify([this.running, this.waiting])).toBe(frozen)
    expect(plan.batch.length).toBeGreaterThan(0)
    expect(new Set(plan.batch.map((a) => a.sequence)).size).toBe(plan.batch.length)
    expect(plan.batch.reduce((sum, a) => sum + a.tokens, 0)).toBeLessThanOrEqual(this.policy.tokens)
    expect(plan.batch.reduce((sum, a) => sum + a.rows, 0)).toBeLessThanOrEqual(this.policy.rows)
    for (const s of plan.preempted)
      this.preempt(
        s,
        plan.batch.map((a) => a.sequence),
      )
    for (const s of plan.admitted) this.admit(s)
    for (const { sequence, tokens, blocks, rows } of plan.batch) {
      expect(tokens).toBeGreaterThan(0)
      const guesses = Math.max(0, sequence.computed + tokens - sequence.known)
      expect(guesses).toBeLessThanOrEqual(sequence.proposed)
      expect(tokens - guesses).toBeLessThanOrEqual(this.policy.chunk)
      const held = sequence.blocks.length
      for (let i = 0; i < blocks; i++) sequence.blocks.push(this.pool.allocate())
      const needed = Math.ceil((sequence.computed + tokens) / this.policy.blockTokens)
      expect(sequence.blocks.length).toBe(Math.max(held, needed))
      sequence.computed += tokens - guesses
      expect(rows).toBe(sequence.allRows ? tokens : Number(sequence.computed === sequence.known) + guesses)
      if (sequence.computed === sequence.known) this.verified(sequence, guesses)
    }
    for (const s of [...this.running, ...this.waiting]) s.age++
    this.check()
  }

  admit(s: Fake): void {
    expect(this.waiting.shift()).toBe(s)
    this.running.push(s)
    this.running.sort((a, b) => a.arrival - b.arrival)
    expect(this.running.length).toBeLessThanOrEqual(this.slots)
  }

  preempt(s: Fake, batch: Fake[]): void {
    expect(batch).not.toContain(s)
    expect(this.running.pop()).toBe(s)
    for (const block of s.blocks.splice(0)) this.pool.release(block)
    s.computed = 0
    s.proposed = 0
    this.waiting.push(s)
    this.waiting.sort((a, b) => a.arrival - b.arrival)
    this.preemptions++
  }

  /** Some of the guesses are right; then there are new ones, or none. */
  verified(s: Fake, guesses: number): void {
    const right = (s.arrival + s.age) % (guesses + 1)
    this.guesses += guesses
    s.computed += right
    for (let i = 0; i <= right && this.running.includes(s); i++) this.sampled(s)
    s.proposed = s.allRows ? 0 : Math.max(0, Math.min((s.arrival * 3 + s.age) % 6, s.remaining - 1))
  }

  sampled(s: Fake): void {
    if (s.remaining-- > 0 && !s.allRows) {
      s.known++
      return
    }
    this.running.splice(this.running.indexOf(s), 1)
    for (const block of s.blocks) this.pool.release(block)
    this.finished.push(s)
  }

  check(): void {
    const holders = new Uint32Array(this.pool.total)
    for (const s of this.running) for (const b of s.blocks) holders[b]!++
    expect(holders).toEqual(this.pool.refs)
    expect(this.pool.used + this.pool.free).toBe(this.pool.total - 1)
    expect(this.pool.used).toBe(holders.filter((count) => count > 0).length)
  }
}

const CONTEXT = 48
const request = fc.record({
  prompt: fc.integer({ min: 1, max: CONTEXT }),
  output: fc.integer({ min: 1, max: CONTEXT }),
  allRows: fc.boolean(),
  at: fc.integer({ min: 0, max: 30 }),
})

describe('schedule', () => {
  test('keeps every invariant and finishes every request in bounded steps', () => {
    let preemptions = 0
    let guesses = 0
    const world = fc.record({
      slots: fc.integer({ min: 1, max: 5 }),
      blockTokens: fc.constantFrom(1, 4, 16),
      tokens: fc.integer({ min: 5, max: 40 }),
      rows: fc.integer({ min: 5, max: 12 }),
      chunk: fc.integer({ min: 1, max: 64 }),
      extra: fc.integer({ min: 0, max: 12 }),
      requests: fc.array(request, { minLength: 1, maxLength: 12 }),
    })
    fc.assert(
      fc.property(world, ({ slots, blockTokens, tokens, rows, chunk, extra, requests }) => {
        const policy = { tokens, rows, chunk, blockTokens, whole: false }
        const w = new World(policy, slots, Math.ceil(CONTEXT / blockTokens) + extra)
        const arrivals = requests.toSorted((a, b) => a.at - b.at)
        let arrival = 0
        // Each life of a request computes at most CONTEXT tokens one by one, and only earlier ones can end it.
        const bound = 30 + requests.length * requests.length * CONTEXT * 2
        for (let now = 0; w.finished.length < requests.length; now++) {
          expect(now).toBeLessThan(bound)
          while (arrivals[arrival] && arrivals[arrival]!.at <= now) {
            const { prompt, output, allRows } = arrivals[arrival]!
            w.waiting.push(make(arrival, prompt, Math.min(output, CONTEXT - prompt), allRows))
            arrival++
          }
          if (w.running.length + w.waiting.length > 0) w.step()
        }
        expect(w.pool.used).toBe(0)
        preemptions += w.preemptions
        guesses += w.guesses
      }),
      { numRuns: 120 },
    )
    expect(preemptions).toBeGreaterThan(20)
    expect(guesses).toBeGreaterThan(100)
  })

  test('the earliest sequence advances in every step', () => {
    const w = new World({ tokens: 4, rows: 4, chunk: 4, blockTokens: 4, whole: false }, 4, 12)
    for (let i = 0; i < 8; i++) w.waiting.push(make(i, 20, 20))
    while (w.running.length + w.waiting.length > 0) {
      const first = w.running[0] ?? w.waiting[0]!
      const before = first.computed
      w.step()
      expect(first.computed).toBeGreaterThan(before)
    }
    expect(w.preemptions).toBeGreaterThan(0)
  })

  const policy = { tokens: 16, rows: 8, chunk: 16, blockTokens: 4, whole: false }
  const resources = { refs: new Uint32Array(100), blocks: 99, slots: 4 }

  test('decodes come before a long prefill, which gets the rest of the budget', () => {
    const prefill = make(0, 100, 1)
    const decodes = [1, 2, 3].map((n) => ({ ...make(n, 9, 1), computed: 8, blocks: [n, n + 10] }))
    const { batch } = schedule([prefill, ...decodes], [], resources, policy)
    expect(batch.map((a) => [a.sequence.arrival, a.tokens])).toEqual([
      [1, 1],
      [2, 1],
      [3, 1],
      [0, 13],
    ])
  })

  test('guesses get what all others leave, by arrival', () => {
    const decodes = [0, 1].map((n) => ({ ...make(n, 9, 1), computed: 8, blocks: [n + 1, n + 11, n + 21], proposed: 5 }))
    const tokens = (sequences: Fake[], more: Partial<Policy>, blocks = 99) =>
      schedule(sequences, [], { ...resources, blocks }, { ...policy, ...more }).batch.map((a) => [a.tokens, a.blocks])
    expect(tokens(decodes, {})).toEqual([
      [6, 1],
      [2, 0],
    ])
    expect(tokens(decodes, { rows: 99 })).toEqual([
      [6, 1],
      [6, 1],
    ])
    expect(tokens(decodes, { rows: 99 }, 0)).toEqual([
      [4, 0],
      [4, 0],
    ])
    expect(tokens([...decodes, make(2, 12, 1)], {})).toEqual([
      [3, 0],
      [1, 0],
      [12, 3],
    ])
  })

  test('the queue is served in order: one that does not fit is not overtaken', () => {
    const waiting = [make(0, 40, 1), make(1, 1, 1)]
    const short = { ...resources, blocks: 9 }
    const runner = { ...make(-1, 5, 1), computed: 4, blocks: [1] }
    const plan = schedule([runner], waiting, short, policy)
    expect(plan.batch.map((a) => a.sequence.arrival)).toEqual([-1])
    expect(plan.preempted).toEqual([])
  })

  test('an admission counts the idle blocks that it wakes and the block that it copies', () => {
    const refs = new Uint32Array(100)
    const cached = { ...make(0, 8, 1), computed: 7, blocks: [1, 2], copy: true }
    const plan = (blocks: number) => schedule([], [cached], { refs, blocks, slots: 1 }, policy)
    expect(plan(2).batch).toEqual([])
    expect(plan(3).batch).toEqual([{ sequence: cached, tokens: 1, blocks: 0, rows: 1 }])
    refs.fill(1)
    expect(plan(1).batch.length).toBe(1)
  })

  test('blocks shared by two victims are counted when the second lets go', () => {
    const refs = new Uint32Array(10)
    refs[1] = 2
    refs[2] = 1
    const first = { ...make(0, 5, 1), computed: 4, blocks: [2] }
    const victims = [1, 2].map((n) => ({ ...make(n, 4, 1), computed: 3, blocks: [1] }))
    const plan = schedule([first, ...victims], [], { refs, blocks: 0, slots: 2 }, policy)
    expect(plan.preempted.map((s) => s.arrival)).toEqual([2, 1])
    expect(plan.batch.map((a) => a.sequence.arrival)).toEqual([0])
  })

  test('whole sequences are never split', () => {
    const whole = { ...policy, whole: true }
    const { batch } = schedule([], [make(0, 10, 0), make(1, 10, 0)], resources, whole)
    expect(batch.map((a) => a.tokens)).toEqual([10])
  })
})
