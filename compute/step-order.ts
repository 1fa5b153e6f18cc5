/** Two steps at once, for runners in JavaScript; native/core/last_step.h and step_thread.h are what the others have. */
import { type ResultView, ROW_RESULT_BYTES, resultHeader, type StepView, stepHeader } from '../abi/step.ts'
import { fail } from '../errors.ts'

const { follows, rows, tokens } = stepHeader.word
const ROW_WORDS = ROW_RESULT_BYTES / 4

/** Runs steps one after the other, and hands what one samples to the one that follows it. */
export class StepOrder {
  #last: Promise<void> = Promise.resolve()
  /** By row of the step before, where that succeeded. */
  #sampled: Int32Array | undefined
  #endedAt = 0

  /**
   * `compute` gets the token ids, references resolved. Rejects as it does, and with STEP_FAILED where the step follows one
   * that failed, or names a row that has no token.
   */
  run(step: StepView, result: ResultView, compute: (ids: Int32Array) => Promise<void>): Promise<void> {
    const run = this.#last.then(async () => {
      const startedAt = performance.now()
      await compute(this.#take(step))
      this.#sampled = Int32Array.from({ length: step.header[rows]! }, (_, row) => result.rows[row * ROW_WORDS]!)
      result.header[resultHeader.word.idle_microseconds] = this.#endedAt && (startedAt - this.#endedAt) * 1000
      this.#endedAt = performance.now()
    })
    this.#last = run.catch(() => {})
    return run
  }

  /** Until the step has succeeded, no other can follow it. */
  #take(step: StepView): Int32Array {
    const sampled = this.#sampled
    this.#sampled = undefined
    const ids = step.tokenIds.subarray(0, step.header[tokens])
    if (step.header[follows] === 0) return ids
    if (!sampled) throw refuse('follows', 'the step before it failed, or there was none')
    return ids.map((id, t) => (id < 0 ? tokenOf(sampled, -1 - id, t) : id))
  }
}

function tokenOf(sampled: Int32Array, row: number, t: number): number {
  const token = sampled[row] ?? -1
  if (token >= 0) return token
  throw refuse(`token_ids[${t}]`, `names row ${row} of the step before, which has no token`)
}

const refuse = (where: string, reason: string) => fail('STEP_FAILED', { where: `step.${where}`, reason })
