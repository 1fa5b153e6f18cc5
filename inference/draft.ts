/**
 * The draft model: guesses the next tokens of many requests at once, by decoding them with a small plan.
 *
 * It has a slot for each of the engine's and uses the same: block `i` of a slot is a fixed one, so that nothing is ever
 * allocated or given back. A slot remembers the tokens whose state it holds, and takes up a request where the two agree:
 * that one rule catches up with prompts and rewinds after rejected guesses, preemption and a change of owner alike.
 */
import { createResult, createStep, type ResultView, resultHeader, type StepView } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import type { Capacity } from './capacity.ts'
import { type Packed, pack } from './pack.ts'
import type { Request, Work } from './request.ts'
import type { Assignment } from './scheduler.ts'
import { sampled } from './speculate.ts'

/** A slot of the draft, as the packer sees it. */
class DraftSequence implements Packed {
  readonly arrival = 0
  readonly copy = false
  readonly allRows = false
  readonly copySource = 0
  readonly proposed = 0
  readonly slot: number
  readonly blocks: readonly number[]
  readonly tokens: Int32Array
  known = 0
  computed = 0
  work!: Work
  /** Whose tokens these are, and up to where they are known to agree. */
  #owner: Request | undefined
  #agreed = 0

  constructor(slot: number, { contextTokens, limits }: Capacity) {
    const { blocksPerSequence } = limits
    this.slot = slot
    this.blocks = Array.from({ length: blocksPerSequence }, (_, i) => 1 + (slot - 1) * blocksPerSequence + i)
    this.tokens = new Int32Array(contextTokens)
  }

  get behind(): number {
    return this.known - this.computed
  }

  /** Takes up `request`: keeps the state of the tokens that both begin with, the last one excepted, whose row is wanted. */
  follow(request: Request): void {
    if (this.#owner !== request) this.#agreed = 0
    this.#owner = request
    const { tokens } = request
    const most = Math.min(this.computed, request.known - 1)
    let agreed = Math.min(this.#agreed, most)
    while (agreed < most && this.tokens[agreed] === tokens[agreed]) agreed++
    this.#agreed = this.computed = agreed
    this.tokens.set(tokens.subarray(agreed, request.known), agreed)
    this.known = request.known
    this.work = request.work
  }

  /** A failed step may have spoiled any state that it was to write. */
  forget(): void {
    this.#owner = undefined
    this.computed = 0
  }
}

interface Guessing {
  readonly request: Request
  readonly sequence: DraftSequence
  readonly wanted: number
}

export class Draft {
  readonly #runner: Runner
  readonly #budget: number
  readonly #resets: boolean
  readonly #sequences: DraftSequence[] = []
  readonly #step: StepView
  readonly #result: ResultView
  steps = 0
  microseconds = 0

  /** `capacity`: of the draft's plan, with a block for every position of every slot. */
  constructor(runner: Runner, capacity: Capacity) {
    this.#runner = runner
    this.#budget = capacity.limits.tokens
    this.#resets = capacity.needs.resets
    for (let slot = 1; slot < capacity.slots; slot++) this.#sequences[slot] = new DraftSequence(slot, capacity)
    this.#step = createStep(capacity.limits)
    this.#result = createResult(capacity.limits.rows, { vocab: 0, hidden: 0 }).view
  }

  /**
   * Writes guesses behind the known tokens of running `requests`. One whose tokens the draft is far behind of gets none
   * until it has caught up, a step's budget at a time. `drive` awaits a step. Rejects with what a step failed with.
   */
  async propose(requests: readonly Request[], drive: (step: Promise<void>) => Promise<void>): Promise<void> {
    const all = requests.map((request) => this.#follow(request))
    let active = all.toSorted((a, b) => a.sequence.behind - b.sequence.behind)
    try {
      while (active.length > 0) active = await this.#round(active, drive)
    } catch (error) {
      for (const { sequence } of all) sequence.forget()
      throw error
    }
  }

  #follow(request: Request): Guessing {
    const sequence = this.#sequences[request.slot]!
    sequence.follow(request)
    return { request, sequence, wanted: request.guesses!.wanted(request) }
  }

  /** One step of the draft. Returns those that want one more. */
  async #round(active: readonly Guessing[], drive: (step: Promise<void>) => Promise<void>): Promise<Guessing[]> {
    const batch: Assignment<DraftSequence>[] = []
    let budget = this.#budget
    for (const { sequence } of active) {
      const tokens = Math.min(sequence.behind, budget)
      if (tokens === 0) break
      budget -= tokens
      batch.push({ sequence, tokens, blocks: 0, rows: tokens === sequence.behind ? 1 : 0 })
    }
    pack(this.#step, batch, this.#resets, { logits: 0, hidden: 0 })
    await drive(this.#runner.step(this.#step, this.#result))
    this.steps++
    this.microseconds += this.#result.header[resultHeader.word.microseconds]!
    let row = 0
    const more: Guessing[] = []
    for (const [i, { sequence, tokens, rows }] of batch.entries()) {
      const { request, wanted } = active[i]!
      sequence.computed += tokens
      const token = rows > 0 && sampled(this.#result, row++)
      if (token === false || request.done) continue
      request.tokens[request.known + request.proposed++] = token
      if (request.proposed === wanted) continue
      sequence.tokens[sequence.known++] = token
      more.push(active[i]!)
    }
    return more
  }
}
