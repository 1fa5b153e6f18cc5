/**
 * Quantisation of rows of weights to integers: each 256 along K have one f16 scale, and under q4 each 32 of them a whole
 * sub-scale in [-15, 15]. value = integer (* sub-scale) * scale. Under q4, integer * sub-scale is an int8 again.
 *
 * Integers and sub-scales are chosen against the scale that is stored, so that rounding it costs nothing more than it must.
 */
import { f16ToNumber, numberToF16 } from '../../abi/dtypes.ts'
import { QUANT_BLOCK, QUANT_GROUP } from '../../abi/ops/define.ts'

/** Adding and subtracting 1.5 * 2^52 rounds a small float64 to the nearest integer, ties to even. */
const ROUND = 6_755_399_441_055_744
const F16_MAX = 65_504
const Q4_SUB_SCALE = 15

/** One row of a weight, quantised: `scales` holds f16 bits, one of 256 elements; `subScales` one of 32. */
export interface QuantizedRow {
  readonly values: Int8Array
  readonly scales: Uint16Array
  readonly subScales: Int8Array
}

/** Largest magnitude of a format whose scale is sure to be an f16. */
export const limits = { q8: F16_MAX * 127, q4: F16_MAX * 4 * Q4_SUB_SCALE } as const

/** Of row[start..end), the element of largest magnitude. */
function extremeOf(row: Float32Array, start: number, end: number): number {
  let extreme = 0
  for (let i = start; i < end; i++) if (Math.abs(row[i]!) > Math.abs(extreme)) extreme = row[i]!
  return extreme
}

/** What the element of largest magnitude is mapped to, tried in turn. */
const Q4_EXTREMES = [-8, -6.5, -7, -7.5, -8.5, -9, -9.5, -10, -10.5]

/**
 * The best scale of a group. Of 16 values -8 is the one without a counterpart, so it goes to the extreme (as in
 * llama.cpp's Q4_0), or to a value a little beside it: of the integers that each choice gives, those win whose best
 * scale leaves the least squared error. For integers q that scale is x.q / q.q, and it takes (x.q)^2 / q.q off the error.
 */
function q4Scale(row: Float32Array, start: number, end: number): number {
  const extreme = extremeOf(row, start, end)
  let [scale, best] = [0, 0]
  if (extreme === 0) return 0
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

/** Rounds row[start..end) to multiples of `step` within [least, most]; the squared error. */
function round(
  q: QuantizedRow,
  row: Float32Array,
  start: number,
  end: number,
  step: number,
  least: number,
  most: number,
) {
  let error = 0
  for (let i = start; i < end; i++) {
    const rounded = step === 0 ? 0 : row[i]! / step + ROUND - ROUND
    const value = rounded > most ? most : rounded < least ? least : rounded
    q.values[i] = value
    const miss = row[i]! - value * step
    error += miss * miss
  }
  return error
}

/** A whole sub-scale is up to half off the group's best: one of its neighbours may round the values better. */
function q4Group(q: QuantizedRow, row: Float32Array, start: number, end: number, wanted: number, scale: number): void {
  const ideal = scale === 0 ? 0 : Math.round(wanted / scale)
  let [best, least] = [0, Number.POSITIVE_INFINITY]
  for (const v of [ideal, ideal - 1, ideal + 1]) {
    if (Math.abs(v) > Q4_SUB_SCALE) continue
    const error = round(q, row, start, end, v * scale, -8, 7)
    if (error < least) [best, least] = [v, error]
  }
  q.subScales[start / QUANT_GROUP] = best
  round(q, row, start, end, best * scale, -8, 7)
}

function q4Block(q: QuantizedRow, row: Float32Array, start: number, end: number): void {
  const wanted: number[] = []
  for (let at = start; at < end; at += QUANT_GROUP) wanted.push(q4Scale(row, at, Math.min(at + QUANT_GROUP, end)))
  const widest = wanted.reduce((most, scale) => Math.max(most, Math.abs(scale)), 0)
  const bits = numberToF16(widest / Q4_SUB_SCALE)
  q.scales[start / QUANT_BLOCK] = bits
  for (const [g, scale] of wanted.entries()) {
    const at = start + g * QUANT_GROUP
    q4Group(q, row, at, Math.min(at + QUANT_GROUP, end), scale, f16ToNumber(bits))
  }
}

function q8Block(q: QuantizedRow, row: Float32Array, start: number, end: number): void {
  const bits = numberToF16(Math.abs(extremeOf(row, start, end)) / 127)
  q.scales[start / QUANT_BLOCK] = bits
  round(q, row, start, end, f16ToNumber(bits), -127, 127)
}

const blocks = { q8: q8Block, q4: q4Block } as const

/** Room for a row of `cols` elements. */
export const quantizedRow = (cols: number): QuantizedRow => ({
  values: new Int8Array(cols),
  scales: new Uint16Array(Math.ceil(cols / QUANT_BLOCK)),
  subScales: new Int8Array(Math.ceil(cols / QUANT_GROUP)),
})

/** Quantises one row into `q`. False where a value is not finite or beyond the format's limit. */
export function quantizeRow(format: keyof typeof blocks, row: Float32Array, q: QuantizedRow): boolean {
  for (let i = 0; i < row.length; i++) if (!(Math.abs(row[i]!) <= limits[format])) return false
  for (let start = 0; start < row.length; start += QUANT_BLOCK)
    blocks[format](q, row, start, Math.min(start + QUANT_BLOCK, row.length))
  return true
}
