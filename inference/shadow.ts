/**
 * The dual path: a backend or package that is trusted computes some of the live steps again, and what came out is compared.
 *
 * Which steps is decided by their number and a seed. A chosen step also copies out its logits, into a buffer of the
 * shadow's own; when it is done, and its results delivered, the shadow computes the sequences that it sampled from their
 * first token on, in state of its own, a few tokens a step: so a stale block or slot of the live path shows as well. The
 * live path waits for nothing of it but for turns on threads that both use, at most for one such step at a time. Steps
 * chosen meanwhile are skipped, and counted.
 *
 * Where more rows diverge than are allowed, the live path is demoted: new requests run on the trusted one, or are refused.
 */
import { setImmediate, setTimeout } from 'node:timers/promises'
import { createResult, createStep, type ResultOffsets, type ResultView, type StepView } from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { fail } from '../errors.ts'
import type { Capacity } from './capacity.ts'
import { copyLogits, type Packed, pack, penalises } from './pack.ts'
import type { Request, Work } from './request.ts'
import type { Assignment } from './scheduler.ts'
import {
  endOf,
  type ParsedShadow,
  type ShadowDivergence,
  type ShadowEnd,
  type ShadowEndCode,
  type ShadowEvent,
  type ShadowStats,
} from './shadow-options.ts'
import { sampled } from './speculate.ts'

/** What a shadow is made of. */
export interface ShadowParts {
  /** Opened with `capacity`. */
  readonly runner: Runner
  readonly capacity: Capacity
  readonly options: ParsedShadow
  /** The tolerance of the options, or what stands for it. */
  readonly tolerance: number
}

/** Tokens of a step of the shadow: it takes turns with the live path where both use the same threads. */
const CHUNK = 32
/** After each of its steps the shadow rests so many times as long: what it takes of the live path is a fifth at most. */
const REST = 4

/** Whether step `step` is among the share `sample` that is compared (splitmix32). */
export function chosen(step: number, sample: number, seed: number): boolean {
  let z = (seed + Math.imul(step, 0x9e3779b9)) >>> 0
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad)
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
  return (z ^ (z >>> 15)) >>> 0 < sample * 2 ** 32
}

/** A sequence as a chosen step had it, to be computed again from the start. */
class Replayed implements Packed {
  readonly arrival = 0
  readonly copy = false
  readonly allRows = false
  readonly copySource = 0
  readonly proposed = 0
  readonly slot = 1
  readonly blocks: readonly number[]
  readonly tokens: Int32Array
  readonly work: Work
  /** Rows [row, row + rows) of the step are those of its last tokens. */
  readonly row: number
  readonly rows: number
  computed = 0

  constructor({ sequence, tokens, rows }: Assignment<Request>, row: number, blocks: readonly number[]) {
    this.tokens = sequence.tokens.slice(0, sequence.computed + tokens)
    this.work = sequence.work
    this.row = row
    this.rows = rows
    this.blocks = blocks
  }

  get known(): number {
    return this.tokens.length
  }
}

export class Shadow {
  readonly #runner: Runner
  readonly #capacity: Capacity
  readonly #options: ParsedShadow
  readonly #allowed: number
  readonly #vocab: number
  readonly #chunk: number
  readonly #blocks: readonly number[]
  readonly #step: StepView
  /** Results of a chosen step, and of the same on the trusted path. */
  readonly #live: ResultView
  readonly #liveOffsets: ResultOffsets
  readonly #trusted: ResultView
  readonly #trustedOffsets: ResultOffsets
  #captured: readonly Replayed[] | undefined
  #comparison: Promise<void> | undefined
  readonly #closing = new AbortController()
  #ended: ShadowEnd | undefined
  #steps = 0
  #compared = 0
  #skipped = 0
  #rows = 0
  #divergences = 0
  #ties = 0
  #worst = 0

