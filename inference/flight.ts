/**
 * A step on its way: what it computes, and the buffers that are the runner's until it settles.
 *
 * A runner of depth 2 is given the next step while this one runs, so that it never waits for JavaScript. That step is
 * scheduled as if this one had succeeded: its requests advance to where they will be, and of a token that nobody has read
 * yet its reference stands among the known ones. The commit puts the token there.
 */
import {
  createResult,
  createStep,
  type ResultOffsets,
  type ResultView,
  rowReference,
  type StepLimits,
  type StepView,
} from '../abi/step.ts'
import type { Runner } from '../compute/device.ts'
import { fail, IngotError } from '../errors.ts'
import { penalises } from './pack.ts'
import type { Request } from './request.ts'
import type { Assignment } from './scheduler.ts'

/** Whether the next step of `request` cannot be packed before its tokens are read: a penalty looks at all of them. */
export const needsTokens = ({ work: { sampling } }: Request): boolean => sampling !== undefined && penalises(sampling)

/** Why a step failed, as an error of ours. */
export function stepError(cause: unknown): IngotError {
  if (cause instanceof IngotError) return cause
  const reason = cause instanceof Error ? cause.message : String(cause)
  return fail('STEP_FAILED', { where: 'the backend', reason }, cause)
}

export class Flight {
  readonly step: StepView
  readonly #rows: number
  /** Where the results of the next step may go. */
  room: { readonly view: ResultView; readonly offsets: ResultOffsets }

  /** Of the step under way, as long as it is: */
  batch: readonly Assignment<Request>[] = []
  result: ResultView
  /** Why it failed, or undefined. */
  settled: Promise<unknown> = Promise.resolve()
  /** Whether its requests are already where it takes them. */
  advanced = false

  constructor(limits: StepLimits) {
    this.step = createStep(limits)
    this.#rows = limits.rows
    this.room = createResult(limits.rows, { vocab: 0, hidden: 0 })
    this.result = this.room.view
  }

  /** Makes room for results of these widths; a step under way keeps its own. Throws OUT_OF_MEMORY. */
  widen(widths: { readonly vocab: number; readonly hidden: number }): void {
    this.room = createResult(this.#rows, widths)
  }

  /** Submits the packed step, its results to go to `result`, or to the room made for them. */
  launch(runner: Runner, result = this.room.view): void {
    this.advanced = false
    this.result = result
    this.settled = this.#run(runner)
  }

  async #run(runner: Runner): Promise<unknown> {
    try {
      await runner.step(this.step, this.result)
      return undefined
    } catch (cause) {
      return stepError(cause)
    }
  }

  /** Takes the requests to where the step takes them. None has guesses. */
  advance(): void {
    this.advanced = true
    let row = 0
    for (const { sequence, tokens, rows } of this.batch) {
      sequence.computed += tokens
      // Of the last token that a request may have, nothing is computed.
      const next = sequence.computed
      const samples = rows > 0 && sequence.work.output === 'token'
      if (samples && next + 1 < sequence.mostTokens) sequence.put(next, rowReference(row))
      row += rows
    }
  }
}
