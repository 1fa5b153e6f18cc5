import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  bf16ToNumber,
  type DType,
  E4M3_MAX,
  e4m3ToNumber,
  f16ToNumber,
  numberToBf16,
  numberToF16,
} from '../../abi/dtypes.ts'
import { elementIndex, paddedShape } from '../../abi/layouts.ts'
import { tensor, values } from '../example.test-checkpoint.ts'
import type { Weight } from '../graph.ts'
import { quantizeRowE4m3 } from './e4m3.ts'
import { limits, quantizedRow, quantizeRow } from './integers.ts'
import { packWeights } from './layout.ts'
import { type StoredWeight, TensorTable } from './lower.ts'
import { Pacer } from './pacer.ts'
import { type PackTiles, packHere, toFloat32 } from './tiles.ts'

const names = { f32: 'F32', f16: 'F16', bf16: 'BF16' } as const
const rounded = {
  f32: Math.fround,
  f16: (x: number) => f16ToNumber(numberToF16(x)),
  bf16: (x: number) => bf16ToNumber(numberToBf16(x)),
}
type Float = keyof typeof names

/** A weight of stacked parts, its source bytes (deliberately unaligned) and its exact values, row-major. */
function weightOf(dtype: Float, rows: readonly number[], cols: number, encoding: Weight['encoding']) {
  const read = new Map<string, Uint8Array>()
  const exact: number[] = []
  const parts = rows.map((count, i) => {
    const numbers = values(count * cols, i + 3)
    const { bytes } = tensor(names[dtype], [count, cols], numbers)
    const shifted = new Uint8Array(bytes.length + 1)
    shifted.set(bytes, 1)
    read.set(`p${i}`, shifted.subarray(1))
    exact.push(...numbers.map(rounded[dtype]))
    return { tensor: `p${i}`, dtype: dtype as DType, elements: count * cols }
  })
  const weight: Weight = { name: 'w', rows: rows.reduce((a, b) => a + b), cols, dtype, parts, encoding }
  return { weight, exact, read: (name: string) => read.get(name)! }
}

/** By the addon and by this thread, which must agree. */
async function stored(weight: Weight, form: 'row' | 'tiled', read: (name: string) => Uint8Array) {
  const table = new TensorTable()
  table.add(weight, form)
  const packed = async (pack?: PackTiles) => {
    const chunks = table.stored.map(() => [] as Uint8Array[])
    for await (const { index, bytes } of packWeights(table.stored, read, new Pacer(), pack))
      chunks[index]!.push(bytes.slice())
    return chunks.map((each) => Buffer.concat(each))
  }
  const data = await packed()
  expect(await packed((job) => packHere(job, new Pacer()))).toEqual(data)
  return table.stored.map((each: StoredWeight, i) => ({ ...each.tensor, data: data[i]! }))
}

const element = {
  f32: (data: Buffer, i: number) => data.readFloatLE(i * 4),
  f16: (data: Buffer, i: number) => f16ToNumber(data.readUInt16LE(i * 2)),
  bf16: (data: Buffer, i: number) => bf16ToNumber(data.readUInt16LE(i * 2)),
  i8: (data: Buffer, i: number) => data.readInt8(i),
  i32: (data: Buffer, i: number) => data.readInt32LE(i * 4),
  e4m3: (data: Buffer, i: number) => e4m3ToNumber(data[i]!),
  i4: (data: Buffer, i: number) => ((data[(i >> 3) * 4 + (i & 3)]! << (i & 4 ? 24 : 28)) | 0) >> 28,
}

const shapes = fc.record({
  dtype: fc.constantFrom<Float>('f32', 'f16', 'bf16'),
  rows: fc.array(fc.integer({ min: 1, max: 37 }), { minLength: 1, maxLength: 3 }),
  cols: fc.integer({ min: 1, max: 97 }),
})

