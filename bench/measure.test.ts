import fc from 'fast-check'
import { expect, test } from 'vitest'
import { means } from './measure.ts'

test('means of samples in a row', () => {
  expect(means([1, 3, 5, 7], 2)).toEqual([2, 4, 6])
  expect(means([1, 3], 4)).toEqual([2])
  expect(means([], 4)).toEqual([])
})

test('times of steps that are read early and late in turns are those of steps', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 0.9, noNaN: true }), fc.integer({ min: 4, max: 40 }), (early, steps) => {
      for (const time of means(
        Array.from({ length: steps }, (_, i) => (i % 2 ? 1 + early : 1 - early)),
        4,
      ))
        expect(time).toBeCloseTo(1, 9)
    }),
  )
})
