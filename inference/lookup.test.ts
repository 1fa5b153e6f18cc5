import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Lookup } from './lookup.ts'

/** What propose() must find, by searching. */
function search(tokens: readonly number[], most: number): number[] {
  for (let run = Math.min(3, tokens.length); run > 0; run--) {
    const end = tokens.slice(-run)
    for (let at = tokens.length - run - 1; at >= 0; at--) {
      if (!end.every((token, i) => tokens[at + i] === token)) continue
      const guess = [...tokens]
      for (let i = 0; i < most; i++) guess.push(guess[at + run + i]!)
      return guess.slice(tokens.length)
    }
  }
  return []
}

const text = fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 60 })

test('finds what a search finds, however the sequence grew', () => {
  let found = 0
  fc.assert(
    fc.property(text, fc.array(fc.boolean()), fc.integer({ min: 1, max: 8 }), (tokens, asked, most) => {
      const lookup = new Lookup()
      const room = new Int32Array(tokens.length + most).fill(-1)
      for (let length = 1; length <= tokens.length; length++) {
        room.set(tokens.slice(0, length))
        if (asked[length]) lookup.index(room, length - 1)
        if (length < tokens.length && !asked[length + 1]) continue
        const count = lookup.propose(room, length, most)
        expect([...room.subarray(length, length + count)]).toEqual(search(tokens.slice(0, length), most))
        found += count
      }
    }),
  )
  expect(found).toBeGreaterThan(100)
})

test('a repetition goes on with itself', () => {
  const tokens = new Int32Array(9)
  tokens.set([7, 8, 7, 8])
  expect(new Lookup().propose(tokens, 4, 5)).toBe(5)
  expect([...tokens]).toEqual([7, 8, 7, 8, 7, 8, 7, 8, 7])
})

test('the longest run wins over the latest, and nothing is guessed about what is new', () => {
  const tokens = new Int32Array(11)
  tokens.set([1, 2, 3, 4, 9, 3, 5, 1, 2, 3])
  expect(new Lookup().propose(tokens, 10, 1)).toBe(1)
  expect(tokens[10]).toBe(4)
  expect(new Lookup().propose(tokens, 5, 1)).toBe(0)
})
