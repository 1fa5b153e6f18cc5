/** Capacities of an open model: from its options and plan to the sizes that are fixed for its life. */
import { z } from 'zod'
import type { StepLimits } from '../abi/step.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { invalid, parseOptions } from './options.ts'
import { MAX_LOGIT_BIAS } from './sampling.ts'
import { assertRewinds, type Speculation, type SpeculativeOptions, speculativeSchema } from './speculate.ts'
import { assertForks, type StateNeeds, stateNeeds } from './state.ts'

export interface ModelOptions {
  /** Sequences that run at once. Default 16. */
  maxSlots?: number | undefined
  /** Longest sequence, prompt and output. Default: what the model allows, at most 4096. */
  contextTokens?: number | undefined
  /** Token budget of one step, prompts, outputs and guesses together. Default: at least 256. */
  maxTokensPerStep?: number | undefined
  /** Rows of logits of one step. Default: one a slot and guess, or up to 64 while they stay under 8 MiB. */
  maxRows?: number | undefined
  /** Requests that may wait for a slot before generate() fails with QUEUE_FULL. Default 1024. */
  queueLimit?: number | undefined
  /** Reuse the state of prompt beginnings seen before. Default: where the states of the model can be forked anywhere. */
  prefixCache?: boolean | undefined
  /** Blocks of paged state, without the dump. Default: enough for maxSlots full contexts. */
  blocks?: number | undefined
  /** Alternatively, bytes for all state. */
  stateBytes?: number | undefined
  /** Most prompt tokens that one sequence computes in a step. Default: the token budget. */
  prefillChunk?: number | undefined
  /** Guess tokens and verify many in one step: the same output in fewer steps. Default: don't. */
  speculative?: SpeculativeOptions | undefined
  /** For tests: every n steps the latest sequence that has progressed is preempted. */
  preemptEvery?: number | undefined
}

/** Beyond any memory: what asks for more than this many blocks fails with OUT_OF_MEMORY. */
const MAX_BLOCKS = 2 ** 30

const count = (least: number, most: number) =>
  z.int().min(least).max(most).optional().describe(`an integer from ${least} to ${most}`)

/** The fields of ModelOptions, for whoever composes them with others. */
export const modelShape = {
  maxSlots: count(1, 4096),
  contextTokens: count(1, 2 ** 24),
  maxTokensPerStep: count(1, 2 ** 20),
  maxRows: count(1, 2 ** 20),
  queueLimit: count(0, 2 ** 31),
  prefixCache: z.boolean().optional().describe('a boolean'),
  blocks: count(1, MAX_BLOCKS),
  stateBytes: count(1, Number.MAX_SAFE_INTEGER),
  prefillChunk: count(1, 2 ** 20),
  speculative: speculativeSchema,
  preemptEvery: count(1, 2 ** 31),
}
const modelSchema = z.strictObject(modelShape)

export interface Capacity {
  readonly contextTokens: number
  readonly maxSlots: number
  readonly queueLimit: number
  /** Most tokens of one sequence in a step, guesses not counted. */
  readonly chunk: number
  readonly prefixCache: boolean
  readonly preemptEvery: number
  readonly speculation: Speculation | undefined
  readonly needs: StateNeeds
  /** With the three below: what Backend.open asks for. */
  readonly limits: StepLimits
  readonly blocks: number
  readonly slots: number
}

