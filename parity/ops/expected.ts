/**
 * Op cases that are known to fail, each with the issue that will end it. A case listed here that passes fails the suite,
 * and so does an entry that no case answers to: what is mended leaves the table in the same change.
 */
import type { OpName } from '../../abi/ops/index.ts'
import type { OpCase } from './case.ts'

export interface ExpectedFailure {
  readonly backend: string
  /** Of the row; absent: on every instruction set. */
  readonly isa?: string
  readonly op: OpName
  /** Names of cases; absent: all of the opcode. */
  readonly cases?: readonly string[]
  /** Number or address. */
  readonly issue: string
  readonly reason: string
}

export const expectedFailures: readonly ExpectedFailure[] = []

export const expects = (
  failure: ExpectedFailure,
  row: { readonly name: string; readonly isa?: string | undefined },
  { op, name }: OpCase,
): boolean =>
  failure.backend === row.name &&
  (failure.isa === undefined || failure.isa === row.isa) &&
  failure.op === op &&
  (failure.cases?.includes(name) ?? true)
