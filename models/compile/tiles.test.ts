/** The addon against what integers.ts, e4m3.ts and tiles.ts say, bit for bit. */
import { setImmediate } from 'node:timers/promises'
import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { byteSize, type DType, numberToBf16, numberToF16 } from '../../abi/dtypes.ts'
import { type Layout, layouts, paddedShape } from '../../abi/layouts.ts'
import { addon } from '../../abi/native.ts'
import { fail } from '../../errors.ts'
import { random } from '../../parity/random.ts'
import { limits } from './integers.ts'
import { tiled } from './lower.ts'
import { Pacer } from './pacer.ts'
import { packHere, packNative, scalingBytes, type TileFormat, type TileJob, tileDType, tilePacker } from './tiles.ts'

vi.mock('../../abi/native.ts', async (actual) => {
  const module = await actual<{ addon: () => unknown }>()
  return { ...module, addon: vi.fn(module.addon) }
})

const native = addon()
const isas = native.machine().available

/** Kinds of rows that rounding, scaling or reading gets wrong first. */
const kinds: Readonly<Record<string, (next: () => number) => () => number>> = {
  normal: (next) => () => (next() + next() + next() - 1.5) * 0.05,
  /** Few levels and an extreme beside them: groups that are best clipped. */
  clipped: (next) => () => (next() < 0.03 ? -8 - 3 * next() : [-3, -2, 0, 2, 3][Math.floor(next() * 5)]!),
  zeros: () => () => 0,
  signedZeros: (next) => () => (next() < 0.5 ? -0 : 0),
  sparse: (next) => () => (next() < 0.9 ? 0 : next() - 0.5),
  /** Halves and quarters of a step of a power of two. */
  ties: (next) => () => Math.round((next() - 0.5) * 64) / 4,
  /** Every magnitude of float32, subnormals among them. */
  wide: (next) => () => (next() - 0.5) * 2 ** Math.floor(next() * 160 - 149),
  subnormal: (next) => () => (next() - 0.5) * 2 ** -126,
  /** About the least steps of f16 scales. */
  smallScales: (next) => () => (next() - 0.5) * 2 ** -18,
  large: (next) => () => (next() - 0.5) * 2 ** 22,
  constant: (next) => {
    const value = next() - 0.5
    return () => value
  },
  outlier: (next) => () => (next() < 0.02 ? 100 : 1) * (next() - 0.5),
}
/** Refused by some formats: what is no number, and what lies at a limit or beyond. */
const bad = [
  ...[limits.q8, limits.q4].flatMap((limit) => [limit, -limit * (1 + 2 ** -20)]),
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  3.3e38,
]

function encode(dtype: DType, values: readonly number[]): Uint8Array {
  if (dtype === 'f32') return new Uint8Array(Float32Array.from(values).buffer)
  return new Uint8Array(Uint16Array.from(values, dtype === 'f16' ? numberToF16 : numberToBf16).buffer)
}

interface Case {
  readonly format: TileFormat
  readonly dtype: DType
  readonly rows: number
  readonly cols: number
  readonly cuts: readonly number[]
  readonly kinds: readonly string[]
  readonly poison: readonly { readonly at: number; readonly value: number }[]
  readonly seed: number
}

const cases = fc.record<Case>({
  format: fc.constantFrom<TileFormat>('q8', 'q4', 'fp8', 'plain'),
  dtype: fc.constantFrom<DType>('f32', 'f16', 'bf16'),
  rows: fc.integer({ min: 1, max: 40 }),
  cols: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.integer({ min: 200, max: 600 })),
  cuts: fc.array(fc.nat({ max: 40 }), { maxLength: 3 }),
  kinds: fc.array(fc.constantFrom(...Object.keys(kinds)), { minLength: 1, maxLength: 5 }),
  poison: fc.oneof(
    { weight: 3, arbitrary: fc.constant([]) },
    fc.array(fc.record({ at: fc.nat(), value: fc.constantFrom(...bad) }), { maxLength: 3 }),
  ),
  seed: fc.integer(),
})

/** Outputs full of something, so that what is not written shows. */
function emptyJob(format: TileFormat, dtype: DType, layout: Layout, rows: number, cols: number) {
  const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
  const bytes = scalingBytes(format, cols)
  return {
    ...{ format, dtype, layout, cols },
    tiles: new Uint8Array(byteSize(tileDType({ format, dtype }), paddedRows * paddedCols)).fill(0xa5),
    scales: new Uint8Array(rows * bytes.scales).fill(0xa5),
    subScales: new Uint8Array(rows * bytes.subScales).fill(0xa5),
  }
}

function jobOf({ format, dtype, rows, cols, cuts, kinds: chosen, poison, seed }: Case): () => TileJob {
  const next = random(seed)
  const values = Array.from({ length: rows }, (_, row) => {
    const draw = kinds[chosen[row % chosen.length]!]!(next)
    return Array.from({ length: cols }, draw)
  }).flat()
  for (const { at, value } of poison) values[at % values.length] = value
  const bytes = encode(dtype, values)
  const rowBytes = bytes.length / rows
  const ends = [0, ...cuts.filter((cut) => cut < rows).toSorted((a, b) => a - b), rows]
  const pieces = ends.slice(1).map((end, i) => {
    const shifted = new Uint8Array((end - ends[i]!) * rowBytes + 1)
    shifted.set(bytes.subarray(ends[i]! * rowBytes, end * rowBytes), 1)
    return shifted.subarray(1)
  })
  const layout = tiled[tileDType({ format, dtype }) as keyof typeof tiled]
  return () => ({ ...emptyJob(format, dtype, layout, rows, cols), rows: pieces })
}

