import { setImmediate } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { ahead } from './pacer.ts'

describe('ahead', () => {
  async function* counting(log: string[], end: number, error?: Error) {
    try {
      for (let i = 0; i < end; i++) {
        log.push(`make ${i}`)
        await setImmediate()
        yield i
      }
      if (error) throw error
    } finally {
      log.push('end')
    }
  }

  test('makes each value while the one before it is in use', async () => {
    const log: string[] = []
    for await (const i of ahead(counting(log, 3))) {
      log.push(`use ${i}`)
      await setImmediate()
      log.push(`used ${i}`)
    }
    expect(log.filter((line) => line.startsWith('use '))).toEqual(['use 0', 'use 1', 'use 2'])
    for (const i of [1, 2]) {
      expect(log.indexOf(`make ${i}`)).toBeGreaterThan(log.indexOf(`make ${i - 1}`))
      expect(log.indexOf(`make ${i}`)).toBeLessThan(log.indexOf(`used ${i - 1}`))
    }
    // Never two ahead: a chunk lies in one of two rooms.
    expect(log.indexOf('make 2')).toBeGreaterThan(log.indexOf('used 0'))
    expect(log.at(-1)).toBe('used 2')
  })

  test('throws what the source throws, once the values before it are used', async () => {
    const seen: number[] = []
    const read = async () => {
      for await (const i of ahead(counting([], 2, new Error('boom')))) {
        await setImmediate()
        await setImmediate()
        seen.push(i)
      }
    }
    await expect(read()).rejects.toThrow('boom')
    expect(seen).toEqual([0, 1])
  })

  test('ends the source, and what it is making, when the reader stops', async () => {
    const log: string[] = []
    for await (const i of ahead(counting(log, 9))) if (i === 1) break
    expect(log).toEqual(['make 0', 'make 1', 'make 2', 'end'])
  })
})
