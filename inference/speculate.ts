/**
 * Speculation: tokens are guessed cheaply, and one step verifies all of them at once.
 *
 * A guess stands behind the known tokens of a request. A step that computes it samples a row after the last known token
 * and one after each guess. What a row samples depends on its logits, the seed and its position alone, and its logits on
 * nothing but the tokens before it: so every row up to the first guess that differs is, bit for bit, what decoding one by
 * one would have sampled, and the rows behind it are dropped. Output does not change; only how many steps it takes does.
 */
import { z } from 'zod'
import { type ResultView, ROW_RESULT_BYTES } from '../abi/step.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { Lookup } from './lookup.ts'
import { invalid } from './options.ts'
import type { Request } from './request.ts'
import type { StateNeeds } from './state.ts'

export interface SpeculativeOptions {
  /** Path of a package with the same vocabulary: a smaller model that guesses. */
  draft?: string | undefined
  /** Guess what followed the latest tokens when the sequence had them before. Either this or `draft`. */
  lookup?: boolean | undefined
  /** Most tokens guessed at once. Default 4. */
  tokens?: number | undefined
  /**
   * What a guess costs, in plain steps of the model: a request whose guesses are right less often than this decodes plainly,
   * and tries again now and then. 0: never gives up. Default: by the bytes of the weights of both, see guessCost().
   */
  cost?: number | undefined
}

/** What `speculative` may hold. */
export const speculativeSchema = z
  .strictObject({
    draft: z.string().min(1).optional(),
    lookup: z.boolean().optional(),
    tokens: z.int().min(1).max(64).default(4),
    cost: z.number().min(0).max(64).optional(),
  })
  .refine(({ draft, lookup }) => (draft !== undefined) !== (lookup === true))
  .optional()
  .describe('{ draft: path } or { lookup: true }, with tokens from 1 to 64 and cost from 0 to 64')

/** How an open model speculates. */
export interface Speculation {
  readonly by: 'draft' | 'lookup'
  /** Most tokens guessed at once. */
  readonly tokens: number
  /** Of one guess, in plain steps; undefined: what guessCost() says. */
  readonly cost: number | undefined
}

export interface SpeculationStats {
  /** Guesses that a step verified, and those that were what it sampled. */
  readonly proposed: number
  readonly accepted: number
  /** accepted / proposed; 0 before any. */
  readonly acceptance: number
  /** Steps of the draft model, and the mean time that its backend reports of one. */
  readonly draftSteps: number
  readonly draftMicrosecondsPerStep: number
}

/** Throws OPTION_INVALID where a plan cannot take tokens back, or cannot continue a sequence. */
export function assertRewinds(plan: ExecutionPlan, needs: StateNeeds, tokens: number, whose: string): void {
  const state = plan.states.find(({ rewind }) => rewind < tokens)
  const expected = `${whose} whose state can take back ${tokens} tokens`
  if (state) throw invalid('speculative', expected, `state ${state.name}, which takes back ${state.rewind}`)
  if (needs.wholeSequences) throw invalid('speculative', expected, 'a plan that computes whole sequences')
}

/**
 * How many tokens to guess next, after `accepted` of `proposed` were right: one more when all were, else one more than
 * were right. A function of the request's own history: what else runs does not matter.
 */
export function nextLength(length: number, proposed: number, accepted: number, most: number): number {
  if (proposed === 0) return length
  return Math.min(most, (accepted === proposed ? length : accepted) + 1)
}

/** Bytes of weights that caches may hold. */
const CACHED_BYTES = 2 ** 25
/**
 * What one more token adds to a step, as a share of it: where weights are read from caches, and where memory is what a step
 * waits for (README: the small model that ships, 1 and 16 sequences; one of 1B parameters at q4, 1 and 8).
 */
const EXTRA = { cached: 0.65, memory: 0.05 } as const

const weightBytes = ({ tensors }: ExecutionPlan) => tensors.reduce((sum, { bytes }) => sum + bytes, 0)

/**
 * What a guess costs, in plain steps of the model: a row more to verify, and a step of the draft. An estimate from the plans
 * alone, so that how much is guessed never depends on a clock.
 */