  /** `rows` and `widths`: of the results of the live path. Throws OUT_OF_MEMORY. */
  constructor(
    { runner, capacity, options, tolerance }: ShadowParts,
    rows: number,
    widths: { readonly vocab: number; readonly hidden: number },
  ) {
    this.#runner = runner
    this.#capacity = capacity
    this.#options = options
    this.#allowed = tolerance
    this.#vocab = widths.vocab
    this.#chunk = runner.info.onEventLoop ? 1 : Math.min(CHUNK, capacity.limits.tokens)
    this.#blocks = Array.from({ length: capacity.limits.blocksPerSequence }, (_, i) => 1 + i)
    this.#step = createStep(capacity.limits)
    ;({ view: this.#live, offsets: this.#liveOffsets } = createResult(rows, widths))
    const own = createResult(capacity.limits.rows, { vocab: widths.vocab, hidden: 0 })
    ;({ view: this.#trusted, offsets: this.#trustedOffsets } = own)
  }

  /**
   * Counts a packed step. Where it is one to compare, has it copy out its logits, and returns the buffer that its results
   * must go to.
   */
  capture(step: StepView, batch: readonly Assignment<Request>[]): ResultView | undefined {
    this.#steps++
    const { sample, seed, until } = this.#options
    if (this.#closed || this.#ended || !chosen(this.#steps, sample, seed)) return undefined
    if (this.#comparison) {
      this.#skipped++
      return undefined
    }
    if (Date.now() > endOf(until)) this.#end('expired', `the dual path ended on ${until}`)
    const sequences = this.#ended ? [] : this.#replayed(batch)
    if (sequences.length === 0) return undefined
    this.#captured = sequences
    copyLogits(step, this.#liveOffsets)
    return this.#live
  }

  /** The step is over, and its results were delivered. */
  settle(succeeded: boolean): void {
    const captured = this.#captured
    this.#captured = undefined
    if (!captured || !succeeded || this.#closed) return
    this.#comparison = this.#compare(captured, this.#steps)
      .catch((error) => this.#closed || this.#end('shadow_failed', (error as Error).message))
      .then(() => void (this.#comparison = undefined))
  }

  get #closed(): boolean {
    return this.#closing.signal.aborted
  }

  /** Whether new requests must not run on the live path. */
  get demoted(): boolean {
    return this.#ended?.code === 'divergences_exceeded'
  }

  /** Throws SHADOW_DEMOTED where new requests are to be refused. */
  assertServes(path: string): void {
    if (!this.demoted || this.#options.demote !== 'refuse') return
    throw fail('SHADOW_DEMOTED', { package: path, code: this.#ended!.code, reason: this.#ended!.reason })
  }

  stats(): ShadowStats {
    const { backend, isa } = this.#runner.info
    return {
      backend,
      isa,
      compared: this.#compared,
      skipped: this.#skipped,
      rows: this.#rows,
      divergences: this.#divergences,
      ties: this.#ties,
      worst: this.#worst,
      allowed: this.#allowed,
      demoted: this.demoted,
      comparing: this.#comparison !== undefined,
      ...(this.#ended && { ended: this.#ended }),
    }
  }

  /** Ends the comparison that is under way, and allows no other. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#comparison
  }

  /** What an engine of the trusted path steps, once nothing else does. */
  takeOver(): { readonly runner: Runner; readonly capacity: Capacity } {
    const free = this.close()
    const inner = this.#runner
    const runner: Runner = {
      info: inner.info,
      step: (step, result) => free.then(() => inner.step(step, result)),
      memory: () => inner.memory(),
      dispose: () => inner.dispose(),
    }
    return { runner, capacity: this.#capacity }
  }

  #replayed(batch: readonly Assignment<Request>[]): Replayed[] {
    let row = 0
    return batch.flatMap((assignment) => {
      const at = row
      row += assignment.rows
      return assignment.rows > 0 ? [new Replayed(assignment, at, this.#blocks)] : []
    })
  }

  async #compare(sequences: readonly Replayed[], step: number): Promise<void> {
    for (const sequence of sequences) {
      await this.#replay(sequence)
      for (let i = 0; i < sequence.rows && !this.#closed && !this.#ended; i++) {
        this.#judge(sequence, i, step)
        await setImmediate()
      }
      if (this.#closed || this.#ended) return
    }
    this.#compared++
  }

  /** Computes a sequence; its rows are then the first ones of the trusted results. */
  async #replay(sequence: Replayed): Promise<void> {
    const most = this.#capacity.needs.wholeSequences ? sequence.known : this.#chunk
    while (sequence.computed < sequence.known && !this.#closed) {
      const behind = sequence.known - sequence.computed
      const last = behind <= Math.max(most, sequence.rows)
      const tokens = last ? behind : Math.min(most, behind - sequence.rows)
      const assignment = { sequence, tokens, blocks: 0, rows: last ? sequence.rows : 0 }
      pack(this.#step, [assignment], this.#capacity.needs.resets, { logits: 0, hidden: 0 })
      copyLogits(this.#step, this.#trustedOffsets)
      const started = performance.now()
      await this.#runner.step(this.#step, this.#trusted)
      sequence.computed += tokens
      await rest(REST * (performance.now() - started), this.#closing.signal)
    }
  }

  #judge(sequence: Replayed, index: number, step: number): void {
    const row = sequence.row + index
    const [live, trusted] = [logitsOf(this.#live, row, this.#vocab), logitsOf(this.#trusted, index, this.#vocab)]
    const { largest, deviation } = difference(live, trusted)
    const error = largest === 0 ? 0 : largest / deviation
    this.#rows++
    this.#worst = error > this.#worst || Number.isNaN(error) ? error : this.#worst
    const sampling = sequence.work.output === 'token' ? sequence.work.sampling : undefined
    const tokens = sampling
      ? { live: sampled(this.#live, row), trusted: sampled(this.#trusted, index) }
      : { live: -1, trusted: -1 }
    const close = error <= this.#allowed
    if (close && tokens.live === tokens.trusted) return
    // Of plain greedy rows it is known how far apart the logits of the two must lie; of others, that they are not the same.
    const greedy = sampling?.temperature === 0 && !penalises(sampling) && sampling.biasTokens.length === 0
    const lead = greedy ? trusted[tokens.trusted]! - trusted[tokens.live]! : 0
    if (close && largest > 0 && lead <= 2 * largest) {
      this.#ties++
      return
    }
    const position = sequence.known - sequence.rows + index
    const what = close ? 'token' : 'logits'
    this.#diverge({ step, position, what, error, allowed: this.#allowed, tokens })
  }

  #diverge(divergence: ShadowDivergence): void {
    this.#divergences++
    this.#tell({ type: 'divergence', ...divergence })
    const { maxDivergences, demote } = this.#options
    if (this.#divergences <= maxDivergences || demote === 'never') return
    const { backend, isa } = this.#runner.info
    const { step, position, what, error } = divergence
    const seen = `${this.#divergences} of ${this.#rows} rows diverge from ${backend} ${isa}, ${maxDivergences} may`
    this.#end('divergences_exceeded', `${seen}; the last in step ${step} at position ${position}: ${what}, ${error}`)
  }

  #end(code: ShadowEndCode, reason: string): void {
    this.#ended = { code, reason }
    this.#tell({ type: this.demoted ? 'demoted' : 'stopped', code, reason })
  }

  /** A fault of the callback is the caller's to hear of, and no matter of the comparison. */
  #tell(event: ShadowEvent): void {
    const { onEvent } = this.#options
    const warn = (message: string, code: string) => process.emitWarning(message, { type: 'IngotWarning', code })
    try {
      if (onEvent) onEvent(event)
      else if (event.type !== 'divergence') warn(`the shadow has ${event.type}: ${event.reason}`, event.code)
    } catch (error) {
      warn(`the onEvent of a shadow threw: ${(error as Error)?.message}`, 'SHADOW_CALLBACK')
    }
  }
}

/** Resolves after `milliseconds`, or when the signal aborts. */
const rest = (milliseconds: number, signal: AbortSignal) =>
  setTimeout(milliseconds, undefined, { signal }).catch(() => {})

const logitsOf = ({ logits }: ResultView, row: number, vocab: number) => logits.subarray(row * vocab, (row + 1) * vocab)

/** Largest difference of two rows, and the standard deviation of the second; NaN where only one of both has one. */
function difference(a: Float32Array, b: Float32Array): { readonly largest: number; readonly deviation: number } {
  let [largest, sum, squares] = [0, 0, 0]
  for (let i = 0; i < b.length; i++) {
    const [x, y] = [a[i]!, b[i]!]
    if (!Object.is(x, y)) largest = Math.max(largest, Math.abs(x - y))
    sum += y
    squares += y * y
  }
  const mean = sum / b.length
  return { largest, deviation: Math.sqrt(Math.max(0, squares / b.length - mean * mean)) }
}
