/** One generation as its caller sees it: an async iterable of events, and a promise of the whole. */
import { TOP_LOGPROBS } from '../abi/ops/sample.ts'
import { type ResultView, ROW_RESULT_BYTES } from '../abi/step.ts'
import { fail } from '../errors.ts'
import type { Engine } from './engine.ts'
import type { Request } from './request.ts'
import type { Sampling } from './sampling.ts'
import type { Guesses } from './speculate.ts'
import type { Detokenizer } from './text/detokenizer.ts'
import { StopMatcher } from './text/stop.ts'
import type { Tokenizer } from './text/tokenizer.ts'

export interface TokenLogprob {
  readonly token: number
  /** Natural logarithm of the probability under the model, before penalties and temperature. */
  readonly logprob: number
}

export interface GenerationEvent {
  readonly token: number
  /** What this token adds to the text; empty while a character, or what may be a stop string, is incomplete. */
  readonly text: string
  /** Where logprobs are asked for. */
  readonly logprob?: number
  /** The most likely tokens, best first, where a number of them is asked for. */
  readonly topLogprobs?: readonly TokenLogprob[]
}

/** eos: an end-of-sequence token. stop: a stop string or stop token. length: maxTokens, or the context is full. */
export type FinishReason = 'eos' | 'stop' | 'length'

export interface GenerationResult {
  readonly text: string
  /** Every token sampled, the one that ended the generation included. */
  readonly tokens: readonly number[]
  readonly finishReason: FinishReason
  /** The stop string or the token that ended the generation. */
  readonly stopReason?: string | number
  readonly usage: {
    readonly promptTokens: number
    readonly completionTokens: number
    /** Prompt tokens whose state came from the prefix cache. */
    readonly cachedTokens: number
    /** Tokens that were guessed and verified, and those that were right; absent where nothing is guessed. */
    readonly proposedTokens?: number
    readonly acceptedTokens?: number
  }
  readonly timings: {
    /** In the queue, until the first step that computes part of the prompt. */
    readonly queuedMs: number
    /** From the call to the first token. */
    readonly firstTokenMs: number
    readonly totalMs: number
    /** Of the tokens after the first. */
    readonly tokensPerSecond: number
  }
  readonly seed: number | bigint
  readonly logprobs?: readonly (TokenLogprob & { readonly topLogprobs: readonly TokenLogprob[] })[]
}

/** A request that passed every check. */
export interface Prepared {
  readonly prompt: Int32Array
  readonly sampling: Sampling
  /** Most tokens to generate: what was asked for, and what the context has room for. */
  readonly maxTokens: number
  readonly eosTokens: ReadonlySet<number>
  readonly tokenizer: Tokenizer | undefined
  readonly guesses: Guesses | undefined
  /** What runs it. */
  readonly engine: Engine
}

/** Of one RowResult: token, logprob, then the alternatives. */
const ROW_WORDS = ROW_RESULT_BYTES / 4

type Finish = { readonly reason: FinishReason; readonly stopReason?: string | number }
type Mutable<T> = { -readonly [K in keyof T]: T[K] }

/**
 * Starts at once. Every failure, that of a bad option included, arrives where the generation is awaited: the iterator
 * throws it and result() rejects with it. Events wait for a slow consumer; the engine does not. Leaving the iteration
 * early cancels the request.
 */
export class Generation implements AsyncIterable<GenerationEvent> {
  readonly #startedAt = performance.now()
  #prepared: Prepared | undefined
  #request: Request | undefined
  #detokenizer: Detokenizer | undefined
  #stops = new StopMatcher([])

  /** Sampled, without text yet. */
  readonly #raw: Mutable<GenerationEvent>[] = []
  /** With text; those before `read` were taken. */
  readonly #events: GenerationEvent[] = []
  #read = 0
  #text = ''
  #sampled = 0
  #firstAt = 0
  #finish: Finish | undefined

  #ended = false
  #error: unknown
  #wakers: (() => void)[] = []
  readonly #result: Promise<GenerationResult>
  #resolve!: (result: GenerationResult) => void
  #reject!: (error: unknown) => void

  constructor(prepare: () => Promise<Prepared>) {
    this.#result = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    // A caller who only iterates never asks for the result: its failure is thrown there.
    this.#result.catch(() => {})
    this.#start(prepare).catch((error) => this.#fail(error))
  }

  /** The whole, when it is complete; rejects with what ended the generation otherwise. */
  result(): Promise<GenerationResult> {
    return this.#result
  }

