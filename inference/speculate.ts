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
}

/** What `speculative` may hold. */
export const speculativeSchema = z
  .strictObject({
    draft: z.string().min(1).optional(),
    lookup: z.boolean().optional(),
    tokens: z.int().min(1).max(64).default(4),
  })
  .refine(({ draft, lookup }) => (draft !== undefined) !== (lookup === true))
  .optional()
  .describe('{ draft: path } or { lookup: true }, with tokens from 1 to 64')

/** How an open model speculates. */
export interface Speculation {
  readonly by: 'draft' | 'lookup'
  /** Most tokens guessed at once. */
  readonly tokens: number
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

/** What a request's own guesses amounted to. */
export class Guesses {
  readonly #most: number
  /** Tokens to guess next. */
  #length: number
  /** Of verified steps. */
  proposed = 0
  accepted = 0
  /** Of this request alone, where guesses come from its own tokens. */
  readonly lookup: Lookup | undefined

  constructor({ by, tokens }: Speculation) {
    this.#most = tokens
    this.#length = tokens
    this.lookup = by === 'lookup' ? new Lookup() : undefined
  }

  /** Most tokens that `request` has use for now: each verified step adds one more than it accepts. */
  wanted({ work, known }: Request): number {
    return Math.min(this.#length, work.prompt.length + work.maxTokens - known - 1)
  }

  settle(proposed: number, accepted: number): void {
    this.proposed += proposed
    this.accepted += accepted
    this.#length = nextLength(this.#length, proposed, accepted, this.#most)
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
export function accepted(request: Request, proposed: number, result: ResultView, row: number): number {
  let count = 0
  while (count < proposed && sampled(result, row + count) === request.tokens[request.known + count]) count++
  return count
}

/** The token of row `row`. */
export function sampled(result: ResultView, row: number): number {
  return result.rows[(row * ROW_RESULT_BYTES) / 4]!
}
