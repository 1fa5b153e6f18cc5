/**
 * The loop: schedule, reserve, pack, run, then commit or roll back as a whole. One step is in flight at a time; requests
 * arrive, are cancelled and expire meanwhile, and the next schedule sees it.
 */
import {
  createResult,
  createStep,
  type ResultOffsets,
  type ResultView,
  ROW_RESULT_BYTES,
  type StepView,
} from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { fail, IngotError } from '../errors.ts'
import { BlockPool } from './blocks.ts'
import type { Capacity } from './capacity.ts'
import { Counters, type EngineStats } from './counters.ts'
import type { Draft } from './draft.ts'
import { aborted, watch } from './lifetime.ts'
import { pack } from './pack.ts'
import { PrefixCache } from './prefix-cache.ts'
import { Request, type Work } from './request.ts'
import { type Assignment, type Policy, schedule } from './scheduler.ts'
import type { Shadow } from './shadow.ts'
import { SlotPool } from './slots.ts'
import { accepted, lookUp, mayGuess } from './speculate.ts'

/** Words of one RowResult: token, logprob, then the alternatives. */
export const ROW_WORDS = ROW_RESULT_BYTES / 4

/** Longest that steps may follow each other without timers and I/O getting a turn, in milliseconds. */
const TURN_MS = 2

export class Engine {
  readonly capacity: Capacity
  readonly #runner: Runner
  readonly #draft: Draft | undefined
  readonly #shadow: Shadow | undefined
  readonly #vocab: number
  readonly #hidden: number
  readonly #policy: Policy
  readonly #pool: BlockPool
  readonly #slots: SlotPool
  readonly #cache: PrefixCache | undefined
  readonly #step: StepView
  #result: ResultView
  #offsets: ResultOffsets
  /** Both in order of arrival. */
  readonly #waiting: Request[] = []
  readonly #running: Request[] = []
  #arrivals = 0
  #loop: Promise<void> | undefined
  #disposed = false
  /** DEVICE_LOST, once a step found that the device takes no more work. */
  #lost: IngotError | undefined
  #settledAt = 0
  #turnAt = 0
  readonly #count = new Counters()

