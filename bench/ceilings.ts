/**
 * What this machine can do at most, measured in the same run as what is compared with it: read bandwidth, and the peak
 * of multiply-adds by the type of their operands.
 */
import { addon } from '../abi/native.ts'
import type { Arithmetic } from '../compute/work.ts'
import { type ErrorCode, type ErrorDetails, fail } from '../errors.ts'
import { type Spread, spread } from './measure.ts'

export interface Ceilings {
  readonly isa: string
  readonly threads: number
  /** GB/s (10^9) of all threads: the best of three loops, and that of a plain one. */
  readonly read: Spread
  readonly readPlain: Spread
  /** GOP/s (10^9; a multiply-add is two) of all threads: the best of the units that can do it. */
  readonly peak: Readonly<Record<Arithmetic, Spread>>
  /** The same by unit that the instruction set has: f32, i8 and bf16 vectors, i8_tile and bf16_tile of AMX. */
  readonly units: Readonly<Record<string, Spread>>
}

/** Units whose results a product of that arithmetic may use; a wider type serves a narrower one. */
const serves: Readonly<Record<Arithmetic, readonly string[]>> = {
  f32: ['f32'],
  bf16: ['f32', 'bf16', 'bf16_tile'],
  i8: ['f32', 'i8', 'i8_tile'],
}

/**
 * Measures for about a second, off the event loop. `threads` 0: physical cores; `isa` empty: the best; `readBytes`: of the
 * buffer that is read. Throws ISA_UNAVAILABLE, OUT_OF_MEMORY, ADDON_MISSING.
 */
export async function ceilings({
  threads = 0,
  isa = '',
  readBytes = 2 ** 30,
}: {
  threads?: number
  isa?: string
  readBytes?: number
} = {}): Promise<Ceilings> {
  const found = await addon().probe({ threads, isa, readBytes })
  if ('code' in found) throw fail(found.code as ErrorCode, found.details as ErrorDetails<ErrorCode>)
  const all = new Map(found.measurements.map(({ name, samples }) => [name, spread(samples)]))
  const best = (names: readonly string[]) =>
    names.flatMap((name) => all.get(name) ?? []).reduce((a, b) => (b.median > a.median ? b : a))
  const units = Object.fromEntries([...all].filter(([name]) => !name.startsWith('read')))
  return {
    isa: found.isa,
    threads: found.threads,
    read: best(['read', 'read_far', 'read_plain']),
    readPlain: best(['read_plain']),
    peak: { f32: best(serves.f32), bf16: best(serves.bf16), i8: best(serves.i8) },
    units,
  }
}