/** Throws OPTION_UNKNOWN or OPTION_INVALID, or PLAN_INVALID for states that no option can make fit. */
export function capacity(plan: ExecutionPlan, options: unknown, path: string): Capacity {
  const given = parseOptions(modelSchema, 'open', options)
  const maxSlots = given.maxSlots ?? 16
  const contextTokens = given.contextTokens ?? Math.min(plan.maxContext, 4096)
  if (contextTokens > plan.maxContext) {
    throw invalid('contextTokens', `at most ${plan.maxContext}, the context of the model`, contextTokens)
  }
  const needs = stateNeeds(plan, contextTokens, path)
  const speculation = given.speculative && speculationOf(given.speculative)
  if (speculation) assertRewinds(plan, needs, speculation.tokens, 'a model')
  const verified = maxSlots * (1 + (speculation?.tokens ?? 0))
  const leastTokens = Math.max(maxSlots, needs.wholeSequences ? contextTokens : 1)
  const tokens = atLeast(
    'maxTokensPerStep',
    given.maxTokensPerStep ?? Math.max(256, leastTokens, verified),
    leastTokens,
  )
  const rows = atLeast('maxRows', given.maxRows ?? defaultRows(plan, verified), maxSlots)
  const blocksPerSequence = Math.ceil(contextTokens / needs.blockTokens)
  if (given.prefixCache) assertForks(plan)
  const prefixCache = (given.prefixCache ?? true) && needs.prefixReuse
  // A full context whose blocks are all cached copies its last one before it gives the cached one back.
  const leastBlocks = blocksPerSequence + (prefixCache ? 1 : 0)
  const enough = Math.max(maxSlots * blocksPerSequence, leastBlocks)
  return {
    contextTokens,
    maxSlots,
    queueLimit: given.queueLimit ?? 1024,
    chunk: needs.wholeSequences ? tokens : Math.min(given.prefillChunk ?? tokens, tokens),
    prefixCache,
    preemptEvery: given.preemptEvery ?? 0,
    speculation,
    needs,
    limits: {
      tokens,
      rows,
      sequences: maxSlots,
      blocksPerSequence,
      history: maxSlots * contextTokens,
      biases: maxSlots * MAX_LOGIT_BIAS,
      copies: maxSlots,
    },
    blocks: 1 + Math.min(MAX_BLOCKS, blockCount(given, needs, maxSlots, enough, leastBlocks)),
    slots: 1 + maxSlots,
  }
}

function blockCount(
  given: { blocks?: number | undefined; stateBytes?: number | undefined },
  needs: StateNeeds,
  maxSlots: number,
  enough: number,
  least: number,
): number {
  if (given.blocks !== undefined) return atLeast('blocks', given.blocks, least)
  if (given.stateBytes === undefined || needs.bytesPerBlock === 0) return enough
  // Slots have copies, from which a failed step is taken back.
  const fixed = needs.bytesPerBlock + 2 * (1 + maxSlots) * needs.bytesPerSlot
  const bytes = atLeast('stateBytes', given.stateBytes, fixed + least * needs.bytesPerBlock)
  return Math.floor((bytes - fixed) / needs.bytesPerBlock)
}

/** Of the draft model that guesses for a model of `target`: room for the same sequences. Throws OPTION_INVALID. */
export function draftCapacity(plan: ExecutionPlan, target: Capacity, path: string): Capacity {
  const { contextTokens, maxSlots, limits } = target
  if (plan.maxContext < contextTokens) {
    const expected = `a draft with a context of ${contextTokens}, that of the model (or lower contextTokens)`
    throw invalid('speculative', expected, plan.maxContext)
  }
  const options = { contextTokens, maxSlots, maxTokensPerStep: limits.tokens, maxRows: maxSlots, prefixCache: false }
  const own = capacity(plan, options, path)
  // A slot of the draft goes back to where its next request begins to differ.
  assertRewinds(plan, own.needs, contextTokens, 'a draft')
  return own
}

function speculationOf({
  draft,
  tokens,
  cost,
}: {
  draft?: string | undefined
  tokens: number
  cost?: number | undefined
}): Speculation {
  return { by: draft === undefined ? 'lookup' : 'draft', tokens, cost }
}

/** Rows beyond those that sample only serve `logits()`; their copies out of the step must not hold the event loop. */
function defaultRows(plan: ExecutionPlan, sampling: number): number {
  return Math.max(sampling, Math.min(64, Math.floor(2 ** 21 / plan.vocab)))
}

function atLeast(option: string, value: number, least: number): number {
  if (value < least) throw invalid(option, `at least ${least} for these slots and this context`, value)
  return value
}
