import { getEventListeners } from 'node:events'
import { expect, test, vi } from 'vitest'
import { watch, within } from './lifetime.ts'

const listeners = (signal: AbortSignal) => getEventListeners(signal, 'abort').length
const never = new Promise<never>(() => {})
const now = () => performance.now()

test('a signal has one listener, however many requests share it, and none when they are over', () => {
  const { signal } = new AbortController()
  const releases = Array.from({ length: 100 }, () => watch({ signal, since: now() }, () => expect.unreachable()))
  expect(listeners(signal)).toBe(1)
  for (const release of releases) {
    expect(listeners(signal)).toBe(1)
    release()
    release()
  }
  expect(listeners(signal)).toBe(0)
})

test('an abort ends all who still wait, in order, with its reason', () => {
  const controller = new AbortController()
  const ended: unknown[] = []
  const lifetime = { signal: controller.signal, since: now() }
  const releases = [0, 1, 2, 3].map((i) =>
    watch(lifetime, ({ code, cause }) => {
      ended.push([i, code, cause])
      releases[2]!()
    }),
  )
  releases[0]!()
  controller.abort('enough')
  expect(ended).toEqual([
    [1, 'ABORTED', 'enough'],
    [3, 'ABORTED', 'enough'],
  ])
  expect(listeners(controller.signal)).toBe(0)
})

test('a deadline counts from when the caller asked', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  try {
    const early = within({ deadlineMs: 60_000, since: now() - 60_000 }, never)
    vi.advanceTimersByTime(1)
    await expect(early).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED', details: { milliseconds: 60_000 } })
  } finally {
    vi.useRealTimers()
  }
})

test('work that ends in time keeps its outcome and leaves no listener', async () => {
  const { signal } = new AbortController()
  const lifetime = { signal, deadlineMs: 10_000, since: now() }
  await expect(within(lifetime, Promise.resolve(5))).resolves.toBe(5)
  await expect(within(lifetime, Promise.reject(new Error('no')))).rejects.toThrow('no')
  expect(listeners(signal)).toBe(0)
  await expect(within({ ...lifetime, signal: AbortSignal.abort('before') }, never)).rejects.toMatchObject({
    code: 'ABORTED',
    cause: 'before',
  })
})
