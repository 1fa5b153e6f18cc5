import type { Ops } from '../../abi/ops/index.ts'
import { pools } from '../../abi/ops/tokens.ts'
import { dot, type ReferenceKernel, row, weightRow } from './kernel.ts'
import { dequantized } from './linear.ts'

export const embed: ReferenceKernel<Ops['embed']> = ({ params, weights, step, outputs }) => {
  const table = dequantized(weights.table, weights.scales)
  for (let t = 0; t < step.tokens; t++) {
    const out = row(outputs.out, t)
    const values = weightRow(table, step.tokenIds[t]!)
    const position = weights.positions && weightRow(weights.positions, step.positions[t]! + params.position_offset)
    for (let c = 0; c < out.length; c++)
      out[c] = params.scale * values[c]! + (position?.[c] ?? 0) + (weights.types?.data[c] ?? 0)
  }
}

export const gather_rows: ReferenceKernel<Ops['gather_rows']> = ({ inputs, step, outputs }) => {
  for (let r = 0; r < step.rows; r++) row(outputs.out, r).set(row(inputs.x, step.rowToken[r]!))
}

/** Keeps a zero vector zero, as published models normalise. */
const LEAST_LENGTH = 1e-12

export const pool: ReferenceKernel<Ops['pool']> = ({ params, inputs, step, outputs }) => {
  for (let s = 0; s < step.sequences; s++) {
    const out = row(outputs.out, s)
    const [start, end] = [step.sequenceStart[s]!, step.sequenceStart[s + 1]!]
    const first = params.mode === pools.last ? end - 1 : start
    const count = params.mode === pools.mean ? end - start : 1
    for (let t = first; t < first + count; t++) {
      const x = row(inputs.x, t)
      for (let c = 0; c < out.length; c++) out[c]! += x[c]! / count
    }
    const length = params.normalize ? Math.max(Math.sqrt(dot(out, 0, out, 0, out.length)), LEAST_LENGTH) : 1
    for (let c = 0; c < out.length; c++) out[c]! /= length
  }
}
