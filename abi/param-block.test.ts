import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { defaulted, f32, i32, type OpDef, op, u32 } from './ops/define.ts'
import { opDef, opNames } from './ops/index.ts'
import { decodeParams, encodeParams, fillParams, PARAM_HEADER_BYTES, paramBlockBytes } from './param-block.ts'

const base = { id: 31, version: 1, inputs: {}, outputs: {}, weights: {}, states: {} } as const
/** One opcode as three runtimes know it: its minor 0, its minor 2, and a new major. */
const first = op({ ...base, name: 'grown', paramVersion: [1, 0], params: { width: u32, scale: defaulted(f32, 1) } })
const grown = op({
  ...base,
  name: 'grown',
  paramVersion: [1, 2],
  params: {
    ...first.params,
    shift: { ...i32, since: 1, default: -3 },
    limit: { ...f32, since: 2, default: 0.5 },
  },
})
const other = op({ ...base, name: 'grown', paramVersion: [2, 0], params: { width: u32, scale: f32 } })

function values(definition: OpDef) {
  const value = { u32: fc.nat(2 ** 32 - 1), i32: fc.integer(), f32: fc.float({ noNaN: true }) }
  return fc.record(Object.fromEntries(Object.entries(definition.params).map(([name, f]) => [name, value[f.type]])))
}

describe('param blocks', () => {
  test.each([...opNames.map(opDef), first, grown, other])('of $name decode to what was encoded', (definition) => {
    fc.assert(
      fc.property(values(definition), (params) => {
        const bytes = encodeParams(definition, params)
        expect(new DataView(bytes.buffer).getUint32(0, true)).toBe(bytes.length)
        expect(decodeParams(definition, bytes)).toEqual(params)
      }),
      { numRuns: 30 },
    )
  })

  test('are read anywhere in a larger buffer', () => {
    const bytes = encodeParams(first, { width: 7, scale: 2 })
    const larger = new Uint8Array(bytes.length + 9)
    larger.set(bytes, 5)
    expect(decodeParams(first, larger.subarray(5, 5 + bytes.length))).toEqual({ width: 7, scale: 2 })
  })

  test('of an older minor take the defaults of later fields', () => {
    const old = encodeParams(first, { width: 7, scale: 2 })
    expect(decodeParams(grown, old)).toEqual({ width: 7, scale: 2, shift: -3, limit: 0.5 })
  })

  test('carry the lowest minor that expresses them', () => {
    const block = (params: Parameters<typeof fillParams<typeof grown>>[1]) => {
      const bytes = encodeParams(grown, fillParams(grown, params))
      return [new DataView(bytes.buffer).getUint16(6, true), bytes.length]
    }
    expect(block({ width: 1 })).toEqual([0, paramBlockBytes(first)])
    expect(block({ width: 1, shift: 9 })).toEqual([1, PARAM_HEADER_BYTES + 12])
    expect(block({ width: 1, limit: 2 })).toEqual([2, PARAM_HEADER_BYTES + 16])
    expect(decodeParams(first, encodeParams(grown, fillParams(grown, { width: 1 })))).toEqual({ width: 1, scale: 1 })
  })

  test('of a newer minor or major are refused', () => {
    const newer = encodeParams(grown, fillParams(grown, { width: 1, shift: 9 }))
    expect(decodeParams(first, newer)).toEqual({
      refused: 'block version 1.1, this runtime reads 1.0 to 1.0',
      newer: true,
    })
    expect(decodeParams(first, encodeParams(other, { width: 1, scale: 1 }))).toMatchObject({ newer: true })
    expect(decodeParams(other, encodeParams(first, { width: 1, scale: 1 }))).toMatchObject({
      refused: expect.any(String),
      newer: false,
    })
  })

  test('of a wrong size are refused', () => {
    const bytes = encodeParams(first, { width: 1, scale: 1 })
    const refused = { refused: expect.any(String), newer: false }
    for (let length = 0; length < bytes.length; length++)
      expect(decodeParams(first, bytes.subarray(0, length))).toMatchObject(refused)
    expect(decodeParams(first, new Uint8Array([...bytes, 0]))).toMatchObject(refused)
    for (const lie of [0, bytes.length - 4, bytes.length + 4, 0xff]) {
      const lying = bytes.slice()
      lying[0] = lie
      expect(decodeParams(first, lying)).toMatchObject(refused)
    }
  })
})

describe('fillParams', () => {
  test('fills defaults and rounds floats to what both languages hold', () => {
    expect(fillParams(first, { width: 3 })).toEqual({ width: 3, scale: 1 })
    expect(fillParams(first, { width: 3, scale: 0.1 }).scale).toBe(Math.fround(0.1))
  })

  test.each([
    [{}, 'missing'],
    [{ width: -1 }, 'expected u32'],
    [{ width: 1.5 }, 'expected u32'],
    [{ width: 2 ** 32 }, 'expected u32'],
    [{ width: 1, shift: 2 ** 31 }, 'expected i32'],
    [{ width: 1, scale: Number.NaN }, 'expected f32'],
    [{ width: 1, wide: 2 }, 'unknown parameter wide'],
  ])('refuses %j', (params, message) => {
    expect(() => fillParams(grown, params as never)).toThrow(message)
  })
})
