/** llama.cpp's block formats (ggml-quants.c, quantize_row_*_ref): 32 weights and one f16 scale. */
import { numberToF16 } from '../../abi/dtypes.ts'

const BLOCK = 32

/** ggml type ids and bytes of a block of `elements`. */
export const ggmlTypes = {
  F32: { id: 0, elements: 1, bytes: 4 },
  Q4_0: { id: 2, elements: BLOCK, bytes: 2 + BLOCK / 2 },
  Q8_0: { id: 8, elements: BLOCK, bytes: 2 + BLOCK },
  BF16: { id: 30, elements: 1, bytes: 2 },
} as const
export type GgmlType = keyof typeof ggmlTypes

/** Bytes of `elements` weights of a type. */
export const ggmlBytes = (type: GgmlType, elements: number) =>
  (elements / ggmlTypes[type].elements) * ggmlTypes[type].bytes

/** C's roundf: halves away from zero. */
const round = (value: number) => (value < 0 ? -Math.floor(0.5 - value) : Math.floor(value + 0.5))

function encodeQ8(x: Float32Array, at: number, out: Uint8Array, to: number): void {
  let largest = 0
  for (let i = 0; i < BLOCK; i++) largest = Math.max(largest, Math.abs(x[at + i]!))
  const scale = Math.fround(largest / 127)
  const inverse = scale ? Math.fround(1 / scale) : 0
  const half = numberToF16(scale)
  out[to] = half & 0xff
  out[to + 1] = half >>> 8
  for (let i = 0; i < BLOCK; i++) out[to + 2 + i] = round(Math.fround(x[at + i]! * inverse))
}

/** The extreme becomes -8, so that all 16 values are of use; element i and i + 16 share a byte. */
function encodeQ4(x: Float32Array, at: number, out: Uint8Array, to: number): void {
  let extreme = 0
  for (let i = 0; i < BLOCK; i++) if (Math.abs(x[at + i]!) > Math.abs(extreme)) extreme = x[at + i]!
  const scale = Math.fround(extreme / -8)
  const inverse = scale ? Math.fround(1 / scale) : 0
  const half = numberToF16(scale)
  out[to] = half & 0xff
  out[to + 1] = half >>> 8
  const level = (i: number) => Math.min(15, Math.trunc(Math.fround(Math.fround(x[at + i]! * inverse) + 8.5)))
  for (let i = 0; i < BLOCK / 2; i++) out[to + 2 + i] = level(i) | (level(i + BLOCK / 2) << 4)
}

/** bf16 of float32 numbers that are bf16 already. */
function upperHalves(x: Float32Array): Uint8Array {
  const words = new Uint32Array(x.buffer, x.byteOffset, x.length)
  const halves = new Uint16Array(x.length)
  for (let i = 0; i < halves.length; i++) halves[i] = words[i]! >>> 16
  return new Uint8Array(halves.buffer)
}

/** Encodes whole blocks of float32 weights. */
export function encode(type: GgmlType, x: Float32Array): Uint8Array {
  if (type === 'F32') return new Uint8Array(x.slice().buffer)
  if (type === 'BF16') return upperHalves(x)
  const out = new Uint8Array(ggmlBytes(type, x.length))
  const write = type === 'Q8_0' ? encodeQ8 : encodeQ4
  for (let at = 0, to = 0; at < x.length; at += BLOCK, to += ggmlTypes[type].bytes) write(x, at, out, to)
  return out
}

/** The weights that blocks stand for: the inverse of `encode`, for tests. */
export function decode(type: 'Q8_0' | 'Q4_0', bytes: Uint8Array, halfToNumber: (bits: number) => number): Float32Array {
  const size = ggmlTypes[type].bytes
  const out = new Float32Array((bytes.length / size) * BLOCK)
  for (let block = 0; block * size < bytes.length; block++) {
    const at = block * size
    const scale = halfToNumber(bytes[at]! | (bytes[at + 1]! << 8))
    for (let i = 0; i < BLOCK; i++) {
      const byte = bytes[at + 2 + (type === 'Q8_0' ? i : i % (BLOCK / 2))]!
      const value = type === 'Q8_0' ? (byte << 24) >> 24 : (i < BLOCK / 2 ? byte & 15 : byte >>> 4) - 8
      out[block * BLOCK + i] = scale * value
    }
  }
  return out
}
