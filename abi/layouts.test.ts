import fc from 'fast-check'
import { expect, test } from 'vitest'
import { elementIndex, layoutNames, layoutOf, layouts, paddedShape } from './layouts.ts'

test('ids are frozen', () => {
  expect(layoutNames.map((name) => [layouts[name].id, name])).toEqual([
    [0, 'row'],
    [1, 'tile16'],
    [2, 'tile16x2'],
    [3, 'tile16x4'],
    [4, 'tile16x8'],
  ])
  for (const name of layoutNames) expect(layoutOf(layouts[name].id)).toBe(name)
  expect(layoutOf(5)).toBeUndefined()
})

const shape = { rows: fc.integer({ min: 1, max: 40 }), cols: fc.integer({ min: 1, max: 80 }) }

test.each(layoutNames)('%s gives every element its own place inside the padded shape', (layout) => {
  fc.assert(
    fc.property(shape.rows, shape.cols, (rows, cols) => {
      const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
      expect(paddedRows % layouts[layout].rows).toBe(0)
      expect(paddedCols % layouts[layout].align).toBe(0)
      expect(paddedRows - rows).toBeLessThan(layouts[layout].rows)
      expect(paddedCols - cols).toBeLessThan(layouts[layout].align)
      const places = new Set<number>()
      for (let row = 0; row < rows; row++)
        for (let col = 0; col < cols; col++) places.add(elementIndex(layout, cols, row, col))
      expect(places.size).toBe(rows * cols)
      expect(Math.min(...places)).toBeGreaterThanOrEqual(0)
      expect(Math.max(...places)).toBeLessThan(paddedRows * paddedCols)
    }),
  )
})

test('row is row-major; tiles hold 16 outputs of consecutive k', () => {
  expect(elementIndex('row', 10, 3, 4)).toBe(34)
  expect([0, 1, 15].map((row) => elementIndex('tile16', 10, row, 0))).toEqual([0, 1, 15])
  expect(elementIndex('tile16', 10, 0, 1)).toBe(16)
  expect(elementIndex('tile16', 10, 16, 0)).toBe(160)
  // pairs along k, columns padded to 32
  expect([elementIndex('tile16x2', 10, 1, 0), elementIndex('tile16x2', 10, 1, 1)]).toEqual([2, 3])
  expect(elementIndex('tile16x2', 10, 0, 2)).toBe(32)
  expect(elementIndex('tile16x2', 10, 16, 0)).toBe(16 * 32)
  // quads along k
  expect([0, 1, 2, 3].map((col) => elementIndex('tile16x4', 40, 2, col))).toEqual([8, 9, 10, 11])
  expect(elementIndex('tile16x4', 40, 0, 4)).toBe(64)
  expect(elementIndex('tile16x4', 40, 16, 0)).toBe(16 * 64)
  // two quads along k
  expect([0, 4, 7].map((col) => elementIndex('tile16x8', 40, 2, col))).toEqual([16, 20, 23])
  expect(elementIndex('tile16x8', 40, 0, 8)).toBe(128)
})
