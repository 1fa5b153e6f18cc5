/**
 * Quantisation of rows of weights to e4m3 (fp8): one float32 scale a row, its largest magnitude at 448, and each value
 * rounded to nearest even against the scale that is stored.
 */
import { E4M3_MAX, float32BitsToE4m3 } from '../../abi/dtypes.ts'

/** Least scale: the least normal float32. */
const LEAST = 2 ** -126

/** Quantises one row to the bits `to`, its scale to `scale`. False where a value is not finite. */
export function quantizeRowE4m3(row: Float32Array, to: Uint8Array, scale: Float32Array): boolean {
  let largest = 0
  for (let i = 0; i < row.length; i++) {
    const magnitude = Math.abs(row[i]!)
    if (!(magnitude < Number.POSITIVE_INFINITY)) return false
    if (magnitude > largest) largest = magnitude
  }
  scale[0] = largest === 0 ? 0 : Math.max(largest / E4M3_MAX, LEAST)
  const step = largest === 0 ? 1 : scale[0]!
  const values = new Float32Array(1)
  const bits = new Uint32Array(values.buffer)
  for (let i = 0; i < row.length; i++) {
    values[0] = row[i]! / step
    to[i] = float32BitsToE4m3(bits[0]!)
  }
  return true
}