export function guessCost(model: ExecutionPlan, draft?: ExecutionPlan): number {
  const bytes = Math.max(1, weightBytes(model))
  const verify = Math.max(EXTRA.memory, EXTRA.cached * Math.min(1, CACHED_BYTES / bytes))
  return verify + (draft ? weightBytes(draft) / bytes : 0)
}

/** Steps that guesses may lose before they pause, and the most that they can have gained and lose again. */
const CREDIT = { first: 2, most: 4 } as const
/** Tokens of a first pause; each that follows is twice as long, up to the most. */
const PAUSE = { first: 8, most: 128 } as const

/**
 * What a request's own guesses amounted to. Each that is right saves a step, and each costs its share of one: while that
 * balance is in credit, guessing goes on; when it is spent, guessing pauses, and is tried again with one token.
 */
export class Guesses {
  readonly #most: number
  readonly #cost: number
  /** Tokens to guess next. */
  #length: number
  /** Steps. */
  #credit: number = CREDIT.first
  #pause: number = PAUSE.first
  /** Known tokens from which on there are guesses. */
  #resumeAt = 0
  /** Of verified steps. */
  proposed = 0
  accepted = 0
  /** Of this request alone, where guesses come from its own tokens. */
  readonly lookup: Lookup | undefined

  constructor({ by, tokens, cost = 0 }: Speculation) {
    this.#most = tokens
    this.#cost = cost
    this.#length = tokens
    this.lookup = by === 'lookup' ? new Lookup() : undefined
  }

  /** Most tokens that `request` has use for now: each verified step adds one more than it accepts. */
  wanted({ work, known }: Pick<Request, 'work' | 'known'>): number {
    if (known < this.#resumeAt) return 0
    return Math.min(this.#length, work.prompt.length + work.maxTokens - known - 1)
  }

  /** Of `proposed` guesses behind `known` tokens, `accepted` were right. */
  settle(proposed: number, accepted: number, known: number): void {
    this.proposed += proposed
    this.accepted += accepted
    this.#length = nextLength(this.#length, proposed, accepted, this.#most)
    this.#credit = Math.min(CREDIT.most, this.#credit + accepted - this.#cost * proposed)
    if (this.#credit >= CREDIT.first) this.#pause = PAUSE.first
    if (this.#credit >= 0) return
    this.#resumeAt = known + accepted + 1 + this.#pause
    this.#pause = Math.min(2 * this.#pause, PAUSE.most)
    this.#credit = 0
    this.#length = 1
  }
}

/** Whether guesses for `request` could be verified by the next step: it is one token behind. */
export function mayGuess(request: Request): boolean {
  return request.guesses !== undefined && request.known - request.computed === 1 && request.guesses.wanted(request) > 0
}

/** Drops the guesses of `request` that no step had room for, and looks up new ones where it does. */
export function lookUp(request: Request): void {
  request.proposed = 0
  const { guesses, tokens, known, computed } = request
  if (!guesses?.lookup) return
  // A long prompt is indexed while it is computed.
  if (mayGuess(request)) request.proposed = guesses.lookup.propose(tokens, known, guesses.wanted(request))
  else guesses.lookup.index(tokens, Math.min(computed, known - 1))
}

/**
 * How many of the `proposed` tokens behind `request.known` are what the rows of `result` from `row` on sampled. A row is
 * only looked at when all guesses before it were right.
 */
function accepted(request: Request, proposed: number, result: ResultView, row: number): number {
  let count = 0
  while (count < proposed && sampled(result, row + count) === request.tokens[request.known + count]) count++
  return count
}

/**
 * How many of the `tokens` that a step computed for `request` are guesses to drop: from the first on that was not sampled.
 * `count` is told.
 */
export function verify(
  request: Request,
  tokens: number,
  result: ResultView,
  row: number,
  count: { proposed: number; accepted: number },
): number {
  const proposed = Math.max(0, request.computed + tokens - request.known)
  request.proposed = 0
  if (proposed === 0) return 0
  const right = accepted(request, proposed, result, row)
  request.guesses!.settle(proposed, right, request.known)
  count.proposed += proposed
  count.accepted += right
  return proposed - right
}

/** The token of row `row`. */
export function sampled(result: ResultView, row: number): number {
  return result.rows[(row * ROW_RESULT_BYTES) / 4]!
}