describe('packing', () => {
  test('puts every element where elementIndex says, and zero elsewhere', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ dtype, rows, cols }) => {
        const { weight, exact, read } = weightOf(dtype, rows, cols, 'plain')
        const [packed] = await stored(weight, 'tiled', read)
        const { layout, data, bytes } = packed!
        expect(data.length).toBe(bytes)
        const [paddedRows, paddedCols] = paddedShape(layout, weight.rows, cols)
        const got = Array.from({ length: paddedRows * paddedCols }, (_, i) => element[dtype](data, i))
        const expected = new Array(got.length).fill(0)
        exact.forEach((value, i) => {
          expected[elementIndex(layout, cols, Math.floor(i / cols), i % cols)] = value
        })
        expect(got).toEqual(expected)
      }),
      { numRuns: 60 },
    )
  })

  test('rows of two branches alternate in runs of 16, whatever the parts; so do elements of a vector', async () => {
    const runs = (rows: number) =>
      Array.from({ length: rows }, (_, r) => ((r >> 4) % 2) * (rows / 2) + (r >> 5) * 16 + (r & 15))
    for (const [dtype, rows, cols] of [
      ['bf16', [32, 32], 5],
      ['f16', [96], 33],
      ['f32', [7, 50, 39], 1],
    ] as const) {
      const { weight, exact, read } = weightOf(dtype, rows, cols, 'plain')
      const [packed] = await stored({ ...weight, branches: 2 }, 'tiled', read)
      const { layout, data } = packed!
      const order = runs(weight.rows)
      expect(order.toSorted((a, b) => a - b)).toEqual(order.map((_, i) => i))
      for (const [r, from] of order.entries())
        for (let c = 0; c < cols; c++)
          expect(element[dtype](data, elementIndex(layout, cols, r, c))).toBe(exact[from * cols + c])
      if (cols > 1) continue
      const [vector] = await stored({ ...weight, branches: 2, rows: 1, cols: weight.rows }, 'row', read)
      expect(order.map((_, i) => element.f32(vector!.data, i))).toEqual(order.map((from) => exact[from]))
    }
  })

  test.each(['q8', 'q4', 'fp8'] as const)('%s of two branches is that of the rows in their order', async (format) => {
    const { weight, exact, read } = weightOf('f32', [32, 32], 40, format)
    const order = [0, 32, 16, 48].flatMap((start) => exact.slice(start * 40, (start + 16) * 40))
    const ordered = tensor('F32', [64, 40], Float32Array.from(order)).bytes
    const plain = { ...weight, parts: [{ tensor: 'p', dtype: 'f32' as const, elements: 64 * 40 }] }
    const [branches, expected] = await Promise.all([
      stored({ ...weight, branches: 2 }, 'tiled', read),
      stored(plain, 'tiled', () => ordered),
    ])
    expect(branches.map(({ data }) => data)).toEqual(expected.map(({ data }) => data))
  })

  test('a row weight becomes float32, exactly', async () => {
    for (const dtype of ['f32', 'f16', 'bf16'] as const) {
      const { weight, exact, read } = weightOf(dtype, [1, 1], 70_001, 'plain')
      const vector = { ...weight, rows: 1, cols: 140_002 }
      const [packed] = await stored(vector, 'row', read)
      expect(packed).toMatchObject({ dtype: 'f32', layout: 'row', bytes: 560_008 })
      expect(new Float32Array(packed!.data.buffer, packed!.data.byteOffset, 140_002)).toEqual(Float32Array.from(exact))
    }
  })

  test('every f16 and bf16 converts exactly, NaN and infinities included', () => {
    const halves = Uint16Array.from({ length: 65_536 }, (_, i) => i)
    for (const [dtype, exact] of [
      ['f16', f16ToNumber],
      ['bf16', bf16ToNumber],
    ] as const) {
      const target = new Float32Array(65_536)
      toFloat32(dtype, new Uint8Array(halves.buffer), target)
      for (const i of halves) if (!Object.is(target[i], exact(i))) expect(target[i]).toBe(exact(i))
    }
  })
})

/** Normally distributed numbers, by Box and Muller (1958). */
function normals(seed: number): () => number {
  let state = seed
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return ((state >>> 8) + 0.5) / 2 ** 24
  }
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
}

describe('q8', () => {
  test('values and scales lie where elementIndex says, and miss by at most half a step', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ dtype, rows, cols }) => {
        const { weight, exact, read } = weightOf(dtype, rows, cols, 'q8')
        const [packed, scales] = await stored(weight, 'tiled', read)
        expect([packed!.dtype, packed!.layout, scales!.dtype, scales!.layout]).toEqual([
          'i8',
          'tile16x4',
          'f16',
          'tile16',
        ])
        expect([packed!.data.length, scales!.data.length]).toEqual([packed!.bytes, scales!.bytes])
        for (const [i, value] of exact.entries()) {
          const [row, col] = [Math.floor(i / cols), i % cols]
          const scale = element.f16(scales!.data, elementIndex('tile16', scales!.cols, row, Math.floor(col / 256)))
          const q = element.i8(packed!.data, elementIndex('tile16x4', cols, row, col))
          // Half a step, and what rounding the scale to f16 clips from the largest value of a group.
          expect(Math.abs(q * scale - value)).toBeLessThanOrEqual(scale * (0.5 + 127 * 2 ** -11))
          expect(Math.abs(q)).toBeLessThanOrEqual(127)
        }
      }),
      { numRuns: 40 },
    )
  })

  const quantized = (row: number[]) => {
    const q = quantizedRow(row.length)
    return { ok: quantizeRow('q8', Float32Array.from(row), q), q: [...q.values], s: [...q.scales].map(f16ToNumber) }
  }
  test('rounds ties to even, with the scale that is stored', () => {
    expect(quantized([127, 0.5, 1.5, 2.5, -0.5, -1.5])).toMatchObject({
      q: [127, 0, 2, 2, -0, -2].map((x) => x + 0),
      s: [1],
    })
  })
  test('a block of zeros has scale zero; each block has its own', () => {
    const { q, s } = quantized([...new Array(256).fill(0), 254])
    expect(q).toEqual([...new Array(256).fill(0), 127])
    expect(s).toEqual([0, 2])
  })
  test('values below the smallest scale become zero', () => {
    expect(quantized([1e-9])).toMatchObject({ ok: true, q: [0], s: [0] })
  })
})

