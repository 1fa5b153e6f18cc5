/**
 * Op conformance: every generated case of every opcode on one backend, against the reference machine. A cell is an opcode
 * with one dtype of weights and one of state; a report holds a cell for each, whether the backend runs it or not.
 */
import { type OpName, opNames } from '../abi/ops/index.ts'
import type { Backend, DeviceInfo, RunnerOptions } from '../compute/device.ts'
import { linkGaps } from '../compute/link.ts'
import { type KernelTable, tableInMode } from '../compute/table.ts'
import { fail, IngotError } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { MatrixDType, OpCase, StateDType } from './ops/case.ts'
import { opCases } from './ops/cases.ts'
import { deviation, runGuarded } from './ops/compare.ts'
import { type ExpectedFailure, expectedFailures, expects } from './ops/expected.ts'
import { Suite } from './ops/suite.ts'
import { nonFiniteRules, operandRoundoff } from './tolerances.ts'

/** A backend to judge. Another one, whatever it runs on, is another row. */
export interface BackendRow {
  /** In reports, and in the table of expected failures. */
  readonly name: string
  readonly backend: Backend
  /** Instruction set; absent: the best. */
  readonly isa?: string | undefined
  readonly options?: Partial<Pick<RunnerOptions, 'threads' | 'pin' | 'deterministic' | 'allowPerSlot'>> | undefined
}

export interface ConformanceOptions {
  /** `thin`: a sixth of the cases of each cell. Default full. */
  readonly slice?: 'full' | 'thin' | undefined
  /** Default: all. */
  readonly ops?: readonly OpName[] | undefined
  /** Default: the table of parity/ops/expected.ts. */
  readonly expected?: readonly ExpectedFailure[] | undefined
  /** Packages and reference outputs to share among calls; the caller disposes it. Default: made for this call. */
  readonly suite?: Suite | undefined
  readonly onProgress?: ((done: number, total: number, what: string) => void) | undefined
}

/** unsupported: refused at open, as the backend's table says. expected to fail: failed, as parity/ops/expected.ts says. */
export type Verdict = 'pass' | 'fail' | 'unsupported' | 'expected to fail'

export interface ConformanceFailure {
  readonly case: string
  readonly reason: string
}

export interface ConformanceCell {
  readonly op: OpName
  /** Of matrices, as a checkpoint is quantised: q4 leaves what has no sub-scales at int8. "-": it reads none. */
  readonly weights: MatrixDType | '-'
  /** "-": it has none. */
  readonly state: StateDType | '-'
  /** The worst of its cases: fail, expected to fail, pass, unsupported. */
  readonly verdict: Verdict
  /** By verdict. */
  readonly cases: Readonly<Record<Verdict, number>>
  /** Largest error over its bound; null: an output that has no number where it owes one, or a wrong token. */
  readonly worst: number | null
  readonly worstCase: string
  /** Sentinels that changed. */
  readonly sentinelFaults: number
  /** Why unsupported or expected to fail. */
  readonly reason: string
  /** The first few. */
  readonly failures: readonly ConformanceFailure[]
}

/** JSON as it is. */
export interface ConformanceReport {
  readonly pass: boolean
  readonly backend: string
  readonly device: string
  readonly isa: string
  readonly slice: 'full' | 'thin'
  /** Whether registers and states stood among sentinels; the step buffer, results and weights always do. */
  readonly guarded: boolean
  readonly cases: number
  readonly cells: readonly ConformanceCell[]
  /** Entries of the table of expected failures that no case answers to: each fails a full run. */
  readonly staleExpectations: readonly string[]
}

interface CaseResult {
  readonly opCase: OpCase
  readonly verdict: Verdict
  readonly reason: string
  readonly worst: number
  readonly faults: number
  readonly device?: { readonly info: DeviceInfo; readonly guarded: boolean }
}

const THIN = 6
const KEPT_FAILURES = 5

const cellOf = ({ op, weights, state }: OpCase) => ({ op, weights: weights ?? '-', state: state ?? '-' }) as const
const keyOf = (opCase: OpCase) => Object.values(cellOf(opCase)).join(' ')

/** The cases of a slice, opcode by opcode. */
export function casesOf({ slice = 'full', ops = opNames }: ConformanceOptions): readonly OpCase[] {
  const counts = new Map<string, number>()
  return ops
    .flatMap((op) => opCases[op])
    .filter((opCase) => {
      const count = counts.get(keyOf(opCase)) ?? 0
      counts.set(keyOf(opCase), count + 1)
      return slice === 'full' || count % THIN === 0
    })
}

