/** A kernel table: what one backend runs of every opcode. Complete at compile time: a missing opcode is a type error. */
import type { DType } from '../abi/dtypes.ts'
import type { OpName } from '../abi/ops/index.ts'

/**
 * What operands of products are rounded to. i8: by row and block of 256, the block's largest magnitude at 127; e4m3: by
 * row, the row's largest at 448.
 */
export type OperandDType = Extract<DType, 'f16' | 'bf16' | 'i8' | 'e4m3'>

export interface Kernel {
  /** Symbol in native/<backend>/, and name of the file that holds it. */
  readonly symbol: string
  /** Highest opcode version that it implements. */
  readonly version: number
  /** dtypes of the tiled weights it reads; empty where the opcode has none. */
  readonly weights: readonly DType[]
  /** Why it reads no weights of a dtype, and what to do instead: shown where a plan has them. */
  readonly without?: Readonly<Partial<Record<DType, string>>>
  /** What it rounds the inputs of its products to, at most, by dtype of the weights; those it does not name meet float32. */
  readonly operands?: Readonly<Partial<Record<DType, OperandDType>>>
  /** The same in deterministic mode, where that is finer. */
  readonly deterministicOperands?: Kernel['operands']
  /** Whether a register that nothing but such inputs reads is kept rounded to what they are in the deterministic mode. */
  readonly keepsOperands?: true
  /** dtypes of paged or fixed state it reads and writes. */
  readonly states?: readonly DType[]
  /** Upper limits on parameters, inclusive: { head_dim: 512 }. */
  readonly limits?: Readonly<Record<string, number>>
  /** Why it is launched once a slot instead of once a step. Each step counts such launches; `open` must allow them. */
  readonly perSlot?: string
}
/** Not implemented, and why: shown to whoever links a plan that needs it. */
export interface Unsupported {
  readonly unsupported: string
}
export type KernelTable = Readonly<Record<OpName, Kernel | Unsupported>>

/** The table as it holds in one of the modes: `operands` are those of it. */
export function tableInMode(table: KernelTable, deterministic: boolean): KernelTable {
  if (!deterministic) return table
  const entries = Object.entries(table).map(([op, entry]) =>
    'symbol' in entry && entry.deterministicOperands
      ? [op, { ...entry, operands: entry.deterministicOperands }]
      : [op, entry],
  )
  return Object.fromEntries(entries) as KernelTable
}
