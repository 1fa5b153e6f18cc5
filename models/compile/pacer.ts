/** Long work beside an event loop: on its thread in short turns, so that a server that compiles keeps answering; off it, ahead. */
import { setImmediate } from 'node:timers/promises'
import { fail } from '../../errors.ts'

/** Longest turn, in milliseconds. */
const TURN_MS = 2

export class Pacer {
  #since = performance.now()
  readonly #signal: AbortSignal | undefined
  constructor(signal?: AbortSignal) {
    this.#signal = signal
  }

  /** Whether the turn is used up: time for `rest`. */
  get due(): boolean {
    return performance.now() - this.#since > TURN_MS
  }

  /** Gives the event loop a turn. Throws ABORTED once the signal is aborted. */
  async rest(): Promise<void> {
    if (this.#signal?.aborted) throw fail('ABORTED', {}, this.#signal.reason)
    await setImmediate()
    if (this.#signal?.aborted) throw fail('ABORTED', {}, this.#signal.reason)
    this.#since = performance.now()
  }
}

/** The values of `source`, each asked for while the one before it is in use. */
export async function* ahead<T>(source: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = source.next()
  try {
    for (;;) {
      const { value, done } = await next
      if (done) return
      next = source.next()
      next.catch(() => {}) // thrown when it is waited for
      yield value
    }
  } finally {
    await next.catch(() => {})
    await source.return(undefined)
  }
}