/** Errors of the call: no case is to blame. */
const ofTheCall = ['ISA_UNAVAILABLE', 'BACKEND_UNAVAILABLE', 'OPTION_INVALID', 'ADDON_MISSING']

/** A result without a run: the case was refused, or broke. */
function refused(opCase: OpCase, error: unknown, declared: readonly string[], hasTable: boolean): CaseResult {
  if (error instanceof IngotError && ofTheCall.includes(error.code)) throw error
  const none = { opCase, worst: 0, faults: 0 }
  if (!(error instanceof IngotError) || error.code !== 'LINK_GAPS')
    return { ...none, verdict: 'fail', reason: (error as Error).message }
  const gaps = String(error.details.gaps)
  if (hasTable && !declared.length)
    return { ...none, verdict: 'fail', reason: `declared supported, and refused at open: ${gaps}` }
  return { ...none, verdict: 'unsupported', reason: gaps }
}

/** Largest absolute error of an output of the case, by a kernel that does what `table` says. */
function boundOf({ op, tolerance, perRoundoff = 0 }: OpCase, plan: ExecutionPlan, table: KernelTable | undefined) {
  const instructions = plan.instructions.filter((instruction) => instruction.op === op)
  const eps = instructions.map((instruction) => operandRoundoff(plan, instruction, table))
  return tolerance + perRoundoff * Math.max(0, ...eps)
}

async function runCase(row: BackendRow, suite: Suite, opCase: OpCase): Promise<CaseResult> {
  const { pkg, expected } = await suite.prepare(opCase)
  const table = row.backend.table && tableInMode(row.backend.table, row.options?.deterministic ?? false)
  const declared = table ? linkGaps(pkg.plan, table, row.options) : []
  try {
    const run = await runGuarded(row.backend, pkg, opCase.steps, { isa: row.isa ?? '', ...row.options })
    const { worst, where } = deviation(
      await expected(),
      run.outputs,
      boundOf(opCase, pkg.plan, table),
      opCase.nonFinite ?? nonFiniteRules[opCase.op].rule,
    )
    const reasons = [
      ...(declared.length ? [`declared unsupported, and it runs: ${declared.join('; ')}`] : []),
      ...(worst > 1 ? [`${worst === Infinity ? '' : `${worst.toPrecision(3)} times its bound: `}${where}`] : []),
      ...run.faults.slice(0, 2),
    ]
    const verdict = reasons.length ? 'fail' : 'pass'
    return { opCase, verdict, reason: reasons.join('; '), worst, faults: run.faults.length, device: run }
  } catch (error) {
    return refused(opCase, error, declared, table !== undefined)
  }
}

/** A failure that was expected is none; a pass that was not is one. */
function weighed(result: CaseResult, failure: ExpectedFailure | undefined): CaseResult {
  if (!failure) return result
  const { issue, reason } = failure
  if (result.verdict === 'fail') return { ...result, verdict: 'expected to fail', reason: `${issue}: ${reason}` }
  return { ...result, verdict: 'fail', reason: `${result.verdict}, and expected to fail by ${issue}: ${reason}` }
}

const severity: readonly Verdict[] = ['unsupported', 'pass', 'expected to fail', 'fail']

function summarize(results: readonly CaseResult[]): ConformanceCell {
  const count = (verdict: Verdict) => results.filter((result) => result.verdict === verdict).length
  const cases = Object.fromEntries(severity.map((verdict) => [verdict, count(verdict)])) as Record<Verdict, number>
  const verdict = severity.findLast((name) => cases[name] > 0)!
  const ran = results.filter((result) => result.device && result.verdict !== 'expected to fail')
  const worst = ran.reduce<CaseResult | undefined>(
    (most, each) => (most && most.worst >= each.worst ? most : each),
    undefined,
  )
  const failures = results.filter((result) => result.verdict === 'fail')
  return {
    ...cellOf(results[0]!.opCase),
    verdict,
    cases,
    worst: !worst ? 0 : worst.worst === Infinity ? null : worst.worst,
    worstCase: worst?.opCase.name ?? '',
    sentinelFaults: results.reduce((sum, { faults }) => sum + faults, 0),
    reason:
      verdict === 'pass' || verdict === 'fail' ? '' : results.find((result) => result.verdict === verdict)!.reason,
    failures: failures.slice(0, KEPT_FAILURES).map(({ opCase, reason }) => ({ case: opCase.name, reason })),
  }
}

