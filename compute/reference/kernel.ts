/** What a reference kernel sees: every value of one instruction in float64, named as in the opcode's definition. */
import type { OpDef, ParamsOf } from '../../abi/ops/define.ts'
import type { StepView } from '../../abi/step.ts'

/** Columns of a register: element (r, c) is data[offset + r * stride + c]. */
export interface Matrix {
  readonly data: Float64Array
  readonly offset: number
  readonly stride: number
  readonly rows: number
  readonly width: number
}

/** A stored weight, unpacked: (rows, cols) row-major. int8 and int4 weights hold their integers; see `dequantized`. */
export interface Weight {
  readonly data: Float64Array
  readonly rows: number
  readonly cols: number
}

/** A state: `unit(u)` is block or slot record u, in elements, zero until written. */
export interface State {
  readonly blockTokens: number
  unit(index: number): Float64Array
}

/** The step buffer with its counts read out. */
export interface ReferenceStep extends StepView {
  readonly tokens: number
  readonly sequences: number
  readonly rows: number
  readonly blocksPerSequence: number
}

type Named<Defs, Value> = {
  readonly [K in keyof Defs]: Defs[K] extends { readonly optional: true } ? Value | undefined : Value
}

export interface ReferenceCall<O extends OpDef = OpDef> {
  readonly params: ParamsOf<O>
  readonly inputs: Named<O['inputs'], Matrix>
  readonly weights: Named<O['weights'], Weight>
  readonly states: Named<O['states'], State>
  readonly step: ReferenceStep
  /** Allocated by the caller and zero; the kernel fills them. */
  readonly outputs: Named<O['outputs'], Matrix>
}

/** The meaning of one opcode: fills the outputs and advances the states. */
export type ReferenceKernel<O extends OpDef = OpDef> = (call: ReferenceCall<O>) => void

/** A zero matrix of its own. */
export const matrix = (rows: number, width: number): Matrix => ({
  data: new Float64Array(rows * width),
  offset: 0,
  stride: width,
  rows,
  width,
})

/** Row r as a view. */
export function row(m: Matrix, r: number): Float64Array {
  const start = m.offset + r * m.stride
  return m.data.subarray(start, start + m.width)
}

/** Row r of a weight as a view. */
export const weightRow = (w: Weight, r: number): Float64Array => w.data.subarray(r * w.cols, (r + 1) * w.cols)

/** Inner product over `count` elements; four partial sums, so that the order is fixed and the loop pipelines. */
export function dot(a: Float64Array, aStart: number, b: Float64Array, bStart: number, count: number): number {
  let [s0, s1, s2, s3] = [0, 0, 0, 0]
  let i = 0
  for (; i + 4 <= count; i += 4) {
    s0 += a[aStart + i]! * b[bStart + i]!
    s1 += a[aStart + i + 1]! * b[bStart + i + 1]!
    s2 += a[aStart + i + 2]! * b[bStart + i + 2]!
    s3 += a[aStart + i + 3]! * b[bStart + i + 3]!
  }
  for (; i < count; i++) s0 += a[aStart + i]! * b[bStart + i]!
  return s0 + s1 + (s2 + s3)
}
