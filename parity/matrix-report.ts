/**
 * The file of a parity matrix, format 1: what was judged, by which code, cell by cell, and the verdict. JSON; every SHA-256
 * is in lower-case hexadecimal. A reader refuses a matrix whose `code` is not that of the tree it stands in
 * (parity/code.ts), and one that lacks a cell: every pair of rows times models times shapes has exactly one.
 */
import type { WeightsClass } from './tolerances.ts'

export const MATRIX_FORMAT = 'ingot-parity-matrix'
export const MATRIX_VERSION = 1

/** A backend as it was opened. */
export interface MatrixRow {
  /** Unique: "reference", "cpu:avx2". */
  readonly name: string
  readonly backend: string
  readonly isa: string
  readonly description: string
  readonly deterministic: boolean
  /** SHA-256 of its kernel table and the binary that holds its kernels (parity/code.ts). */
  readonly kernels: string
}

/** A package: one checkpoint at one precision. */
export interface MatrixModelInfo {
  readonly name: string
  /** How it was compiled: "bf16", "f16", "f32", "q8", "q4", "bf16+q8 state". */
  readonly precision: string
  readonly weights: WeightsClass
  /** Of keys and values; "none" without. */
  readonly state: string
  readonly layers: number
  readonly vocab: number
  /** SHA-256 of the plan's bytes, and of the weights' file. */
  readonly planSha256: string
  readonly weightsSha256: string
}

/** How sequences are run: `chunk` tokens of each a step, `batch` of them together, then `generate` greedy tokens. */
export interface MatrixShape {
  readonly name: string
  readonly kind: 'text' | 'random'
  /** Tokens of each prompt. */
  readonly prompts: readonly number[]
  readonly batch: number
  readonly chunk: number
  readonly generate: number
}

export interface Bounded {
  readonly value: number
  /** Largest that passes. */
  readonly allowed: number
}

/** Greedy continuations, compared token by token until the first difference. */
export interface MatrixGreedy {
  readonly matched: number
  readonly total: number
  /** Differences where the expected side led by less than the tie margin: nothing after them is comparable. */
  readonly ties: number
}

/** Errors of the logits; `relative` ones are over the standard deviation of the expected logits. */
export interface MatrixMetrics {
  /** Rows of logits compared. */
  readonly tokens: number
  readonly maxAbs: Bounded
  readonly maxRel: number
  readonly rms: Bounded
  /** Mean over tokens of KL(expected || actual), in nats. */
  readonly kl: Bounded
  /** Share of logits that err by more than four times the allowed rms. */
  readonly mismatchRatio: Bounded
  /** Share of tokens with the same best id, and how many of the others are no ties. */
  readonly argmaxAgreement: number
  readonly argmaxOutsideTies: Bounded
  readonly greedy: MatrixGreedy & { readonly outsideTies: Bounded }
}

/** The residual stream behind one layer: rms of the errors of a token over the rms of the token, the worst and the mean. */
export interface LayerDivergence {
  /** "embed", "layers.0" ... */
  readonly label: string
  readonly instruction: number
  readonly mean: number
  readonly worst: Bounded
}

/** Statistics of an operand or output on the side that is judged. */
export interface OperandStatistics {
  readonly name: string
  readonly rows: number
  readonly width: number
  readonly min: number
  readonly max: number
  readonly mean: number
  readonly rms: number
  readonly nans: number
  readonly infinities: number
  /** Largest difference from the expected side, and where; null where nothing differs. */
  readonly largest: { readonly difference: number; readonly row: number; readonly column: number } | null
}

/** The first instruction that diverges, and how it was found. */
export interface Divergence {
  /** Row whose instruction it is. */
  readonly judged: string
  readonly instruction: number
  readonly op: string
  readonly label: string
  /**
   * bits: the first whose output differs in any bit. alone: the first that errs, on the operands that it really had, by
   * more than its opcode may. largest: no instruction does that alone; this one comes nearest.
   */
  readonly found: 'bits' | 'alone' | 'largest'
  /** Error of its worst row over the rms of that row; 0 allowed for bits. */
  readonly error: Bounded
  /** Step of the run, first row and its position in the sequence that differ. */
  readonly step: number
  readonly row: number
  readonly position: number | null
  readonly inputs: readonly OperandStatistics[]
  readonly outputs: readonly OperandStatistics[]
  /** States whose units differ, by name; empty where the two sides keep them in other forms. */
  readonly states: readonly string[]
}

export interface MatrixCell {
  readonly model: string
  readonly precision: string
  readonly shape: string
  /** Names of rows: what is expected, and what is judged by it. */
  readonly expected: string
  readonly actual: string
  /** skipped: one of both cannot run this (`reason`). */
  readonly verdict: 'pass' | 'fail' | 'skipped'
  readonly reason?: string
  /** Whether every bit that came out is the same; both sides' arithmetic being one, nothing else passes. */
  readonly sameBits?: boolean
  readonly metrics?: MatrixMetrics
  readonly layers?: readonly LayerDivergence[]
  /** What failed, in sentences. */
  readonly failures: readonly string[]
  readonly divergence?: Divergence
  /** Why the first diverging instruction of a failure is not known. */
  readonly divergenceReason?: string
}

/** Errors of the instructions of one opcode, each judged alone on its real operands: the worst row of each instruction. */
export interface OpErrors {
  readonly row: string
  readonly model: string
  readonly precision: string
  readonly kind: MatrixShape['kind']
  readonly op: string
  /** Relative errors by instruction, in the plan's order. */
  readonly errors: readonly number[]
  readonly allowed: number
}

export interface MatrixReport {
  readonly format: typeof MATRIX_FORMAT
  readonly version: typeof MATRIX_VERSION
  readonly pass: boolean
  /** ISO 8601. */
  readonly created: string
  readonly seconds: number
  /** SHA-256 of the code that decides the outcome (parity/code.ts). */
  readonly code: string
  /** SHA-256 of every token id that was run, and the seed of the random ones. */
  readonly corpus: string
  readonly seed: number
  readonly machine: { readonly cpu: string; readonly arch: string; readonly node: string; readonly ingot: string }
  readonly rows: readonly MatrixRow[]
  readonly models: readonly MatrixModelInfo[]
  readonly shapes: readonly MatrixShape[]
  readonly cells: readonly MatrixCell[]
  readonly operations: readonly OpErrors[]
  /** Why each threshold is what it is, by name. */
  readonly reasons: Readonly<Record<string, string>>
}
