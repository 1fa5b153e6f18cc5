/** Parsers of command-line values; a value that does not fit is a usage error that names it. */
import { InvalidArgumentError } from 'commander'

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

export const integers = (text: string): number[] => text.split(',').map(integer(1))
