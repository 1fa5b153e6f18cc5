/** What a shadow (shadow.ts) is asked for, what it tells, and what is refused before it starts. */
import { z } from 'zod'
import type { Runner } from '../compute/device.ts'
import { pairTolerance } from '../compute/tolerances.ts'
import { fail } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { type Capacity, capacity } from './capacity.ts'
import { invalid } from './options.ts'

export interface ShadowOptions {
  /** Path of another package of the same model. Default: the package that is opened. */
  package?: string | undefined
  /** Where the trusted path runs. Default cpu. */
  backend?: string | undefined
  isa?: string | undefined
  threads?: number | undefined
  /** Last day of the dual path, "2027-03-01" (UTC): after it the model does not open with this option. */
  until: string
  /** Share of steps that are compared. Default 0.01. */
  sample?: number | undefined
  /** Of the choice of steps. Default 0. */
  seed?: number | undefined
  /**
   * Largest difference of two logits of a row, over the standard deviation of the row. Default: 0 between instruction sets
   * of one deterministic backend, else by what the weights of both round (compute/tolerances.ts).
   */
  tolerance?: number | undefined
  /** Rows that may diverge before the live path is demoted. Default 0. */
  maxDivergences?: number | undefined
  /** What becomes of new requests then: the trusted path runs them (default), they are refused, or nothing changes. */
  demote?: 'trusted' | 'refuse' | 'never' | undefined
  /** Told of every divergence, and once of the end. Default: the end is a warning of the process. */
  onEvent?: ((event: ShadowEvent) => void) | undefined
}

/** What `shadow` may hold. */
export const shadowSchema = z
  .strictObject({
    package: z.string().min(1).optional(),
    backend: z.string().default('cpu'),
    isa: z.string().default(''),
    threads: z.int().min(1).max(1024).optional(),
    until: z.iso.date(),
    sample: z.number().gt(0).max(1).default(0.01),
    seed: z.int().min(0).max(0xffffffff).default(0),
    tolerance: z.number().min(0).optional(),
    maxDivergences: z.int().min(0).default(0),
    demote: z.enum(['trusted', 'refuse', 'never']).default('trusted'),
    onEvent: z.custom<(event: ShadowEvent) => void>((value) => typeof value === 'function').optional(),
  })
  .optional()
  .describe(
    '{ until: "YYYY-MM-DD", backend, package, isa, threads, sample above 0 and up to 1, seed, tolerance, maxDivergences, demote: "trusted", "refuse" or "never", onEvent }',
  )
export type ParsedShadow = NonNullable<z.output<typeof shadowSchema>>

/** A row on which the two paths do not agree. */
export interface ShadowDivergence {
  /** Number of the step since the model was opened, from 1. */
  readonly step: number
  /** Of the row's token in its sequence. */
  readonly position: number
  /** token: the logits agree, and what was sampled from them does not. */
  readonly what: 'logits' | 'token'
  /** Largest difference of two logits over the row's standard deviation, and what is allowed. */
  readonly error: number
  readonly allowed: number
  /** What was sampled; -1 where nothing is. */
  readonly tokens: { readonly live: number; readonly trusted: number }
}

/** divergences_exceeded: the live path is demoted. shadow_failed, expired: nothing is compared any more. */
export type ShadowEndCode = 'divergences_exceeded' | 'shadow_failed' | 'expired'
export interface ShadowEnd {
  readonly code: ShadowEndCode
  readonly reason: string
}
export type ShadowEvent =
  | ({ readonly type: 'divergence' } & ShadowDivergence)
  | ({ readonly type: 'demoted' | 'stopped' } & ShadowEnd)

export interface ShadowStats {
  readonly backend: string
  readonly isa: string
  /** Steps that were chosen and compared; that were chosen while another was compared, and left. */
  readonly compared: number
  readonly skipped: number
  readonly rows: number
  /** Rows that diverged. */
  readonly divergences: number
  /** Rows whose tokens differ as their logits may: no divergence. */
  readonly ties: number
  /** Largest error of any row, as in ShadowDivergence, and what is allowed. */
  readonly worst: number
  readonly allowed: number
  readonly demoted: boolean
  /** Whether a step is being compared. */
  readonly comparing: boolean
  /** Why nothing is compared any more. */
  readonly ended?: ShadowEnd
}

/** Milliseconds of the last moment of the day `until`. */
export const endOf = (until: string) => Date.parse(`${until}T23:59:59.999Z`)

/** Throws SHADOW_EXPIRED after the last day, and OPTION_INVALID where there are no logits to compare. */
export function assertShadow({ until }: ParsedShadow, plan: ExecutionPlan, path: string): void {
  if (Date.now() > endOf(until)) throw fail('SHADOW_EXPIRED', { package: path, until })
  if (plan.outputs.logits === undefined) throw invalid('shadow', 'a model that has logits to compare', plan.model)
}

/** Of the trusted path: room for the same sequences, so that it can take over. Throws OPTION_INVALID. */
export function shadowCapacity(plan: ExecutionPlan, target: Capacity, path: string): Capacity {
  const { contextTokens, maxSlots, limits, queueLimit, needs, blocks, chunk, prefixCache } = target
  if (plan.maxContext < contextTokens)
    throw invalid('shadow', `a package with a context of ${contextTokens}, that of the model`, plan.maxContext)
  const alike = { contextTokens, maxSlots, maxTokensPerStep: limits.tokens, maxRows: limits.rows, queueLimit }
  const own = capacity(plan, { ...alike, prefillChunk: chunk, ...(!prefixCache && { prefixCache }) }, path)
  return own.needs.blockTokens === needs.blockTokens ? { ...own, blocks } : own
}

/** A plan, and what runs it. */
interface Path {
  readonly runner: Runner
  readonly plan: ExecutionPlan
}

/** How far rows of the two may be apart: one plan gives the same bits on every instruction set of a deterministic backend. */
export function shadowTolerance({ tolerance }: ParsedShadow, live: Path, trusted: Path): number {
  const [a, b] = [live.runner.info, trusted.runner.info]
  const one = live.plan === trusted.plan && a.backend === b.backend && a.deterministic && b.deterministic
  return tolerance ?? (one ? 0 : pairTolerance(live.plan, trusted.plan))
}

/** Weights of a matrix above which a product of one row holds the event loop for too long. */
const MOST_ON_LOOP = 2 ** 21

/**
 * Throws OPTION_INVALID where a backend that computes on the event loop would hold it for more than 5 ms, or where outputs
 * are not to depend on the batch, and those of the trusted path would.
 */
export function assertCompares({ info }: Runner, plan: ExecutionPlan, deterministic = false): void {
  if (deterministic && !info.deterministic)
    throw invalid('shadow', 'a backend whose outputs do not depend on the batch', info.backend)
  if (!info.onEventLoop || plan.tensors.every(({ rows, cols }) => rows * cols <= MOST_ON_LOOP)) return
  throw invalid('shadow', 'a backend that computes off the event loop, for a model of this size', info.backend)
}
