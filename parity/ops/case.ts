/**
 * An op case: a tiny plan around one opcode, the steps to run through it, and how far two backends may be apart. Inputs
 * come out of an `embed` of float32 rows, which is exact, and results leave through `gather_rows`, which copies; so what
 * differs is the opcode's own arithmetic, reached through the plan, the linker and the step buffer as in earnest.
 */
import type { OpName } from '../../abi/ops/index.ts'
import type { GraphBuilder, Value } from '../../models/graph.ts'
import type { BatchInput, SequenceInput } from '../batch.ts'
import { ACCUMULATION, type NonFinite, opTolerances, roundoff } from '../tolerances.ts'
import type { Fill } from './generate.ts'

export type FloatDType = 'f32' | 'f16' | 'bf16'
/** dtypes of matrices: q8, q4 and fp8 are made from float32, where K is at least one group. */
export type MatrixDType = FloatDType | 'q8' | 'q4' | 'fp8'
/** Those of embeddings and heads too, which are q8 under fp8. */
export const matrixDTypes: readonly MatrixDType[] = ['f32', 'f16', 'bf16', 'q8', 'q4']

export type StateDType = FloatDType | 'i8'

export const isQuantized = (dtype: MatrixDType): dtype is 'q8' | 'q4' | 'fp8' =>
  dtype === 'q8' || dtype === 'q4' || dtype === 'fp8'

/** A tensor of the case's checkpoint. */
export interface CaseTensor {
  readonly name: string
  readonly shape: readonly [number] | readonly [number, number]
  readonly dtype: FloatDType
  /** What becomes of values that are uniform in [-1, 1); absent: they stay. */
  readonly fill?: Fill | undefined
}

export interface OpCase {
  readonly op: OpName
  readonly name: string
  /** dtype of its matrix, when it reads one, and of its state, when it has one: its cell in a report. */
  readonly weights?: MatrixDType
  readonly state?: StateDType
  /** Of the plan; token ids are below it. */
  readonly vocab: number
  readonly tensors: readonly CaseTensor[]
  /** Builds the plan up to its outputs. */
  readonly build: (graph: GraphBuilder) => void
  /** Matrices are quantised when the plan is compiled. */
  readonly quantize?: 'q8' | 'q4' | 'fp8'
  readonly steps: readonly BatchInput[]
  /** Largest absolute error of an output, where no operand of a product is rounded. */
  readonly tolerance: number
  /** Added to it, times the roundoff of what the backend's table says that operands of its products are rounded to. */
  readonly perRoundoff?: number
  /** What an output owes where the reference's is no number; absent: what the opcode's rule in tolerances.ts says. */
  readonly nonFinite?: NonFinite | undefined
}

/** 1, odd, and around the edges of tiles and vectors. */
export const sizes = [1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65] as const
/** Around the edges of blocks of K that share a scale, and beyond two. */
export const longSizes = [127, 128, 129, 255, 256, 257, 700, 1025] as const
/** Name and label of the embedding that feeds a case, and its rows. */
export const INPUT = 'input'
export const INPUT_ROWS = 67

export const inputTensor = (width: number, fill?: Fill): CaseTensor => ({
  name: INPUT,
  shape: [INPUT_ROWS, width],
  dtype: 'f32',
  fill,
})
export const rowTensor = (name: string, n: number): CaseTensor => ({ name, shape: [n], dtype: 'f32' })
/** A matrix as the checkpoint of a case stores it. */
export const matrixTensor = (name: string, rows: number, cols: number, dtype: MatrixDType): CaseTensor => ({
  name,
  shape: [rows, cols],
  dtype: isQuantized(dtype) ? 'f32' : dtype,
})

/** The input as consecutive column ranges of one register. */
export function inputs(graph: GraphBuilder, ...widths: readonly number[]): Value[] {
  const width = widths.reduce((sum, each) => sum + each, 0)
  const table = graph.weight(INPUT, [INPUT_ROWS, width])
  const { register } = graph.add('embed', INPUT, { weights: { table }, params: { vocab: INPUT_ROWS, width } }).out
  let end = 0
  return widths.map((each) => {
    end += each
    return { register, column: end - each, width: each }
  })
}

/** Rows of a value of tokens. */
export const gathered = (graph: GraphBuilder, x: Value): Value =>
  graph.add('gather_rows', 'gather_rows', { inputs: { x }, params: { width: x.width } }).out

/** Makes a value of tokens the plan's hidden output. */
export const outputTokens = (graph: GraphBuilder, x: Value): void => graph.output('hidden', gathered(graph, x))

/** `count` tokens of one sequence; the ids walk through the input rows. */
export const prompt = (count: number, rest: Partial<SequenceInput> = {}): SequenceInput => ({
  slot: 1,
  blocks: [1, 2, 3, 4, 5, 6, 7, 8],
  position: 0,
  tokens: Array.from({ length: count }, (_, i) => ((rest.position ?? 0) * 3 + i * 31 + 7) % INPUT_ROWS),
  ...rest,
})

/** c * eps * sqrt(K) * scale of the opcode (parity/tolerances.ts). */
export const bound = (op: OpName, k: number, eps: number = roundoff.f32, scale = 1) =>
  opTolerances[op].c * eps * Math.sqrt(k) * scale

/** Bounds of a product over K whose errors grow by `scale` on their way out: of its sum, and of rounded operands. */
export const productBounds = (op: 'linear' | 'logits' | 'moe', k: number, scale: number) => ({
  tolerance: ACCUMULATION * roundoff.f32 * Math.sqrt(k) * scale,
  perRoundoff: bound(op, k, 1, scale),
})
