/** What an engine counts, and how it is told: `model.stats()`. */
import { type ResultView, resultHeader } from '../abi/step.ts'
import type { ShadowStats } from './shadow-options.ts'
import type { SpeculationStats } from './speculate.ts'

export interface EngineStats {
  readonly steps: number
  readonly failedSteps: number
  /** Tokens computed, recomputed ones and wrong guesses included. */
  readonly tokens: number
  readonly sampledTokens: number
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
  /** Mean time of a step spent in JavaScript: commit, schedule, pack. */
  readonly hostMicrosecondsPerStep: number
  /** Mean time that the backend reports. */
  readonly deviceMicrosecondsPerStep: number
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
  tokens = 0
  sampledTokens = 0
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

  /** A step has succeeded. */
  step({ header }: ResultView): void {
    const { launches, slot_launches, microseconds } = resultHeader.word
    this.steps++
    this.#launches = header[launches]!
    this.#slotLaunches = header[slot_launches]!
    this.#deviceMicroseconds += header[microseconds]!
  }

  stats(present: Present): EngineStats {
    const { steps, failedSteps, tokens, sampledTokens, prefixHits, prefixTokens, preemptions } = this
    return {
      ...{ steps, failedSteps, tokens, sampledTokens, prefixHits, prefixTokens, preemptions },
      launchesPerStep: this.#launches,
      slotLaunchesPerStep: this.#slotLaunches,
      ...present,
      hostMicrosecondsPerStep: (this.hostMs * 1000) / Math.max(1, steps + failedSteps),
      deviceMicrosecondsPerStep: this.#deviceMicroseconds / Math.max(1, steps),
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
