/** What an engine counts, and how it is told: `model.stats()`. */
import { type ResultView, resultHeader } from '../abi/step.ts'
import type { ShadowStats } from './shadow-options.ts'
import type { SpeculationStats } from './speculate.ts'

export interface EngineStats {
  readonly steps: number
  readonly failedSteps: number
  /** Of the steps, those that were submitted before the tokens of the one before were read. */
  readonly stepsAhead: number
  /** Tokens computed, recomputed ones, wrong guesses and discarded ones included. */
  readonly tokens: number
  readonly sampledTokens: number
  /** Tokens computed for requests that had ended by then: one a request that a step ahead did not know to end. */
  readonly discardedTokens: number
  /** Kernels that the last step launched; constant in batch size. */
  readonly launchesPerStep: number
  readonly slotLaunchesPerStep: number
  /** Admissions that started from cached blocks, and the tokens that this saved. */
  readonly prefixHits: number
  readonly prefixTokens: number
  readonly preemptions: number
  readonly running: number
  readonly waiting: number
  readonly blocks: { readonly total: number; readonly used: number; readonly free: number; readonly cached: number }
  /** Mean time of a step spent in JavaScript: commit, schedule, pack. Of a step ahead, the backend waits for none of it. */
  readonly hostMicrosecondsPerStep: number
  /** Mean time that the backend reports. */
  readonly deviceMicrosecondsPerStep: number
  /** Mean time of a step that the backend waited for it, from the end of the one before: with work to do, and none given. */
  readonly idleMicrosecondsPerStep: number
  /** Where the model was opened with it. */
  readonly speculation?: SpeculationStats
  /** Where the model was opened with one. */
  readonly shadow?: ShadowStats
  /** Of the requests that run on the trusted path, once the live one is demoted. */
  readonly trusted?: EngineStats
}

/** What an engine is at now. */
type Present = Pick<EngineStats, 'running' | 'waiting' | 'blocks'>

export class Counters {
  steps = 0
  failedSteps = 0
  stepsAhead = 0
  tokens = 0
  sampledTokens = 0
  discardedTokens = 0
  prefixHits = 0
  prefixTokens = 0
  preemptions = 0
  /** Guesses that a step verified, and those that were right. */
  proposed = 0
  accepted = 0
  hostMs = 0
  #launches = 0
  #slotLaunches = 0
  #deviceMicroseconds = 0
  #idleMicroseconds = 0
  #paused = true

  /** Before the next step the backend had nothing to do: that is no time that it waited for the host. */
  pause(): void {
    this.#paused = true
  }

  /** A step has succeeded. */
  step({ header }: ResultView): void {
    const { launches, slot_launches, microseconds, idle_microseconds } = resultHeader.word
    this.steps++
    if (!this.#paused) this.#idleMicroseconds += header[idle_microseconds]!
    this.#paused = false
    this.#launches = header[launches]!
    this.#slotLaunches = header[slot_launches]!
    this.#deviceMicroseconds += header[microseconds]!
  }

  stats(present: Present): EngineStats {
    const { steps, failedSteps, stepsAhead, tokens, sampledTokens, discardedTokens } = this
    const { prefixHits, prefixTokens, preemptions } = this
    return {
      ...{ steps, failedSteps, stepsAhead, tokens, sampledTokens, discardedTokens },
      ...{ prefixHits, prefixTokens, preemptions },
      launchesPerStep: this.#launches,
      slotLaunchesPerStep: this.#slotLaunches,
      ...present,
      hostMicrosecondsPerStep: (this.hostMs * 1000) / Math.max(1, steps + failedSteps),
      deviceMicrosecondsPerStep: this.#deviceMicroseconds / Math.max(1, steps),
      idleMicrosecondsPerStep: this.#idleMicroseconds / Math.max(1, steps),
    }
  }

  /** `draft`: steps, and their microseconds together, of the draft model. */
  speculation(draft: { readonly steps: number; readonly microseconds: number } | undefined): SpeculationStats {
    const { proposed, accepted } = this
    const { steps, microseconds } = draft ?? { steps: 0, microseconds: 0 }
    return {
      proposed,
      accepted,
      acceptance: accepted / Math.max(1, proposed),
      draftSteps: steps,
      draftMicrosecondsPerStep: microseconds / Math.max(1, steps),
    }
  }
}