  /** Ends the generation with ABORTED; nothing happens when it is over. */
  cancel(): void {
    const error = fail('ABORTED', {})
    if (this.#request) this.#prepared!.engine.cancel(this.#request, error)
    else this.#fail(error)
  }

  [Symbol.asyncIterator](): AsyncIterator<GenerationEvent, undefined> {
    return {
      next: () => this.#next(),
      return: async () => {
        this.cancel()
        return { done: true, value: undefined }
      },
    }
  }

  async #next(): Promise<IteratorResult<GenerationEvent, undefined>> {
    while (this.#read === this.#events.length) {
      if (this.#ended && this.#error !== undefined) throw this.#error
      if (this.#ended) return { done: true, value: undefined }
      await new Promise<void>((resolve) => this.#wakers.push(resolve))
    }
    return { done: false, value: this.#events[this.#read++]! }
  }

  async #start(prepare: () => Promise<Prepared>): Promise<void> {
    const prepared = await prepare()
    if (this.#ended) return
    const { prompt, sampling, maxTokens, tokenizer, guesses, engine } = prepared
    this.#prepared = prepared
    this.#detokenizer = tokenizer?.detokenizer()
    this.#stops = new StopMatcher(sampling.stop)
    if (maxTokens === 0) {
      this.#finish = { reason: 'length' }
      this.#complete()
      return
    }
    const { signal, deadlineMs } = sampling
    const sink = {
      row: (result: ResultView, row: number) => this.#row(prepared, result, row),
      failed: (error: unknown) => this.#fail(error),
    }
    const lifetime = { signal, deadlineMs, since: this.#startedAt }
    const work = { prompt, output: 'token', sampling, maxTokens, guesses, ...lifetime, sink } as const
    this.#request = engine.submit(work)
  }

  /** Takes a sampled token; true when it is the last. */
  #row(prepared: Prepared, result: ResultView, row: number): boolean {
    if (this.#sampled++ === 0) this.#firstAt = performance.now()
    const event = readEvent(result, row, prepared.sampling.logprobs)
    this.#raw.push(event)
    this.#finish = finishOf(event.token, this.#sampled, prepared)
    // Only a stop string needs the text now; else it is made while the next step runs.
    if (prepared.sampling.stop.length > 0) this.#publish()
    else if (this.#raw.length === 1) queueMicrotask(() => this.#publishSafely())
    return this.#finish !== undefined
  }

  /** Gives the raw events their text and hands them to the consumer. */
  #publish(): void {
    for (const event of this.#raw) {
      const last = this.#sampled === this.#events.length + 1 ? this.#finish : undefined
      event.text = this.#textOf(event.token, last)
      this.#text += event.text
      this.#events.push(event)
    }
    this.#raw.length = 0
    if (this.#finish) this.#complete()
    else this.#wake()
  }

  #publishSafely(): void {
    if (this.#ended) return
    try {
      this.#publish()
    } catch (error) {
      if (this.#request) this.#prepared!.engine.cancel(this.#request, error)
      this.#fail(error)
    }
  }

  #textOf(token: number, last: Finish | undefined): string {
    if (!this.#detokenizer) return ''
    const visible = last === undefined || last.reason === 'length'
    const piece = (visible ? this.#detokenizer.push(token) : '') + (last ? this.#detokenizer.flush() : '')
    const { text, stop } = this.#stops.push(piece)
    if (stop !== undefined) this.#finish = { reason: 'stop', stopReason: stop }
    return last && stop === undefined ? text + this.#stops.flush() : text
  }

  #complete(): void {
    if (this.#ended) return
    this.#ended = true
    this.#resolve(this.#summary(this.#prepared!, this.#finish!))
    this.#wake()
  }

  #fail(error: unknown): void {
    if (this.#ended) return
    this.#ended = true
    this.#error = error
    this.#reject(error)
    this.#wake()
  }

  #wake(): void {
    for (const wake of this.#wakers.splice(0)) wake()
  }

  #summary({ prompt, sampling, guesses }: Prepared, { reason, stopReason }: Finish): GenerationResult {
    const endedAt = performance.now()
    const count = this.#events.length
    const decodeMs = endedAt - this.#firstAt
    return {
      text: this.#text,
      tokens: this.#events.map((event) => event.token),
      finishReason: reason,
      ...(stopReason !== undefined && { stopReason }),
      usage: {
        promptTokens: prompt.length,
        completionTokens: count,
        cachedTokens: this.#request?.cachedTokens ?? 0,
        ...(guesses && { proposedTokens: guesses.proposed, acceptedTokens: guesses.accepted }),
      },
      timings: {
        queuedMs: this.#request ? this.#request.admittedAt - this.#startedAt : 0,
        firstTokenMs: count > 0 ? this.#firstAt - this.#startedAt : 0,
        totalMs: endedAt - this.#startedAt,
        tokensPerSecond: count > 1 ? ((count - 1) * 1000) / decodeMs : 0,
      },
      seed: sampling.seed,
      ...(sampling.logprobs >= 0 && {
        logprobs: this.#events.map(({ token, logprob, topLogprobs }) => ({
          token,
          logprob: logprob!,
          topLogprobs: topLogprobs ?? [],
        })),
      }),
    }
  }
}

/** `logprobs`: alternatives wanted, -1 for no logprobs at all. */
function readEvent(result: ResultView, row: number, logprobs: number): Mutable<GenerationEvent> {
  const at = row * ROW_WORDS
  const event: Mutable<GenerationEvent> = { token: result.rows[at]!, text: '' }
  if (logprobs >= 0) event.logprob = result.rowsF32[at + 1]!
  if (logprobs > 0) {
    const top: TokenLogprob[] = []
    for (let i = 0; i < logprobs && result.rows[at + 2 + i]! >= 0; i++) {
      top.push({ token: result.rows[at + 2 + i]!, logprob: result.rowsF32[at + 2 + TOP_LOGPROBS + i]! })
    }
    event.topLogprobs = top
  }
  return event
}

/** Whether the `count`-th token ends the generation; stop strings are found in the text. */
function finishOf(token: number, count: number, prepared: Prepared): Finish | undefined {
  const { sampling, tokenizer, eosTokens, maxTokens } = prepared
  if (sampling.stopTokens.has(token)) return { reason: 'stop', stopReason: token }
  if (sampling.stop.length > 0) {
    const spelled = tokenizer?.isSpecial(token) ? tokenizer.tokenOf(token) : undefined
    if (spelled !== undefined && sampling.stop.includes(spelled)) return { reason: 'stop', stopReason: spelled }
  }
  if (!sampling.ignoreEos && eosTokens.has(token)) return { reason: 'eos', stopReason: token }
  return count >= maxTokens ? { reason: 'length' } : undefined
}
