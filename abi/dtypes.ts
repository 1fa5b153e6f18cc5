/** Element types of registers, tensors and states. Ids are written into plans: append, never renumber. */
export const dtypes = {
  f32: { id: 1, bits: 32, safetensors: 'F32' },
  f16: { id: 2, bits: 16, safetensors: 'F16' },
  bf16: { id: 3, bits: 16, safetensors: 'BF16' },
  i8: { id: 4, bits: 8, safetensors: 'I8' },
  i32: { id: 5, bits: 32, safetensors: 'I32' },
  /** Two's complement, eight in four bytes: see `packInt4`. safetensors has no such type and is told of bytes. */
  i4: { id: 6, bits: 4, safetensors: 'U8' },
  /** Sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities, largest 448 (OCP 8-bit floating point, 2023). */
  e4m3: { id: 7, bits: 8, safetensors: 'F8_E4M3' },
} as const

export type DType = keyof typeof dtypes
export const dtypeNames = Object.keys(dtypes) as DType[]

/** The dtype of a plan id, or undefined for an id this runtime does not know. */
export function dtypeOf(id: number): DType | undefined {
  return dtypeNames.find((name) => dtypes[name].id === id)
}

/** Bytes of `elements` of a dtype; packed dtypes come in multiples of 8. */
export const byteSize = (dtype: DType, elements: number): number => (elements * dtypes[dtype].bits) / 8

/**
 * Packs int4 values, a multiple of 8: byte i of each four holds value i in its low half and value i + 4 in its high
 * half, so that a mask, and a shift and a mask, give two vectors of quads.
 */
export function packInt4(values: Int8Array, target: Uint8Array): void {
  for (let from = 0, to = 0; from < values.length; from += 8)
    for (let i = from; i < from + 4; i++) target[to++] = (values[i]! & 15) | ((values[i + 4]! & 15) << 4)
}

/** The inverse of `packInt4`. */
export function unpackInt4(bytes: Uint8Array): Int8Array {
  return Int8Array.from({ length: bytes.length * 2 }, (_, i) => {
    const byte = bytes[(i >> 3) * 4 + (i & 3)]!
    return ((i & 4 ? byte : byte << 4) << 24) >> 28
  })
}

const scratch = new DataView(new ArrayBuffer(4))

/** bf16 bits to number: the upper half of a float32. */
export function bf16ToNumber(bits: number): number {
  scratch.setUint32(0, bits << 16)
  return scratch.getFloat32(0)
}

/** Number to bf16 bits, round to nearest even; NaN stays NaN. */
export function numberToBf16(value: number): number {
  scratch.setFloat32(0, value)
  const bits = scratch.getUint32(0)
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
}

/** IEEE 754 binary16 bits to number, subnormals, infinities and NaN included. */
export function f16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >>> 10) & 31
  const fraction = bits & 1023
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

/** Number to IEEE 754 binary16 bits, round to nearest even from the float32 value. */
export function numberToF16(value: number): number {
  scratch.setFloat32(0, value)
  const bits = scratch.getUint32(0)
  const sign = (bits >>> 16) & 0x8000
  const magnitude = bits & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00
  if (magnitude >= 0x477ff000) return sign | 0x7c00
  if (magnitude < 0x38800000) {
    // below the smallest normal: units of 2^-24
    const units = Math.abs(Math.fround(value)) * 2 ** 24
    const floor = Math.floor(units)
    const rest = units - floor
    return sign | (rest > 0.5 || (rest === 0.5 && floor & 1) ? floor + 1 : floor)
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
}

/** Largest e4m3. */
export const E4M3_MAX = 448

/** e4m3 bits to number, subnormals and NaN included. */
export function e4m3ToNumber(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1
  const exponent = (bits >>> 3) & 15
  const fraction = bits & 7
  if ((bits & 0x7f) === 0x7f) return Number.NaN
  return sign * (exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10))
}

/** Bits of a float32 to e4m3 bits, round to nearest even; beyond the largest, infinities included, the largest. */
export function float32BitsToE4m3(bits: number): number {
  const sign = (bits >>> 24) & 0x80
  const magnitude = bits & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7f
  if (magnitude >= 0x43e00000) return sign | 0x7e
  if (magnitude >= 0x3c800000) return sign | (((magnitude + 0x7ffff + ((magnitude >>> 20) & 1)) >>> 20) - (120 << 3))
  // below the smallest normal: units of 2^-9
  const shift = 141 - (magnitude >>> 23)
  if (shift > 24) return sign
  const fraction = (magnitude & 0x7fffff) | 0x800000
  return sign | ((fraction + (1 << (shift - 1)) - 1 + ((fraction >>> shift) & 1)) >>> shift)
}

/** Number to e4m3 bits, by way of its float32. */
export function numberToE4m3(value: number): number {
  scratch.setFloat32(0, value)
  return float32BitsToE4m3(scratch.getUint32(0))
}
