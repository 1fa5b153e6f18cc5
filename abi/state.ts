/**
 * StateDescriptor: what one state of a plan is and what may be done to it. Block 0 of every paged state and slot 0 of
 * every fixed state is a dump: padded lanes write there and nobody reads it.
 */
import type { DType } from './dtypes.ts'
import type { StateKind } from './ops/define.ts'

/** Bits of `lifecycle`: which operations the runtime may apply to a unit (a block or a slot record). */
export const lifecycles = { init: 1, reset: 2, evict: 4, clone: 8 } as const
/** `rewind`: most positions that can be taken back; `any` is all, 0 is none. */
export const REWIND_ANY = 0xffffffff
/** `fork`: from which positions a sequence may branch. `head`: only from the newest. */
export const forks = { none: 0, head: 1, any: 2 } as const
export type Fork = keyof typeof forks

export interface StateDescriptor {
  readonly id: number
  readonly name: string
  readonly kind: StateKind
  readonly dtype: DType
  /** Bytes of one unit: a block (paged, ring) or a slot's record (fixed). */
  readonly sizeBytes: number
  readonly alignBytes: number
  /** Whether a unit must read as zero before its first use. */
  readonly zeroInit: boolean
  /** Positions a block holds; 1 for fixed states. */
  readonly blockTokens: number
  readonly lifecycle: number
  readonly rewind: number
  readonly fork: Fork
}

/** What a state kind can do, and why: paged keys and values are addressable by position, a recurrence only has its head. */
export const capabilities = {
  paged: { lifecycle: 15, rewind: REWIND_ANY, fork: 'any', zeroInit: false },
  ring: { lifecycle: 15, rewind: 0, fork: 'head', zeroInit: false },
  fixed: { lifecycle: 15, rewind: 0, fork: 'head', zeroInit: true },
} as const satisfies Record<StateKind, Pick<StateDescriptor, 'lifecycle' | 'rewind' | 'fork' | 'zeroInit'>>

/** Positions in one block of every paged state of a plan. */
export const BLOCK_TOKENS = 32
export const STATE_ALIGN_BYTES = 64