  /**
   * `widths`: elements of a row of logits and of the hidden output. `draft`: where guesses come from one. `shadow`: what
   * compares some of the steps.
   */
  constructor(
    runner: Runner,
    capacity: Capacity,
    widths: { readonly vocab: number; readonly hidden: number },
    { draft, shadow }: { readonly draft?: Draft | undefined; readonly shadow?: Shadow | undefined } = {},
  ) {
    const { limits, needs } = capacity
    this.#runner = runner
    this.#draft = draft
    this.#shadow = shadow
    this.capacity = capacity
    this.#vocab = widths.vocab
    this.#hidden = widths.hidden
    this.#policy = {
      tokens: limits.tokens,
      rows: limits.rows,
      chunk: capacity.chunk,
      blockTokens: needs.blockTokens,
      whole: needs.wholeSequences,
    }
    this.#pool = new BlockPool(capacity.blocks)
    this.#slots = new SlotPool(capacity.slots)
    this.#cache = capacity.prefixCache ? new PrefixCache(this.#pool, needs.blockTokens) : undefined
    this.#step = createStep(limits)
    const { view, offsets } = createResult(limits.rows, { vocab: 0, hidden: 0 })
    this.#result = view
    this.#offsets = offsets
  }

  /** Queues `work`. Throws QUEUE_FULL; every other failure goes to the sink. */
  submit(work: Work): Request {
    const request = new Request(this.#arrivals++, work)
    if (this.#disposed) return this.#refuse(request, fail('DISPOSED', {}))
    if (this.#lost) return this.#refuse(request, this.#lost)
    if (work.signal?.aborted) return this.#refuse(request, aborted(work.signal))
    const { queueLimit } = this.capacity
    if (this.#waiting.length >= queueLimit + this.#slots.free) throw fail('QUEUE_FULL', { limit: queueLimit })
    this.#provide(work)
    request.unwatch = watch(work, (error) => this.cancel(request, error))
    this.#waiting.push(request)
    this.#loop ??= Promise.resolve().then(() => this.#run())
    return request
  }

  /**
   * Ends `request` with `error`. Its slot and blocks are free at once: a step under way may still write to them, but
   * nothing is handed out before it settles.
   */
  cancel(request: Request, error: unknown): void {
    if (this.#end(request)) request.work.sink.failed(error)
  }

  stats(): EngineStats {
    const { total, used, free, idle } = this.#pool
    return {
      ...this.#count.stats({
        running: this.#running.length,
        waiting: this.#waiting.length,
        blocks: { total: total - 1, used, free, cached: idle },
      }),
      ...(this.capacity.speculation && { speculation: this.#count.speculation(this.#draft) }),
      ...(this.#shadow && { shadow: this.#shadow.stats() }),
    }
  }

  /** Resolves once no step is under way and no request left. */
  async idle(): Promise<void> {
    await this.#loop
  }

  /** Fails every request with DISPOSED and resolves when no step is under way. */
  async dispose(): Promise<void> {
    this.#disposed = true
    for (const request of [...this.#running, ...this.#waiting]) this.cancel(request, fail('DISPOSED', {}))
    await this.#loop
  }

  /**
   * From the end of one step to the start of the next there is no await, so that what consumers do with the tokens
   * overlaps the step.
   */
  async #run(): Promise<void> {
    this.#settledAt = this.#turnAt = performance.now()
    while (this.#running.length > 0 || this.#waiting.length > 0) {
      const drafted = this.capacity.speculation && this.#guess()
      if (drafted) await drafted
      if (this.#running.length + this.#waiting.length === 0) break
      const batch = this.#begin()
      if (batch.length === 0) continue
      const result = this.#shadow?.capture(this.#step, batch) ?? this.#result
      const error = await this.#launch(result)
      this.#settledAt = performance.now()
      if (error === undefined) this.#commit(batch, result)
      else this.#rollBack(batch, error)
      this.#shadow?.settle(error === undefined)
    }
    this.#loop = undefined
  }

  /** Writes guesses behind the known tokens of all requests that have use for some. */
  #guess(): Promise<void> | undefined {
    for (const request of this.#running) lookUp(request)
    const requests = this.#draft ? this.#running.filter(mayGuess) : []
    return requests.length > 0 ? this.#guessByDraft(this.#draft!, requests) : undefined
  }

  async #guessByDraft(draft: Draft, requests: readonly Request[]): Promise<void> {
    const started = performance.now()
    try {
      await draft.propose(requests, (step) => this.#drive(step))
    } catch (cause) {
      this.#count.failedSteps++
      const error = cause instanceof IngotError ? cause : stepFailed(cause)
      for (const request of requests) this.cancel(request, error)
      this.#loseAfter(error)
    }
    this.#settledAt += performance.now() - started
  }

  /** Schedules, reserves and packs. A fault here is the engine's own: it ends every request rather than leave one hanging. */
  #begin(): readonly Assignment<Request>[] {
    try {
      const batch = this.#reserve()
      if (batch.length === 0) throw new Error('no sequence can advance')
      pack(this.#step, batch, this.capacity.needs.resets, this.#offsets)
      return batch
    } catch (cause) {
      const error = fail('STEP_FAILED', { where: 'the engine', reason: (cause as Error).message }, cause)
      for (const request of [...this.#running, ...this.#waiting]) this.cancel(request, error)
      return []
    }
  }

  /** Runs the packed step and resolves to why it failed, or undefined. */
  async #launch(result: ResultView): Promise<unknown> {
    const started = performance.now()
    this.#count.hostMs += started - this.#settledAt
    try {
      await this.#drive(this.#runner.step(this.#step, result))
      return undefined
    } catch (cause) {
      return cause instanceof IngotError ? cause : stepFailed(cause)
    }
  }

  /** Awaits a step of the model or its draft. */
  async #drive(step: Promise<void>): Promise<void> {
    if (performance.now() - this.#turnAt < TURN_MS) await step
    else await Promise.all([step, this.#turn()])
  }

  /** While a step runs, whatever waits on the event loop gets its turn. */
  async #turn(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    this.#turnAt = performance.now()
  }

  /** Schedules, and takes what the batch needs. */
  #reserve(): readonly Assignment<Request>[] {
    this.#preemptForTest()
    const candidates = this.#waiting.slice(0, this.#slots.free)
    for (const request of candidates) this.#cache?.seek(request)
    const resources = { refs: this.#pool.refs, blocks: this.#pool.free, slots: this.#slots.free }
    const { batch, admitted, preempted } = schedule(this.#running, candidates, resources, this.#policy)
    for (const request of preempted) this.#preempt(request)
    for (const request of admitted) this.#hold(request)
    for (const request of admitted) this.#admit(request)
    for (const { sequence, blocks } of batch) {
      for (let i = 0; i < blocks; i++) sequence.blocks.push(this.#pool.allocate())
    }
    return batch
  }

  /** Holds the cached blocks of an admitted request, before any allocation could evict them. */
  #hold(request: Request): void {
    for (const block of request.blocks) this.#pool.retain(block)
  }

  #admit(request: Request): void {
    this.#waiting.splice(this.#waiting.indexOf(request), 1)
    insertByArrival(this.#running, request)
    request.slot = this.#slots.allocate()
    request.knownAtAdmission = request.known
    request.grow()
    if (request.copy) {
      request.copySource = request.blocks.pop()!
      request.blocks.push(this.#pool.allocate())
      request.copy = false
    }
    if (request.computed > 0) {
      this.#count.prefixHits++
      this.#count.prefixTokens += request.computed
    }
    if (request.admittedAt > 0) return
    request.admittedAt = performance.now()
    request.cachedTokens = request.computed
  }

  #commit(batch: readonly Assignment<Request>[], result: ResultView): void {
    this.#count.step(result)
    let row = 0
    for (const { sequence, tokens, rows } of batch) {
      this.#settle(sequence)
      this.#count.tokens += tokens
      if (!sequence.done) {
        const wrong = this.#verify(sequence, tokens, result, row)
        sequence.computed += tokens - wrong
        this.#cache?.register(sequence)
        this.#deliver(sequence, result, row, rows - wrong)
      }
      row += rows
    }
  }

  /** How many of the `tokens` that a step computed are guesses to drop: from the first on that was not sampled. */
  #verify(request: Request, tokens: number, result: ResultView, row: number): number {
    const proposed = Math.max(0, request.computed + tokens - request.known)
    request.proposed = 0
    if (proposed === 0) return 0
    const right = accepted(request, proposed, result, row)
    request.guesses!.settle(proposed, right, request.known)
    this.#count.proposed += proposed
    this.#count.accepted += right
    return proposed - right
  }

  /** The requests of a rejected step fail and return all they hold; nobody else notices. */
  #rollBack(batch: readonly Assignment<Request>[], error: unknown): void {
    this.#count.failedSteps++
    for (const { sequence } of batch) this.#settle(sequence)
    for (const { sequence } of batch) this.cancel(sequence, error)
    this.#loseAfter(error)
  }

  /** Whoever waits for a device that is lost would wait for nothing. */
  #loseAfter(error: unknown): void {
    if (!(error instanceof IngotError && error.code === 'DEVICE_LOST')) return
    this.#lost = error
    for (const request of [...this.#running, ...this.#waiting]) this.cancel(request, error)
  }

  /** The step that `request` took part in is over. */
  #settle(request: Request): void {
    if (request.copySource > 0) this.#pool.release(request.copySource)
    request.copySource = 0
  }

  /** Hands the rows [row, row + rows) of `result` to the request. */
  #deliver(request: Request, result: ResultView, row: number, rows: number): void {
    const { output, sink } = request.work
    try {
      for (let i = 0; i < rows; i++) {
        const position = request.computed - rows + i
        if (output === 'token') {
          request.append(result.rows[(row + i) * ROW_WORDS]!)
          this.#count.sampledTokens++
        }
        if (sink.row(result, row + i, position)) this.#end(request)
        // Tokens behind the last one wanted are right, and nobody's.
        if (request.done) return
      }
    } catch (error) {
      this.cancel(request, error)
    }
  }

  /** Takes `request` out of the engine; false if it had ended before. */
  #end(request: Request): boolean {
    if (request.done) return false
    request.done = true
    request.unwatch()
    const list = request.slot > 0 ? this.#running : this.#waiting
    const index = list.indexOf(request)
    if (index >= 0) list.splice(index, 1)
    this.#vacate(request)
    return true
  }

  /** Returns slot and blocks. Tails first, so that children fall idle before their parents. */
  #vacate(request: Request): void {
    if (request.slot === 0) return
    for (let i = request.blocks.length - 1; i >= 0; i--) this.#pool.release(request.blocks[i]!)
    this.#slots.release(request.slot)
    request.blocks = []
    request.slot = 0
  }

  #preempt(request: Request): void {
    this.#count.preemptions++
    this.#running.splice(this.#running.indexOf(request), 1)
    this.#vacate(request)
    request.computed = 0
    request.proposed = 0
    request.registered = 0
    request.entry = undefined
    request.matchedAt = -1
    insertByArrival(this.#waiting, request)
  }

  #preemptForTest(): void {
    const { preemptEvery } = this.capacity
    if (preemptEvery === 0 || (this.#count.steps + 1) % preemptEvery !== 0) return
    const victim = this.#running.findLast((request) => request.known > request.knownAtAdmission)
    if (victim) this.#preempt(victim)
  }

  #refuse(request: Request, error: unknown): Request {
    request.done = true
    request.work.sink.failed(error)
    return request
  }

  /** Makes room in the result buffer for what `work` wants beyond tokens. */
  #provide({ output }: Work): void {
    const { logits, hidden } = this.#offsets
    if (output === 'token' || (output === 'logits' ? logits : hidden) > 0) return
    const widths = {
      vocab: output === 'logits' || logits > 0 ? this.#vocab : 0,
      hidden: output === 'hidden' || hidden > 0 ? this.#hidden : 0,
    }
    const { view, offsets } = createResult(this.capacity.limits.rows, widths)
    this.#result = view
    this.#offsets = offsets
  }
}

function stepFailed(cause: unknown): IngotError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return fail('STEP_FAILED', { where: 'the backend', reason }, cause)
}

/** Almost always at the end: only preempted sequences come back to an earlier place. */
function insertByArrival(list: Request[], request: Request): void {
  let index = list.length
  while (index > 0 && list[index - 1]!.arrival > request.arrival) index--
  list.splice(index, 0, request)
}
