import { describe, expect, it } from 'vitest'
import { f16ToNumber, numberToBf16 } from '../../abi/dtypes.ts'
import { random } from '../../parity/random.ts'
import { decode, encode, ggmlBytes } from './blocks.ts'

const next = random(3)
const weights = Float32Array.from({ length: 32 * 40 }, () => (next() - 0.5) * 0.1)

/** Scales of each block, read from the bytes. */
const scales = (bytes: Uint8Array, size: number) =>
  Array.from({ length: bytes.length / size }, (_, i) => f16ToNumber(bytes[i * size]! | (bytes[i * size + 1]! << 8)))

describe('llama.cpp blocks', () => {
  it('err by at most half a step of their block', () => {
    for (const [type, size] of [
      ['Q8_0', 34],
      ['Q4_0', 18],
    ] as const) {
      const bytes = encode(type, weights)
      expect(bytes.length).toBe(ggmlBytes(type, weights.length))
      const steps = scales(bytes, size).map(Math.abs)
      const back = decode(type, bytes, f16ToNumber)
      // the f16 scale errs by 2^-11 of up to 127 steps; q4 clips the positive end by one more half
      const most = type === 'Q8_0' ? 0.57 : 1.01
      for (const [i, weight] of weights.entries())
        expect(Math.abs(back[i]! - weight)).toBeLessThanOrEqual(most * steps[i >> 5]!)
    }
  })

  it('keep the extreme of a block', () => {
    const block = new Float32Array(32)
    block[5] = -0.5
    expect(decode('Q8_0', encode('Q8_0', block), f16ToNumber)[5]).toBeCloseTo(-0.5, 3)
    expect(decode('Q4_0', encode('Q4_0', block), f16ToNumber)[5]).toBe(-0.5)
  })

  it('store a known block byte for byte', () => {
    const ramp = Float32Array.from({ length: 32 }, (_, i) => i - 16)
    const [q8, q4] = [encode('Q8_0', ramp), encode('Q4_0', ramp)]
    expect([q8[2], q8[18], q8[33]]).toEqual([256 - 127, 0, 119])
    // scale 2: -16 is level 0, 0 is level 8, in one byte; -15 is 0.5 + 0.5 = level 1, 1 is level 9
    expect([f16ToNumber(q4[0]! | (q4[1]! << 8)), q4[2], q4[3]]).toEqual([2, 0x80, 0x91])
  })

  it('encode zeros, and bf16 as it is', () => {
    expect(decode('Q4_0', encode('Q4_0', new Float32Array(32)), f16ToNumber).every((x) => x === 0)).toBe(true)
    const bits = encode('BF16', Float32Array.of(1, -2))
    expect([...new Uint16Array(bits.buffer)]).toEqual([numberToBf16(1), numberToBf16(-2)])
  })
})