function reportOf(row: BackendRow, options: ConformanceOptions, results: readonly CaseResult[]): ConformanceReport {
  const { slice = 'full', ops = opNames, expected = expectedFailures } = options
  const keys = [...new Set(results.map(({ opCase }) => keyOf(opCase)))]
  const cells = keys.map((key) => summarize(results.filter(({ opCase }) => keyOf(opCase) === key)))
  const stale = expected.filter(
    (failure) =>
      failure.backend === row.name &&
      (failure.isa ?? row.isa) === row.isa &&
      ops.includes(failure.op) &&
      !results.some(({ opCase }) => expects(failure, row, opCase)),
  )
  const ran = results.find(({ device }) => device)?.device
  return {
    pass: cells.every(({ verdict }) => verdict !== 'fail') && (slice === 'thin' || stale.length === 0),
    backend: row.name,
    device: ran?.info.description ?? '',
    isa: ran?.info.isa ?? row.isa ?? '',
    slice,
    guarded: ran?.guarded ?? false,
    cases: results.length,
    cells,
    staleExpectations: stale.map(({ op, cases, issue }) => `${op}${cases ? ` (${cases.join('; ')})` : ''}: ${issue}`),
  }
}

/**
 * Judges one backend. Its failures are in the report; throws BACKEND_UNAVAILABLE, ISA_UNAVAILABLE or OPTION_INVALID when
 * it cannot be opened at all, and OUTPUT_UNWRITABLE without a temporary folder.
 */
export async function conformance(row: BackendRow, options: ConformanceOptions = {}): Promise<ConformanceReport> {
  const why = row.backend.unavailable()
  if (why) throw fail('BACKEND_UNAVAILABLE', { backend: row.name, reason: why.reason })
  const suite = options.suite ?? (await Suite.open())
  try {
    const cases = casesOf(options)
    const expected = options.expected ?? expectedFailures
    const results: CaseResult[] = []
    for (const opCase of cases) {
      options.onProgress?.(results.length, cases.length, `${opCase.op} ${opCase.name}`)
      const failure = expected.find((each) => expects(each, row, opCase))
      results.push(weighed(await runCase(row, suite, opCase), failure))
    }
    options.onProgress?.(cases.length, cases.length, '')
    return reportOf(row, options, results)
  } finally {
    if (!options.suite) await suite[Symbol.asyncDispose]()
  }
}

const padded = (columns: readonly string[], widths: readonly number[]) =>
  columns
    .map((column, i) => column.padEnd(widths[i]!))
    .join('  ')
    .trimEnd()

/** What a cell's row says after its figures. */
function remark({ reason, failures, worstCase, sentinelFaults }: ConformanceCell): string {
  const failure = failures[0] && `${failures[0].case}: ${failures[0].reason}`
  return [...(sentinelFaults ? [`${sentinelFaults} sentinels changed`] : []), failure ?? (reason || worstCase)].join(
    '; ',
  )
}

/** The report as a table for people: a row a cell. */
export function printConformance(report: ConformanceReport): string {
  const head = ['opcode', 'weights', 'state', 'verdict', 'cases', 'error / bound', 'worst case, or why']
  const rows = report.cells.map((cell) => {
    const { op, weights, state, verdict, cases, worst } = cell
    const count = Object.values(cases).reduce((sum, each) => sum + each, 0)
    const ran = verdict !== 'unsupported'
    const error = !ran ? '-' : worst === null ? 'not a number' : worst.toPrecision(2)
    return [op, weights, state, verdict, cases.fail ? `${cases.fail} of ${count}` : `${count}`, error, remark(cell)]
  })
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map((each) => each[i]!.length)))
  const { backend, device, slice, guarded, cases } = report
  return [
    `${backend}${device ? ` (${device})` : ''}: ${cases} cases, ${slice}, ${guarded ? '' : 'no '}sentinels around registers and states`,
    '',
    ...[head, ...rows].map((each) => padded(each, widths)),
    ...report.staleExpectations.map((each) => `expected to fail, and no case: ${each}`),
    '',
    report.pass ? 'PASS' : 'FAIL',
  ].join('\n')
}
