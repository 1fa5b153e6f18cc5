/**
 * The loop: schedule, reserve, pack, run, then commit or roll back as a whole. Requests arrive, are cancelled and expire
 * while a step is in flight, and the next schedule sees it.
 *
 * Where the runner takes two steps at once, the next one departs before the tokens of the last are read (flight.ts). The
 * runner runs them one after the other, and that order is what keeps state right: whoever is given a block or slot writes
 * to it in a step that departs later, and so runs later, than any that the one before had a part in.
 */
import type { ResultView } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { fail, IngotError } from '../errors.ts'
import { BlockPool } from './blocks.ts'
import type { Capacity } from './capacity.ts'
import { Counters, type EngineStats } from './counters.ts'
import type { Draft } from './draft.ts'
import { Flight, needsTokens, stepError } from './flight.ts'
import { aborted, watch } from './lifetime.ts'
import { pack } from './pack.ts'
import { PrefixCache } from './prefix-cache.ts'
import { insertByArrival, Request, type Work } from './request.ts'
import { type Assignment, type Policy, schedule } from './scheduler.ts'
import type { Shadow } from './shadow.ts'
import { SlotPool } from './slots.ts'
import { lookUp, mayGuess, sampled, verify } from './speculate.ts'

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
  /** As many as the runner takes at once. */
  readonly #flights: readonly Flight[]
  #widths = { vocab: 0, hidden: 0 }
  /** Both in order of arrival. */
  readonly #waiting: Request[] = []
  readonly #running: Request[] = []
  #arrivals = 0
  #loop: Promise<void> | undefined
  #disposed = false
  /** DEVICE_LOST, once a step found that the device takes no more work. */
  #lost: IngotError | undefined
  /** When the host took over from a step. */
  #hostSince = 0
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
    this.#flights = Array.from({ length: runner.depth ?? 1 }, () => new Flight(limits))
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
   * Ends `request` with `error`. Its slot and blocks are free at once: steps under way may still write to them, but
   * whoever gets them does so in a later one.
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
   * From the end of one step to the departure of the next there is no await, so that what consumers do with the tokens
   * overlaps a step.
   */
  async #run(): Promise<void> {
    this.#hostSince = this.#turnAt = performance.now()
    this.#count.pause()
    let next: Flight | undefined
    while (next || this.#running.length + this.#waiting.length > 0) {
      if (!next) {
        const drafted = this.capacity.speculation && this.#guess()
        if (drafted) await drafted
        next = this.#depart()
        if (!next) continue
      }
      const flight = next
      next = this.#mayFollow(flight) ? this.#depart(flight) : undefined
      const error = await this.#drive(flight.settled)
      this.#hostSince = performance.now()
      if (error === undefined) this.#commit(flight)
      else {
        this.#rollBack(flight, error)
        // Rejected as well. Whoever is left in it is scheduled again, from where the failed step found it.
        await next?.settled
        next = undefined
      }
      this.#shadow?.settle(error === undefined)
    }
    this.#loop = undefined
  }

  /**
   * Whether a step may depart before the tokens of `flight` are read. Guesses, penalties and a shadow's comparison look at
   * them on the host; and what preempts a request must know all that it has.
   */
  #mayFollow({ batch }: Flight): boolean {
    if (this.#flights.length === 1 || this.capacity.speculation || this.#shadow) return false
    const needed = batch.some(({ sequence, rows }) => rows > 0 && needsTokens(sequence))
    return !needed && !this.#preempts(this.#count.steps + 2)
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
      const error = stepError(cause)
      for (const request of requests) this.cancel(request, error)
      this.#loseAfter(error)
    }
    this.#hostSince += performance.now() - started
  }

  /**
   * Schedules, reserves, packs and submits a step, behind `before` where that is in flight; undefined where none can. A
   * fault here is the engine's own: it ends every request rather than leave one hanging.
   */
  #depart(before?: Flight): Flight | undefined {
    const flight = this.#flights.find((each) => each !== before)!
    try {
      for (const { sequence } of before?.batch ?? []) this.#settle(sequence)
      before?.advance()
      flight.batch = this.#reserve(before !== undefined)
      if (flight.batch.length === 0) {
        if (before || this.#running.length + this.#waiting.length === 0) return undefined
        throw new Error('no sequence can advance')
      }
      pack(flight.step, flight.batch, this.capacity.needs.resets, flight.room.offsets, before !== undefined)
    } catch (cause) {
      const error = fail('STEP_FAILED', { where: 'the engine', reason: (cause as Error).message }, cause)
      for (const request of [...this.#running, ...this.#waiting]) this.cancel(request, error)
      return undefined
    }
    const result = this.#shadow?.capture(flight.step, flight.batch)
    const started = performance.now()
    this.#count.hostMs += started - this.#hostSince
    this.#hostSince = started
    if (before) this.#count.stepsAhead++
    flight.launch(this.#runner, result)
    return flight
  }

  /** Awaits a step of the model or its draft. */
  async #drive<T>(step: Promise<T>): Promise<T> {
    if (performance.now() - this.#turnAt < TURN_MS) return step
    const [outcome] = await Promise.all([step, this.#turn()])
    return outcome
  }

  /** While a step runs, whatever waits on the event loop gets its turn. */
  async #turn(): Promise<void> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    this.#turnAt = performance.now()
  }

  /**
   * Schedules, and takes what the batch needs. `ahead`: another step is in flight, and nobody is preempted before it has
   * settled: the batch is empty where somebody would have to be.
   */
  #reserve(ahead: boolean): readonly Assignment<Request>[] {
    if (!ahead && this.#preempts(this.#count.steps + 1)) this.#preemptForTest()
    const candidates = this.#waiting.slice(0, this.#slots.free)
    for (const request of candidates) this.#cache?.seek(request)
    const resources = { refs: this.#pool.refs, blocks: this.#pool.free, slots: this.#slots.free }
    const { batch, admitted, preempted } = schedule(this.#running, candidates, resources, this.#policy)
    if (ahead && preempted.length > 0) return []
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

  #commit({ batch, result, advanced }: Flight): void {
    this.#count.step(result)
    let row = 0
    for (const { sequence, tokens, rows } of batch) {
      this.#settle(sequence)
      this.#count.tokens += tokens
      if (sequence.done) this.#count.discardedTokens += tokens
      else {
        const wrong = advanced ? 0 : verify(sequence, tokens, result, row, this.#count)
        if (!advanced) sequence.computed += tokens - wrong
        this.#cache?.register(sequence)
        this.#deliver(sequence, result, row, rows - wrong)
      }
      row += rows
    }
  }

  /** The requests of a rejected step fail and return all they hold; nobody else notices. */
  #rollBack({ batch }: Flight, error: unknown): void {
    this.#count.failedSteps++
    this.#count.pause()
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

  /** The step that copies a block for `request` is over, or runs before any other that may write to the block. */
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
          request.put(position + 1, sampled(result, row + i))
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
    this.#settle(request)
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

  /** Whether a test asks for a preemption before that step; the first is 1. */
  #preempts(step: number): boolean {
    const { preemptEvery } = this.capacity
    return preemptEvery > 0 && step % preemptEvery === 0
  }

  #preemptForTest(): void {
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
    const { vocab, hidden } = this.#widths
    if (output === 'token' || (output === 'logits' ? vocab : hidden) > 0) return
    const widths = output === 'logits' ? { vocab: this.#vocab, hidden } : { vocab, hidden: this.#hidden }
    for (const flight of this.#flights) flight.widen(widths)
    this.#widths = widths
  }
}