describe('the addon packs as this thread does', () => {
  test('rows of any kind, on every instruction set and number of threads', { timeout: 60_000 }, async () => {
    let [held, refusedFirst] = [0, 0]
    await fc.assert(
      fc.asyncProperty(cases, fc.integer({ min: 0, max: 3 }), async (each, threads) => {
        const job = jobOf(each)
        const here = job()
        const refused = await packHere(here, new Pacer())
        if (refused < 0) held++
        else refusedFirst++
        for (const isa of isas) {
          const there = job()
          expect([isa, await packNative(native, there, isa, threads)]).toEqual([isa, refused])
          if (refused >= 0) continue
          for (const output of ['tiles', 'scales', 'subScales'] as const)
            expect([isa, output, Buffer.compare(there[output], here[output])]).toEqual([isa, output, 0])
        }
      }),
      { numRuns: 400 },
    )
    expect(Math.min(held, refusedFirst)).toBeGreaterThan(40)
  })

  test.each([
    ['f16', 'fp8'],
    ['f16', 'q8'],
    ['f16', 'q4'],
    ['bf16', 'fp8'],
  ] as const)('every finite %s, to %s', async (dtype, format) => {
    const exponent = dtype === 'f16' ? 0x7c00 : 0x7f80
    const finite = Uint16Array.from({ length: 65_536 }, (_, i) => i).filter((bits) => (bits & exponent) !== exponent)
    // Rows of one exponent each, so that no row is ruled by the largest number of all.
    const cols = (exponent ^ 0x7fff) + 1
    const layout = format === 'q4' ? 'tile16x8' : 'tile16x4'
    const rows = [new Uint8Array(finite.buffer)]
    const job = () => ({ ...emptyJob(format, dtype, layout, finite.length / cols, cols), rows })
    const [here, there] = [job(), job()]
    expect([await packHere(here, new Pacer()), await packNative(native, there)]).toEqual([-1, -1])
    expect(there).toEqual(here)
  })

  test('scales and sub-scales too: bytes, halves and words', async () => {
    for (const dtype of ['i8', 'f16', 'f32'] as const) {
      const cols = 7
      const rows = [Uint8Array.from({ length: 21 * byteSize(dtype, cols) }, (_, i) => i * 37)]
      const job = () => ({ ...emptyJob('plain', dtype, 'tile16', 21, cols), rows })
      const [here, there] = [job(), job()]
      expect([await packHere(here, new Pacer()), await packNative(native, there)]).toEqual([-1, -1])
      expect(there).toEqual(here)
    }
  })

  test('off the event loop', async () => {
    const [rows, cols] = [1024, 4096]
    const source = new Uint8Array(Uint16Array.from({ length: rows * cols }, (_, i) => 0x3c00 + (i % 997)).buffer)
    const packed = packNative(native, { ...emptyJob('q4', 'bf16', 'tile16x8', rows, cols), rows: [source] })
    let [turns, done] = [0, false]
    packed.finally(() => (done = true))
    while (!done) {
      await setImmediate()
      turns++
    }
    expect(await packed).toBe(-1)
    expect(turns).toBeGreaterThan(20)
  })
})

test('without the addon this thread packs; what else is wrong with it is told', async () => {
  const job = () => ({ ...emptyJob('q8', 'f32', 'tile16x4', 3, 8), rows: [new Uint8Array(96).fill(61)] })
  const [here, there] = [job(), job()]
  expect(await tilePacker(new Pacer())(there)).toBe(-1)
  const failing = (error: Error) =>
    vi.mocked(addon).mockImplementationOnce(() => {
      throw error
    })
  failing(fail('ADDON_MISSING', { reason: 'no such file' }))
  expect(await tilePacker(new Pacer())(here)).toBe(-1)
  expect(here).toEqual(there)
  failing(new Error('another'))
  expect(() => tilePacker(new Pacer())).toThrow('another')
})

describe('the addon refuses', () => {
  const good = () => ({ ...emptyJob('q4', 'f32', 'tile16x8', 3, 40), rows: [new Uint8Array(3 * 160)] })
  const packing = () => ({ ...good(), dtype: 1, layout: layouts.tile16x8.id, isa: '', threads: 1 })
  test.each([
    ['a format', { format: 'q5' }, 'format'],
    ['integers to quantise', { dtype: 4 }, 'dtype'],
    ['another layout', { layout: layouts.tile16x4.id }, 'layout'],
    ['rows as they are', { layout: layouts.row.id }, 'layout'],
    ['no columns', { cols: 0 }, 'cols'],
    ['part of a row', { rows: [new Uint8Array(161)] }, 'rows\\[0\\]'],
    ['too little room', { tiles: new Uint8Array(4) }, 'tiles'],
    ['too much room for scales', { scales: new Uint8Array(8) }, 'scales'],
    ['no room for sub-scales', { subScales: new Uint8Array() }, 'subScales'],
    ['an instruction set', { isa: 'sse9' }, 'isa'],
    ['what is no array', { rows: 1 }, 'rows'],
  ])('%s', (_, wrong, name) => {
    expect(() => native.pack({ ...packing(), ...wrong } as never)).toThrow(new RegExp(`^${name}: expected`))
  })
  test('nothing of a sound one', async () => {
    expect(await native.pack(packing())).toBe(-1)
  })
})