describe('q4', () => {
  /** Squared error of a group rounded to the best of the whole sub-scales, its extreme at -8 or a little beside it. */
  const plainError = (group: readonly number[], scale: number) => {
    const extreme = group.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0)
    const v = scale === 0 ? 0 : Math.max(-15, Math.min(15, Math.round(extreme / -8 / scale)))
    const q = (x: number) => (v === 0 ? 0 : Math.max(-8, Math.min(7, Math.round(x / (v * scale)))))
    return group.reduce((sum, x) => sum + (x - q(x) * v * scale) ** 2, 0)
  }

  test('values and scales lie where elementIndex says, and err little more than with the extreme at -8', async () => {
    let [error, plain] = [0, 0]
    await fc.assert(
      fc.asyncProperty(shapes, async ({ dtype, rows, cols }) => {
        const { weight, exact, read } = weightOf(dtype, rows, cols, 'q4')
        const [packed, scales, subScales] = await stored(weight, 'tiled', read)
        expect([packed!.dtype, packed!.layout, scales!.dtype]).toEqual(['i4', 'tile16x8', 'f16'])
        expect([subScales!.dtype, subScales!.layout, subScales!.cols]).toEqual(['i8', 'tile16', Math.ceil(cols / 32)])
        for (const each of [packed!, scales!, subScales!]) expect(each.data.length).toBe(each.bytes)
        const [paddedRows, paddedCols] = paddedShape('tile16x8', weight.rows, cols)
        expect(packed!.bytes).toBe((paddedRows * paddedCols) / 2)
        for (let row = 0; row < weight.rows; row++)
          for (let start = 0; start < cols; start += 32) {
            const group = exact.slice(row * cols + start, row * cols + Math.min(start + 32, cols))
            const at = elementIndex('tile16', scales!.cols, row, Math.floor(start / 256))
            const scale = element.f16(scales!.data, at)
            const v = element.i8(subScales!.data, elementIndex('tile16', subScales!.cols, row, start / 32))
            expect(Math.abs(v)).toBeLessThanOrEqual(15)
            error += group.reduce((sum, x, i) => {
              const q = element.i4(packed!.data, elementIndex('tile16x8', cols, row, start + i))
              return sum + (x - q * v * scale) ** 2
            }, 0)
            plain += plainError(group, scale)
          }
        const padding = Array.from({ length: paddedCols - cols }, (_, i) => elementIndex('tile16x8', cols, 0, cols + i))
        for (const index of padding) expect(element.i4(packed!.data, index)).toBe(0)
      }),
      { numRuns: 40 },
    )
    expect(error).toBeLessThan(plain * 1.02)
  })
  test('sixteen levels are met exactly, whatever the sign of the extreme', () => {
    const q = quantizedRow(32)
    for (const scale of [7.5, -7.5]) {
      const row = Float32Array.from(q.values, (_, i) => ((i % 16) - 8) * scale)
      expect(quantizeRow('q4', row, q)).toBe(true)
      expect(Math.abs(q.subScales[0]!)).toBe(15)
      expect(Float32Array.from(q.values, (value) => value * q.subScales[0]! * f16ToNumber(q.scales[0]!))).toEqual(row)
    }
  })
  test('normal weights err by less than 8.3 % rms', () => {
    const row = Float32Array.from({ length: 1 << 16 }, normals(1))
    const q = quantizedRow(row.length)
    quantizeRow('q4', row, q)
    let [error, power] = [0, 0]
    for (const [i, x] of row.entries()) {
      error += (x - q.values[i]! * q.subScales[i >> 5]! * f16ToNumber(q.scales[i >> 8]!)) ** 2
      power += x ** 2
    }
    expect(Math.sqrt(error / power)).toBeLessThan(0.083)
  })
  test('a block of zeros has scale zero', () => {
    const q = quantizedRow(2)
    for (const each of [q.values, q.scales, q.subScales]) each.fill(1)
    expect(quantizeRow('q4', new Float32Array(2), q)).toBe(true)
    expect([...q.values, ...q.scales, ...q.subScales]).toEqual([0, 0, 0, 0])
  })
})

