/**
 * Placement: an offset for every register, so that registers that live at the same time share no byte. That is dynamic
 * storage allocation, which is NP-hard in general; in a plan few registers live at once, so a search in order of
 * definition, which remembers the states that led nowhere, meets the lower bound or comes close to it.
 */
import { type Space, spaceNames } from '../../abi/ops/define.ts'

export interface Lifetime {
  readonly space: Space
  /** Bytes of a row, a multiple of 64. */
  readonly stride: number
  /** First and last instruction, both included. */
  readonly first: number
  readonly last: number
}

export interface Placement {
  /** By register. */
  readonly offsets: readonly number[]
  /** Bytes per row of capacity, by space. */
  readonly peak: readonly number[]
}

type Range = readonly [start: number, end: number]

/** Free ranges between `taken` ones, up to `capacity`. */
function gaps(taken: readonly Range[], capacity: number): Range[] {
  const free: Range[] = []
  let end = 0
  for (const [start, stop] of taken.toSorted((a, b) => a[0] - b[0])) {
    if (start > end) free.push([end, start])
    end = Math.max(end, stop)
  }
  if (capacity > end) free.push([end, capacity])
  return free
}

/** Both ends of every gap that holds `stride` bytes, tightest gap first. */
function candidates(taken: readonly Range[], stride: number, capacity: number): number[] {
  const fitting = gaps(taken, capacity).filter(([start, end]) => end - start >= stride)
  fitting.sort((a, b) => a[1] - a[0] - (b[1] - b[0]))
  return [...new Set(fitting.flatMap(([start, end]) => [start, end - stride]))]
}

/** Placements that one search may try. */
const SEARCH_STEPS = 20_000

/**
 * Offsets below `capacity` for registers in order of definition, or undefined. `live[i]` are the earlier registers that
 * live when i is defined: their offsets are all that the rest of the search depends on.
 */
function fit(registers: readonly Lifetime[], live: readonly (readonly number[])[], capacity: number) {
  const offsets: number[] = []
  const choices: number[][] = []
  const dead = new Set<string>()
  const state = (i: number) => `${i}:${live[i]!.map((j) => offsets[j])}`
  const open = (i: number) => {
    const taken = live[i]!.map((j): Range => [offsets[j]!, offsets[j]! + registers[j]!.stride])
    choices[i] = dead.size && dead.has(state(i)) ? [] : candidates(taken, registers[i]!.stride, capacity)
  }
  let i = 0
  open(0)
  for (let steps = SEARCH_STEPS + registers.length; steps > 0; steps--) {
    const offset = choices[i]!.shift()
    if (offset === undefined) {
      dead.add(state(i))
      if (i-- === 0) return undefined
      continue
    }
    offsets[i++] = offset
    if (i === registers.length) return offsets
    open(i)
  }
  return undefined
}

/** Capacities to try, as multiples of the lower bound, before any placement will do. */
const SLACK = [1, 1.01, 1.02, 1.05, 1.1, 1.25, 1.5]

function placeSpace(registers: readonly Lifetime[], bound: number): readonly number[] {
  let alive: number[] = []
  const live = registers.map(({ first }, i) => {
    const before = alive.filter((j) => registers[j]!.last >= first)
    alive = [...before, i]
    return before
  })
  const total = registers.reduce((sum, { stride }) => sum + stride, 0)
  for (const slack of SLACK) {
    const offsets = fit(registers, live, Math.floor((bound * slack) / 64) * 64)
    if (offsets) return offsets
  }
  return fit(registers, live, total)!
}

/** Offsets and peaks; `lowerBound` is by space, from plans/liveness.ts. */
export function place(registers: readonly Lifetime[], lowerBound: readonly number[]): Placement {
  const offsets = new Array<number>(registers.length).fill(0)
  const peak = spaceNames.map((space, i) => {
    const members = registers.flatMap((register, index) => (register.space === space ? [index] : []))
    if (!members.length) return 0
    members.sort((a, b) => registers[a]!.first - registers[b]!.first || registers[b]!.stride - registers[a]!.stride)
    const placed = placeSpace(
      members.map((index) => registers[index]!),
      lowerBound[i]!,
    )
    for (const [order, index] of members.entries()) offsets[index] = placed[order]!
    return Math.max(...members.map((index) => offsets[index]! + registers[index]!.stride))
  })
  return { offsets, peak }
}
