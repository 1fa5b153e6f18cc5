/** One request inside the engine: what was asked, and how far it is. */
import type { ResultView } from '../abi/step.ts'
import type { Lifetime } from './lifetime.ts'
import type { CachedBlock } from './prefix-cache.ts'
import type { Sampling } from './sampling.ts'
import type { Sequence } from './scheduler.ts'
import type { Guesses } from './speculate.ts'

/** What a row of the request is wanted for. */
export type Output = 'token' | 'logits' | 'hidden'

/** Receives what the engine computes. The views belong to the engine and are valid during the call only. */
export interface Sink {
  /** Row `row` of `result` belongs to the token at `position`. True: the request needs no more. */
  row(result: ResultView, row: number, position: number): boolean
  /** The request ended without completing; nothing follows. */
  failed(error: unknown): void
}

export interface Work extends Lifetime {
  readonly prompt: Int32Array
  readonly output: Output
  /** Required for output 'token'. */
  readonly sampling?: Sampling | undefined
  /** Most tokens that the request adds to its prompt. */
  readonly maxTokens: number
  /** How its next tokens are guessed; absent: not at all. */
  readonly guesses?: Guesses | undefined
  readonly sink: Sink
}

export class Request implements Sequence {
  readonly arrival: number
  readonly work: Work
  readonly allRows: boolean
  readonly guesses: Guesses | undefined
  /** Prompt, then output, then guesses. The last known one is a reference while the step that samples it is in flight. */
  tokens: Int32Array
  known: number
  proposed = 0
  computed = 0
  blocks: number[] = []
  copy = false
  /** 0: not running. */
  slot = 0
  done = false
  /** Held for the duration of a step: the cached block that the step copies. */
  copySource = 0

  /** Hashes of the full blocks of `tokens`, as far as they were needed. */
  readonly keys: string[] = []
  /** Blocks that are registered with the prefix cache, and the entry of the last. */
  registered = 0
  entry: CachedBlock | undefined
  /** Version of the cache at the last lookup. */
  matchedAt = -1

  /** For timings and usage: milliseconds of performance.now(). */
  readonly submittedAt = performance.now()
  admittedAt = 0
  /** Prompt tokens that came from the cache at the first admission. */
  cachedTokens = 0
  /** `known` when last admitted. */
  knownAtAdmission = 0
  /** Takes listener and timer away. */
  unwatch: () => void = () => {}

  constructor(arrival: number, work: Work) {
    this.arrival = arrival
    this.work = work
    this.allRows = work.output === 'logits'
    this.guesses = work.guesses
    this.known = work.prompt.length
    this.tokens = work.prompt
  }

  /** Tokens of the prompt and the longest output. */
  get mostTokens(): number {
    return this.work.prompt.length + this.work.maxTokens
  }

  /** Makes `tokens` as long as the request can get; a queue of prompts does not need it yet. */
  grow(): void {
    const length = this.mostTokens
    if (this.tokens.length >= length) return
    const tokens = new Int32Array(length)
    tokens.set(this.tokens)
    this.tokens = tokens
  }

  /** The last known token, at `position`; or a reference to it, which it takes the place of later. */
  put(position: number, token: number): void {
    this.tokens[position] = token
    this.known = position + 1
  }
}

/** Almost always at the end: only preempted sequences come back to an earlier place. */
export function insertByArrival(list: Request[], request: Request): void {
  let index = list.length
  while (index > 0 && list[index - 1]!.arrival > request.arrival) index--
  list.splice(index, 0, request)
}
