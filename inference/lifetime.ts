/** What ends a request from outside, in the queue and while its text is tokenised alike: a signal, a deadline. */
import { fail, type IngotError } from '../errors.ts'

export interface Lifetime {
  readonly signal?: AbortSignal | undefined
  /** Milliseconds from `since`. */
  readonly deadlineMs?: number | undefined
  /** When the caller asked, by performance.now(). */
  readonly since: number
}

type End = (error: IngotError) => void

/** Who waits for a signal. It has one listener however many requests share it: EventTarget warns beyond ten. */
const waiting = new WeakMap<AbortSignal, Set<End>>()

export function aborted(signal: AbortSignal): IngotError {
  return fail('ABORTED', {}, signal.reason)
}

function broadcast({ currentTarget }: Event): void {
  const signal = currentTarget as AbortSignal
  const ends = waiting.get(signal) ?? []
  waiting.delete(signal)
  for (const end of ends) end(aborted(signal))
}

/** Calls `end` when the signal aborts. Returns what takes that back. */
function watchSignal(signal: AbortSignal, end: End): () => void {
  const ends = waiting.get(signal) ?? new Set()
  if (ends.size === 0) {
    waiting.set(signal, ends)
    signal.addEventListener('abort', broadcast, { once: true })
  }
  ends.add(end)
  return () => {
    if (!ends.delete(end) || ends.size > 0 || waiting.get(signal) !== ends) return
    waiting.delete(signal)
    signal.removeEventListener('abort', broadcast)
  }
}

/** Calls `end` with ABORTED or DEADLINE_EXCEEDED, each at most once, until the returned function is called. */
export function watch({ signal, deadlineMs, since }: Lifetime, end: End): () => void {
  const expire = () => end(fail('DEADLINE_EXCEEDED', { milliseconds: deadlineMs }))
  const timer = deadlineMs === undefined ? undefined : setTimeout(expire, deadlineMs - (performance.now() - since))
  const release = signal && watchSignal(signal, end)
  return () => {
    clearTimeout(timer)
    release?.()
  }
}

/** The outcome of `work`, unless the request ends first. */
export function within<T>(lifetime: Lifetime, work: Promise<T>): Promise<T> {
  const { signal } = lifetime
  return new Promise((resolve, reject) => {
    const unwatch = watch(lifetime, reject)
    work.then(resolve, reject).finally(unwatch)
    if (signal?.aborted) reject(aborted(signal))
  })
}
