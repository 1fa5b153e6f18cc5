/**
 * Quantisation of rows of weights to integers in groups of 32 along K, each with one f16 scale: value = integer * scale.
 * The integers are rounded against the scale that is stored, so that rounding it costs nothing more than it must.
 */
import { f16ToNumber, numberToF16 } from '../../abi/dtypes.ts'
import { QUANT_GROUP } from '../../abi/ops/define.ts'

/** Adding and subtracting 1.5 * 2^52 rounds a small float64 to the nearest integer, ties to even. */
const ROUND = 6_755_399_441_055_744
const F16_MAX = 65_504

/** How one group is quantised. */
interface Integers {
  readonly least: number
  readonly most: number
  /** Largest magnitude whose scale is sure to be an f16. */
  readonly limit: number
  /** Scale of row[start..end), whose element of largest magnitude is `extreme`. */
  readonly scale: (extreme: number, row: Float32Array, start: number, end: number) => number
}

/** What the element of largest magnitude is mapped to, tried in turn. */
const Q4_EXTREMES = [-8, -6.5, -7, -7.5, -8.5, -9, -9.5, -10, -10.5]

/**
 * Of 16 values -8 is the one without a counterpart, so it goes to the extreme (as in llama.cpp's Q4_0), or to a value a
 * little beside it: of the integers that each choice gives, those win whose best scale leaves the least squared error.
 * For integers q that scale is x.q / q.q, and it takes (x.q)^2 / q.q off the error. Normal weights err by 8.12 % rms
 * so, by 8.41 % with -8 alone and by 8.10 % with half the step.
 */
function q4Scale(extreme: number, row: Float32Array, start: number, end: number): number {
  let [scale, best] = [0, 0]
  for (const target of Q4_EXTREMES) {
    const inverse = target / extreme
    let [xq, qq] = [0, 0]
    for (let i = start; i < end; i++) {
      const x = row[i]!
      const rounded = x * inverse + ROUND - ROUND
      const q = rounded > 7 ? 7 : rounded < -8 ? -8 : rounded
      xq += x * q
      qq += q * q
    }
    if (xq * xq <= best * qq) continue
    best = (xq * xq) / qq
    scale = xq / qq
  }
  return scale
}

export const integers = {
  q8: { least: -127, most: 127, limit: F16_MAX * 127, scale: (extreme) => Math.abs(extreme) / 127 },
  q4: { least: -8, most: 7, limit: F16_MAX * 4, scale: q4Scale },
} as const satisfies Readonly<Record<string, Integers>>

/** Quantises one row; `scales` receives f16 bits. False where a value is not finite or beyond the format's limit. */
export function quantizeRow(
  format: keyof typeof integers,
  row: Float32Array,
  values: Int8Array,
  scales: Uint16Array,
): boolean {
  const { least, most, limit, scale: scaleOf } = integers[format]
  for (let group = 0, start = 0; start < row.length; group++, start += QUANT_GROUP) {
    const end = Math.min(start + QUANT_GROUP, row.length)
    let extreme = 0
    for (let i = start; i < end; i++) {
      const magnitude = Math.abs(row[i]!)
      if (!(magnitude <= limit)) return false
      if (magnitude > Math.abs(extreme)) extreme = row[i]!
    }
    scales[group] = numberToF16(extreme === 0 ? 0 : scaleOf(extreme, row, start, end))
    const scale = f16ToNumber(scales[group]!)
    for (let i = start; i < end; i++) {
      const rounded = scale === 0 ? 0 : row[i]! / scale + ROUND - ROUND
      values[i] = rounded > most ? most : Math.max(rounded, least)
    }
  }
  return true
}
