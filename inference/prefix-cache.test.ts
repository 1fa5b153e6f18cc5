import fc from 'fast-check'
import { expect, test } from 'vitest'
import { BlockPool } from './blocks.ts'
import { type CachedBlock, PrefixCache } from './prefix-cache.ts'

const ids = (...tokens: number[]) => Int32Array.from(tokens)

/** Registers every full block of `tokens` in blocks of its own, which are then idle. */
function remember(pool: BlockPool, cache: PrefixCache, tokens: Int32Array, keys: string[] = []): CachedBlock[] {
  const entries: CachedBlock[] = []
  const blocks: number[] = []
  for (let index = 0; (index + 1) * 2 <= tokens.length; index++) {
    blocks.push(pool.allocate())
    const entry = cache.insert(tokens, keys, index, entries[index - 1], blocks[index]!)
    if (!entry) break
    entries.push(entry)
  }
  for (const block of blocks.toReversed()) pool.release(block)
  return entries
}

test('finds the longest chain of full blocks', () => {
  const pool = new BlockPool(20)
  const cache = new PrefixCache(pool, 2)
  const entries = remember(pool, cache, ids(1, 2, 3, 4, 5, 6))
  expect(cache.match(ids(1, 2, 3, 4, 5, 6, 7), [])).toEqual(entries)
  expect(cache.match(ids(1, 2, 3, 4, 5), [])).toEqual(entries.slice(0, 2))
  expect(cache.match(ids(1, 2, 9, 4, 5, 6), [])).toEqual(entries.slice(0, 1))
  expect(cache.match(ids(3, 4), [])).toEqual([])
})

test('the same content twice is one entry', () => {
  const pool = new BlockPool(20)
  const cache = new PrefixCache(pool, 2)
  const first = remember(pool, cache, ids(1, 2, 3, 4))
  expect(remember(pool, cache, ids(1, 2, 3, 4))).toEqual(first)
  expect(cache.size).toBe(2)
  expect(pool.idle).toBe(2)
})

test('a collision of hashes is a miss, in the tokens as in the parents', () => {
  const pool = new BlockPool(20)
  const cache = new PrefixCache(pool, 2)
  remember(pool, cache, ids(1, 2, 3, 4), ['same', 'child'])
  expect(cache.match(ids(8, 9), ['same'])).toEqual([])
  expect(cache.insert(ids(8, 9), ['same'], 0, undefined, pool.allocate())).toBeUndefined()
  const [other] = remember(pool, cache, ids(5, 6), ['other'])
  expect(cache.match(ids(5, 6, 3, 4), ['other', 'child'])).toEqual([other])
  expect(cache.insert(ids(5, 6, 3, 4), ['other', 'child'], 1, other, pool.allocate())).toBeUndefined()
})

test('children are evicted before their parents, the longest idle first', () => {
  const pool = new BlockPool(5)
  const cache = new PrefixCache(pool, 2)
  const [a, b] = remember(pool, cache, ids(1, 2, 3, 4))
  const [c, d] = remember(pool, cache, ids(5, 6, 7, 8))
  const evicted = [pool.allocate(), pool.allocate(), pool.allocate(), pool.allocate()]
  expect(evicted).toEqual([b, a, d, c].map((entry) => entry!.block))
  expect(cache.size).toBe(0)
  expect(() => pool.allocate()).toThrow(/no block is free/)
})

test('a pool counts its blocks right under any use', () => {
  const moves = fc.array(fc.tuple(fc.constantFrom('allocate', 'retain', 'release', 'keep'), fc.nat(30)), {
    maxLength: 200,
  })
  fc.assert(
    fc.property(moves, (steps) => {
      const pool = new BlockPool(8)
      const held: number[] = []
      const evicted: number[] = []
      const kept = new Set<number>()
      pool.onEvict = (block) => evicted.push(block)
      for (const [move, n] of steps) {
        const block = held[n % Math.max(1, held.length)]
        if (move === 'allocate' && pool.free > 0) {
          const fresh = pool.allocate()
          expect(held).not.toContain(fresh)
          expect(evicted.splice(0)).toEqual(kept.delete(fresh) ? [fresh] : [])
          held.push(fresh)
        } else if (move === 'retain' && block !== undefined) {
          pool.retain(block)
          held.push(block)
        } else if (move === 'release' && block !== undefined) {
          pool.release(block)
          held.splice(held.indexOf(block), 1)
        } else if (move === 'keep' && block !== undefined) {
          pool.keep(block)
          kept.add(block)
        }
        expect(pool.used).toBe(new Set(held).size)
        expect(pool.used + pool.free).toBe(7)
        expect(pool.idle).toBe([...kept].filter((id) => !held.includes(id)).length)
        expect(pool.refs.reduce((sum, count) => sum + count, 0)).toBe(held.length)
      }
      expect(held).not.toContain(0)
    }),
  )
})

test('a pool of many blocks costs nothing until they are taken', () => {
  const pool = new BlockPool(2 ** 28)
  expect(pool.free).toBe(2 ** 28 - 1)
  expect([pool.allocate(), pool.allocate()]).toEqual([1, 2])
  pool.release(1)
  expect(pool.allocate()).toBe(1)
  expect(pool.used).toBe(2)
})
