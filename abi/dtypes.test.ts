import { describe, expect, test } from 'vitest'
import {
  bf16ToNumber,
  byteSize,
  dtypeNames,
  dtypeOf,
  dtypes,
  E4M3_MAX,
  e4m3ToNumber,
  f16ToNumber,
  numberToBf16,
  numberToE4m3,
  numberToF16,
  packInt4,
  unpackInt4,
} from './dtypes.ts'

test('ids are frozen', () => {
  expect(Object.fromEntries(dtypeNames.map((name) => [dtypes[name].id, name]))).toEqual({
    1: 'f32',
    2: 'f16',
    3: 'bf16',
    4: 'i8',
    5: 'i32',
    6: 'i4',
    7: 'e4m3',
  })
  for (const name of dtypeNames) expect(dtypeOf(dtypes[name].id)).toBe(name)
  expect(dtypeOf(0)).toBeUndefined()
  expect(dtypeOf(8)).toBeUndefined()
})

test('int4: two quads lie in the halves of four bytes, every value survives', () => {
  expect([byteSize('i4', 32), byteSize('i8', 3), byteSize('bf16', 3), byteSize('f32', 3)]).toEqual([16, 3, 6, 12])
  const packed = new Uint8Array(4)
  packInt4(Int8Array.of(1, 2, 3, -1, 4, 5, -8, 7), packed)
  expect([...packed]).toEqual([0x41, 0x52, 0x83, 0x7f])
  const all = Int8Array.from({ length: 256 }, (_, i) => (i % 16) - 8)
  const bytes = new Uint8Array(128)
  packInt4(all, bytes)
  expect(unpackInt4(bytes)).toEqual(all)
})

const formats = [
  { name: 'bf16', decode: bf16ToNumber, encode: numberToBf16, infinity: 0x7f80, largest: 0x7f7f, one: 0x3f80 },
  { name: 'f16', decode: f16ToNumber, encode: numberToF16, infinity: 0x7c00, largest: 0x7bff, one: 0x3c00 },
] as const

describe.each(formats)('$name', ({ decode, encode, infinity, largest, one }) => {
  test('all 65536 bit patterns survive a round trip; NaN stays NaN', () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = decode(bits)
      const again = encode(value)
      if (Number.isNaN(value)) expect(decode(again)).toBeNaN()
      else if (again !== bits) expect(again).toBe(bits)
      if (Number.isNaN(value) !== (bits & 0x7fff) > infinity) expect.fail(`${bits} decodes to ${value}`)
    }
  })

  test('values grow with their bits', () => {
    for (let bits = 0; bits < infinity; bits++)
      if (!(decode(bits) < decode(bits + 1))) expect.fail(`${bits} is not below ${bits + 1}`)
  })

  test('signs, zeros and infinities', () => {
    expect([decode(one), decode(one | 0x8000)]).toEqual([1, -1])
    expect(decode(0x8000)).toBe(-0)
    expect(encode(-0)).toBe(0x8000)
    expect(encode(Number.POSITIVE_INFINITY)).toBe(infinity)
    expect(encode(Number.NEGATIVE_INFINITY)).toBe(infinity | 0x8000)
    expect(decode(encode(Number.NaN))).toBeNaN()
  })

  test('ties go to even, anything else to the nearest, and beyond the largest to infinity', () => {
    // Midpoints of neighbours are exact in float64 and, for both formats, in float32.
    for (let bits = 0; bits < largest; bits++) {
      const [low, high] = [decode(bits), decode(bits + 1)]
      const middle = (low + high) / 2
      const even = bits & 1 ? bits + 1 : bits
      if (encode(middle) !== even) expect(encode(middle), `midpoint above ${bits}`).toBe(even)
      if (encode(-middle) !== (even | 0x8000)) expect(encode(-middle)).toBe(even | 0x8000)
      const quarter = low + (high - low) / 4
      if (encode(quarter) !== bits) expect(encode(quarter), `quarter above ${bits}`).toBe(bits)
    }
    const beyond = decode(largest) + (decode(largest) - decode(largest - 1)) / 2
    expect(encode(beyond)).toBe(infinity)
    expect(encode(beyond * (1 - 2 ** -20))).toBe(largest)
    expect(encode(3e38)).toBe(infinity === 0x7c00 ? infinity : encode(Math.fround(3e38)))
  })
})

test('f16 subnormals', () => {
  expect(f16ToNumber(1)).toBe(2 ** -24)
  expect(f16ToNumber(0x3ff)).toBe(1023 * 2 ** -24)
  expect(f16ToNumber(0x400)).toBe(2 ** -14)
  expect(numberToF16(2 ** -25)).toBe(0)
  expect(numberToF16(2 ** -25 * 1.0001)).toBe(1)
  expect(numberToF16(1e-30)).toBe(0)
})

describe('e4m3', () => {
  const largest = 0x7e

  test('all 256 bit patterns survive a round trip, and values grow with their bits', () => {
    for (let bits = 0; bits < 255; bits++) expect(numberToE4m3(e4m3ToNumber(bits))).toBe(bits) // NaN has no sign
    for (let bits = 0; bits < largest; bits++) expect(e4m3ToNumber(bits)).toBeLessThan(e4m3ToNumber(bits + 1))
    expect([0, 1, 7, 8, 0x38, largest, 0x80].map(e4m3ToNumber)).toEqual([
      0,
      2 ** -9,
      7 * 2 ** -9,
      2 ** -6,
      1,
      E4M3_MAX,
      -0,
    ])
    expect([0x7f, 0xff].map(e4m3ToNumber)).toEqual([Number.NaN, Number.NaN])
  })

  test('ties go to even, anything else to the nearest, and beyond the largest to the largest', () => {
    for (let bits = 0; bits < largest; bits++) {
      const [low, high] = [e4m3ToNumber(bits), e4m3ToNumber(bits + 1)]
      const even = bits & 1 ? bits + 1 : bits
      expect([(low + high) / 2, (-low - high) / 2].map(numberToE4m3)).toEqual([even, even | 0x80])
      const near = (share: number) => numberToE4m3(low + (high - low) * share)
      expect([0.49, 0.51, 0.5 - 2 ** -18, 0.5 + 2 ** -18].map(near)).toEqual([bits, bits + 1, bits, bits + 1])
    }
    expect([450, 464, 465, 1e9, Infinity, -1e30].map(numberToE4m3)).toEqual([...new Array(5).fill(largest), 0xfe])
    expect([2 ** -11, 2 ** -30, 1e-45, -1e-40].map(numberToE4m3)).toEqual([0, 0, 0, 0x80])
  })
})