describe.each(['q8', 'q4'] as const)('%s', (format) => {
  test.each([Number.NaN, Number.POSITIVE_INFINITY, 2 * limits[format]])('%s is refused', async (bad) => {
    expect(quantizeRow(format, Float32Array.of(1, bad), quantizedRow(2))).toBe(false)
    const { weight, read } = weightOf('f32', [1], 32, format)
    const poisoned = (name: string) => {
      const bytes = read(name).slice()
      new DataView(bytes.buffer).setFloat32(8, bad, true)
      return bytes
    }
    await expect(stored(weight, 'tiled', poisoned)).rejects.toMatchObject({ code: 'QUANTIZE_UNSUPPORTED' })
  })
})

describe('fp8', () => {
  test('values and scales lie where elementIndex says, and miss by at most half a step', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ dtype, rows, cols }) => {
        const { weight, exact, read } = weightOf(dtype, rows, cols, 'fp8')
        const [packed, scales] = await stored(weight, 'tiled', read)
        expect([packed!.dtype, packed!.layout, scales!.dtype, scales!.layout, scales!.cols]).toEqual([
          'e4m3',
          'tile16x4',
          'f32',
          'tile16',
          1,
        ])
        expect([packed!.data.length, scales!.data.length]).toEqual([packed!.bytes, scales!.bytes])
        for (let row = 0; row < weight.rows; row++) {
          const scale = element.f32(scales!.data, elementIndex('tile16', 1, row, 0))
          const values = exact.slice(row * cols, (row + 1) * cols)
          const got = values.map((_, col) => element.e4m3(packed!.data, elementIndex('tile16x4', cols, row, col)))
          expect(Math.max(...got.map(Math.abs))).toBe(E4M3_MAX)
          for (const [col, value] of values.entries())
            expect(Math.abs(got[col]! * scale - value)).toBeLessThanOrEqual(
              Math.max(Math.abs(value) * (2 ** -4 + 2 ** -20), scale * 2 ** -10),
            )
        }
      }),
      { numRuns: 40 },
    )
  })

  test('normal weights err by 2.4 % rms', () => {
    const next = normals(5)
    const row = Float32Array.from({ length: 4096 }, () => next() * 0.02)
    const [bits, scale] = [new Uint8Array(row.length), new Float32Array(1)]
    expect(quantizeRowE4m3(row, bits, scale)).toBe(true)
    let [error, power] = [0, 0]
    for (const [i, x] of row.entries()) {
      error += (x - e4m3ToNumber(bits[i]!) * scale[0]!) ** 2
      power += x ** 2
    }
    expect(Math.sqrt(error / power)).toBeGreaterThan(0.02)
    expect(Math.sqrt(error / power)).toBeLessThan(0.027)
  })

  test('ties go to even; zeros, signs and the least float32 survive', () => {
    const quantized = (row: number[]) => {
      const [bits, scale] = [new Uint8Array(row.length).fill(9), new Float32Array(1)]
      expect(quantizeRowE4m3(Float32Array.from(row), bits, scale)).toBe(true)
      return { values: [...bits].map(e4m3ToNumber), scale: scale[0] }
    }
    expect(quantized([E4M3_MAX, 17, 19, -17, 0, 2 ** -10, 3 * 2 ** -10])).toEqual({
      values: [E4M3_MAX, 16, 20, -16, 0, 0, 2 ** -8],
      scale: 1,
    })
    expect(quantized([0, 0])).toEqual({ values: [0, 0], scale: 0 })
    expect(quantized([2 ** -149, 0])).toEqual({ values: [0, 0], scale: 2 ** -126 })
    expect(quantized([3.4028234663852886e38]).values).toEqual([E4M3_MAX])
  })

  test.each([Number.NaN, Number.NEGATIVE_INFINITY])('%s is refused', async (bad) => {
    const { weight, read } = weightOf('f32', [1], 32, 'fp8')
    const poisoned = (name: string) => {
      const bytes = read(name).slice()
      new DataView(bytes.buffer).setFloat32(8, bad, true)
      return bytes
    }
    await expect(stored(weight, 'tiled', poisoned)).rejects.toMatchObject({
      code: 'QUANTIZE_UNSUPPORTED',
      message: expect.stringContaining('NaN or infinity'),
    })
  })
})
