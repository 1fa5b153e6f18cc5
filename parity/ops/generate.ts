/** Cases from a small table an opcode: its axes, what fills its tensors, and the ragged batches that it runs through. */

import type { BatchInput } from '../batch.ts'
import { random } from '../random.ts'
import { INPUT_ROWS, prompt } from './case.ts'

/** For each field of a shape, the values that it takes. */
export type Axes<S> = { readonly [K in keyof S]?: readonly S[K][] }

/** Draws of the mixed shapes: the same on every run and machine. */
const SEED = 20_261_121

/**
 * `base`; then each value of each axis, all else as in the base; then `mixed` shapes that draw every axis at once. What
 * `valid` refuses and what is there already is left out.
 */
export function generate<S extends object>(
  base: S,
  axes: Axes<S>,
  mixed = 0,
  valid: (shape: S) => boolean = () => true,
): S[] {
  const columns = Object.entries(axes) as [keyof S, readonly S[keyof S][]][]
  const shapes = [base, ...columns.flatMap(([name, values]) => values.map((value) => ({ ...base, [name]: value })))]
  const next = random(SEED)
  const draw = (values: readonly S[keyof S][]) => values[Math.floor(next() * values.length)]
  for (let tries = 0, found = 0; found < mixed && tries < 50 * mixed; tries++) {
    const shape = { ...base, ...Object.fromEntries(columns.map(([name, values]) => [name, draw(values)])) }
    if (!valid(shape)) continue
    shapes.push(shape)
    found++
  }
  const seen = new Set<string>()
  return shapes.filter((shape) => valid(shape) && !seen.has(describe(shape)) && seen.add(describe(shape)))
}

/** "n 33, k 65, fill large": the fields that are not off. */
export const describe = (shape: object): string =>
  Object.entries(shape)
    .filter(([, value]) => value !== undefined && value !== 0 && value !== false && value !== 'plain')
    .map(([name, value]) => (value === true ? name : `${name} ${value}`))
    .join(', ')

/** Changes the value of element (row, column) of a tensor of `width` columns, which is uniform in [-1, 1). */
export type Fill = (value: number, row: number, column: number, width: number) => number

/** Magnitude of `large`: far beyond what fits a bf16 exactly, and products of two still fit f16 scales of int8. */
const LARGE = 4096
/** Magnitude of `wide`: scores of queries and keys that wide leave a soft-max with few weights that matter. */
const WIDE = 8
/** Magnitude of `tiny`: squares are about as large as the epsilons of norms, so that each counts. */
const TINY = 2 ** -8

/** Whether a row of the input holds a value that is no number, and where: a third of the rows, one column each. */
const isSpecial = (row: number, column: number, width: number) => row % 3 === 1 && column === (row * 7) % width

export const fills = {
  plain: (v) => v,
  large: (v) => v * LARGE,
  wide: (v) => v * WIDE,
  tiny: (v) => v * TINY,
  /** Five values: nearly every comparison is a tie. */
  ties: (v) => Math.round(v * 2) / 2,
  /** All ties. */
  equal: () => 0.5,
  nan: (v, row, column, width) => (isSpecial(row, column, width) ? Number.NaN : v),
  infinite: (v, row, column, width) => (isSpecial(row, column, width) ? (row % 2 ? 1 : -1) * Infinity : v),
} as const satisfies Readonly<Record<string, Fill>>
export type FillName = keyof typeof fills

/** Largest magnitude that a fill leaves, but for what is no number. */
export const amplitude = (fill: FillName): number => ({ large: LARGE, wide: WIDE, tiny: TINY })[fill as 'large'] ?? 1

/** Applies `fill` to columns [from, to) only, as if they were all. */
export const within =
  (fill: FillName, from: number, to: number): Fill =>
  (v, row, column) =>
    column >= from && column < to ? fills[fill](v, row, column - from, to - from) : v

/** One sequence at the token counts around which a kernel may change its path. */
const counts: readonly BatchInput[] = [1, 2, 15, 16, 17, 33, 64].map((count) => ({ sequences: [prompt(count)] }))

/** Sequences of unequal length, of one token among them. */
const ragged: BatchInput = {
  sequences: [prompt(1), prompt(17, { slot: 2 }), prompt(5, { slot: 3, position: 3 }), prompt(INPUT_ROWS, { slot: 4 })],
}

export const batches = { counts, few: [counts[0]!, counts[5]!], ragged: [counts[1]!, ragged] } as const
export type BatchName = keyof typeof batches
