/** Parsers of command-line values; a value that does not fit is a usage error that names it. */
import { InvalidArgumentError, Option } from 'commander'
import { fail } from '../errors.ts'
import type { SpeculativeOptions } from '../index.ts'

export function integer(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!Number.isInteger(value) || value < least)
      throw new InvalidArgumentError(`expected an integer of at least ${least}.`)
    return value
  }
}

export function number(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('expected a number.')
  return value
}

export interface SpeculativeFlags {
  readonly draft?: string
  readonly lookup?: boolean
  readonly guesses?: number
}

/** Options of commands that can speculate. */
export const draftFlag = new Option(
  '--draft <package>',
  'guess tokens by a smaller model of the same vocabulary: the same output in fewer steps',
)
export const lookupFlag = new Option('--lookup', 'guess tokens by what followed the latest ones before')
export const guessesFlag = new Option('--guesses <n>', 'most tokens guessed at once; default: 4').argParser(integer(1))

/** Of commands that open a package. */
export const deterministicFlag = new Option(
  '--deterministic',
  'no bit of an output may depend on the batch, at some cost on cuda; the cpu always does so',
)

/** Likewise: commander makes it `tuning`, true unless it is given. */
export const tuningFlag = new Option(
  '--no-tuning',
  'choose kernels by rules, even where the package holds measurements of this device; see "ingot tune"',
)

/** What open() takes for them; undefined: none was given. Throws USAGE. */
export function speculativeOf({ draft, lookup, guesses }: SpeculativeFlags): SpeculativeOptions | undefined {
  if (draft !== undefined && lookup) throw fail('USAGE', { reason: '--draft and --lookup exclude each other' })
  if (draft === undefined && !lookup) {
    if (guesses === undefined) return undefined
    throw fail('USAGE', { reason: '--guesses goes with --draft or --lookup' })
  }
  return { ...(lookup ? { lookup } : { draft }), ...(guesses && { tokens: guesses }) }
}

export const integers = (text: string): number[] => text.split(',').map(integer(1))
