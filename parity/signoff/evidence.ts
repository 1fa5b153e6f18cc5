/**
 * The evidence of a phase: parity matrix, op conformance and performance matrix, each a file that names the code it judged.
 * Read here, and held against the record: every cell that it asks for must be there, pass, and be of this code.
 */
import { z } from 'zod'
import { backendOf } from '../../compute/backends.ts'
import { kernelDigest } from '../../compute/kernels.ts'
import { fail, type IngotError, wrongField } from '../../errors.ts'
import { text } from '../../models/config.ts'
import { hashBytes, parseJson, readBytes } from '../../models/files.ts'
import { type Package, readPackage, weightsHash } from '../../models/package.ts'
import { sha256 } from '../../plans/hash.ts'
import { codeDigest } from '../code.ts'
import { parseMatrix } from '../matrix-file.ts'
import type { MatrixMetrics, MatrixReport } from '../matrix-report.ts'
import { rowOf } from '../steps.ts'
import { type Phase, packagePaths, phaseFiles } from './phase.ts'

export const CONFORMANCE_FORMAT = 'ingot-conformance'
export const PERFORMANCE_FORMAT = 'ingot-performance-matrix'
export const EVIDENCE_VERSION = 1

const number = z.number('a finite number')
const list = <T extends z.ZodType>(item: T) => z.array(item, 'a list')

const conformanceSchema = z.object({
  format: z.literal(CONFORMANCE_FORMAT, CONFORMANCE_FORMAT),
  version: z.literal(EVIDENCE_VERSION, String(EVIDENCE_VERSION)),
  code: sha256,
  /** Reports of conformance.ts. */
  reports: list(
    z.object({
      row: text,
      kernels: sha256,
      pass: z.boolean('a boolean'),
      slice: z.enum(['full', 'thin'], 'full or thin'),
      cells: list(
        z.object({
          op: text,
          weights: text,
          state: text,
          verdict: z.enum(['pass', 'fail', 'unsupported', 'expected to fail'], 'a verdict'),
          reason: text,
          cases: z.object({ pass: number, fail: number }, 'an object of pass and fail'),
          worst: number.nullable(),
          failures: list(z.object({ case: text, reason: text })),
        }),
      ),
      staleExpectations: list(text),
    }),
  ),
})
export type ConformanceFile = z.output<typeof conformanceSchema>

const performanceSchema = z.object({
  format: z.literal(PERFORMANCE_FORMAT, PERFORMANCE_FORMAT),
  version: z.literal(EVIDENCE_VERSION, String(EVIDENCE_VERSION)),
  code: sha256,
  created: z.iso.datetime('a time in UTC'),
  /** Processor, for people. */
  machine: text,
  cells: list(
    z.object({
      /** "story cpu decode 1 of read". */
      name: text,
      /** Name in the record, and digest of the plan; null: a cell of the benchmark beside peers, which has its own. */
      package: text.nullable(),
      planSha256: sha256.nullable(),
      row: text,
      kernels: sha256,
      /** What was measured over what it is compared with, measured in the same run. */
      ratio: number,
      measured: number,
      compared: number,
      unit: text,
      /** 10th and 90th percentile of what was measured. */
      low: number,
      high: number,
    }),
  ),
})
export type PerformanceMatrix = z.output<typeof performanceSchema>
export type PerformanceMatrixCell = PerformanceMatrix['cells'][number]

export interface Evidence {
  readonly parity: MatrixReport
  readonly conformance: ConformanceFile
  readonly performance: PerformanceMatrix
  /** SHA-256 of the three files. */
  readonly digests: { readonly parity: string; readonly conformance: string; readonly performance: string }
}

async function readFile<T>(path: string, what: string, parse: (text: string) => T) {
  const bytes = await readBytes(path, `${what}; "ingot signoff measure" writes it`)
  return { data: parse(bytes.toString('utf8')), sha256: hashBytes(bytes).sha256 }
}

function parseAs<T extends z.ZodType>(schema: T, path: string, text: string): z.output<T> {
  const json = parseJson(text, path)
  const result = schema.safeParse(json)
  if (result.success) return result.data
  throw fail('SIGNOFF_FILE_INVALID', { path, ...wrongField(result.error, json, 'the file') })
}

/** Throws FILE_MISSING, FILE_UNREADABLE, JSON_INVALID, MATRIX_INVALID, SIGNOFF_FILE_INVALID. */
export async function readEvidence(phase: Phase): Promise<Evidence> {
  const files = phaseFiles(phase)
  const parity = await readFile(files.parity, 'a parity matrix', (text) => parseMatrix(text, files.parity))
  const conformance = await readFile(files.conformance, 'a report of op conformance', (text) =>
    parseAs(conformanceSchema, files.conformance, text),
  )
  const performance = await readFile(files.performance, 'a performance matrix', (text) =>
    parseAs(performanceSchema, files.performance, text),
  )
  return {
    parity: parity.data,
    conformance: conformance.data,
    performance: performance.data,
    digests: { parity: parity.sha256, conformance: conformance.sha256, performance: performance.sha256 },
  }
}

/** The packages of a phase, every byte hashed. */
export async function readPackages(phase: Phase): Promise<ReadonlyMap<string, Package>> {
  const packages = new Map<string, Package>()
  for (const [name, path] of packagePaths(phase)) packages.set(name, await readPackage(path, { integrity: 'full' }))
  return packages
}

/** All that keeps the evidence from carrying a sign-off; empty: nothing does. */
export async function weigh(
  phase: Phase,
  evidence: Evidence,
  packages: ReadonlyMap<string, Package>,
): Promise<IngotError[]> {
  return [
    ...(await staleness(phase, evidence, packages)),
    ...identityGaps(phase, evidence.parity),
    ...parityGaps(phase, evidence.parity),
    ...conformanceGaps(phase, evidence.conformance),
    ...performanceGaps(phase, evidence.performance),
  ]
}

/** What the evidence judged and is no longer so: code, kernels, packages. */
async function staleness(
  phase: Phase,
  { parity, conformance, performance }: Evidence,
  packages: ReadonlyMap<string, Package>,
): Promise<IngotError[]> {
  const files = phaseFiles(phase)
  const found: IngotError[] = []
  const compare = (path: string, thing: string, expected: string, got: string) => {
    if (expected !== got) found.push(fail('SIGNOFF_STALE', { path, thing, expected, got }))
  }
  const code = await codeDigest()
  compare(files.parity, 'code', parity.code, code)
  compare(files.conformance, 'code', conformance.code, code)
  compare(files.performance, 'code', performance.code, code)
  for (const { name, kernels } of parity.rows.filter(({ name }) => rowsOf(phase).includes(name)))
    compare(files.parity, `kernels of ${name}`, kernels, await kernelDigest(backendOf(rowOf(name).backend)))
  for (const { row, kernels } of conformance.reports)
    compare(files.conformance, `kernels of ${row}`, kernels, await kernelDigest(backendOf(rowOf(row).backend)))
  for (const { name, row, kernels, package: of, planSha256 } of performance.cells) {
    compare(files.performance, `kernels of ${name}`, kernels, await kernelDigest(backendOf(rowOf(row).backend)))
    const pkg = of === null ? undefined : packages.get(of)
    if (pkg && planSha256) compare(files.performance, `plan of ${name}`, planSha256, pkg.planHash)
  }
  for (const [name, pkg] of packages) {
    for (const judged of parity.models.filter((model) => model.name === name)) {
      compare(files.parity, `plan of ${name}`, judged.planSha256, pkg.planHash)
      compare(files.parity, `weights of ${name}`, judged.weightsSha256, weightsHash(pkg))
    }
  }
  return found
}

const rowsOf = ({ record: { parity } }: Phase) => [parity.reference, ...parity.rows]

const missing = (path: string, cell: string) => fail('SIGNOFF_CELL_MISSING', { path, cell })
const failed = (path: string, cell: string, reason: string) => fail('SIGNOFF_CELL_FAILED', { path, cell, reason })

/** The bounded measures of a cell, by name. */
export const boundedMetrics = ({ maxAbs, rms, kl, mismatchRatio, argmaxOutsideTies, greedy }: MatrixMetrics) => ({
  maxAbs,
  rms,
  kl,
  mismatchRatio,
  argmaxOutsideTies,
  greedyOutsideTies: greedy.outsideTies,
})

const exceeding = (metrics: MatrixMetrics) =>
  Object.entries(boundedMetrics(metrics)).flatMap(([name, { value, allowed }]) => (value <= allowed ? [] : [name]))

/** Rows and packages that the record names must be described once, and as what their names say. */
function identityGaps(phase: Phase, { rows, models }: MatrixReport): IngotError[] {
  const path = phaseFiles(phase).parity
  const packages = phase.record.packages.map(({ name }) => name)
  const once = (names: readonly string[], all: readonly { readonly name: string }[], what: string) =>
    names
      .filter((name) => all.filter((each) => each.name === name).length !== 1)
      .map((name) => missing(path, `${what} ${name}, once`))
  const wrong = rows.filter(({ name, backend, isa }) => {
    const named = rowOf(name)
    return rowsOf(phase).includes(name) && (backend !== named.backend || isa !== (named.isa ?? isa))
  })
  return [
    ...once(rowsOf(phase), rows, 'row'),
    ...once(packages, models, 'package'),
    ...wrong.map(({ name, backend, isa }) => failed(path, `row ${name}`, `it ran on ${backend}, ${isa}`)),
  ]
}

/** Each row by the reference and each pair of rows in one direction, for every package and shape. */
function parityGaps(phase: Phase, { cells }: MatrixReport): IngotError[] {
  const path = phaseFiles(phase).parity
  const { packages, parity } = phase.record
  const all = rowsOf(phase)
  const pairs = all.flatMap((expected, i) => all.slice(i + 1).map((actual) => [expected, actual] as const))
  const gaps: IngotError[] = []
  for (const { name: model } of packages)
    for (const shape of parity.shapes)
      for (const [a, b] of pairs) {
        const cell = `${model} ${shape}: ${b} by ${a}`
        const found = cells.filter(
          (each) =>
            each.model === model &&
            each.shape === shape &&
            ((each.expected === a && each.actual === b) ||
              (a !== parity.reference && each.expected === b && each.actual === a)),
        )
        if (found.length === 0) gaps.push(missing(path, cell))
        for (const { verdict, reason, failures, metrics } of found)
          if (verdict !== 'pass') gaps.push(failed(path, cell, [reason ?? verdict, ...failures].join('; ')))
          else if (!metrics) gaps.push(failed(path, cell, 'it passes without metrics'))
          else if (exceeding(metrics).length)
            gaps.push(failed(path, cell, `it passes, and exceeds: ${exceeding(metrics).join(', ')}`))
      }
  return gaps
}

/** A full report of every row, in which nothing fails. */
function conformanceGaps(phase: Phase, { reports }: ConformanceFile): IngotError[] {
  const path = phaseFiles(phase).conformance
  return phase.record.parity.rows.flatMap((row) => {
    const report = reports.find((each) => each.row === row)
    if (!report || report.cells.length === 0) return [missing(path, row)]
    if (phase.record.conformance === 'full' && report.slice !== 'full') return [missing(path, `${row}, all cases`)]
    const broken = report.cells.filter(({ verdict }) => verdict === 'fail')
    const gaps = broken.map(({ op, weights, state, reason, failures }) =>
      failed(path, `${row} ${op} ${weights} ${state}`, failures[0]?.reason ?? reason),
    )
    const stale = report.staleExpectations.map((text) =>
      failed(path, row, `expected to fail, and no case does: ${text}`),
    )
    return [
      ...gaps,
      ...stale,
      ...(report.pass || gaps.length + stale.length ? [] : [failed(path, row, 'it does not pass')]),
    ]
  })
}

function performanceGaps(phase: Phase, { cells }: PerformanceMatrix): IngotError[] {
  const path = phaseFiles(phase).performance
  return phase.record.performance.cells.flatMap(({ name, least }) => {
    const found = cells.find((cell) => cell.name === name)
    if (!found) return [missing(path, name)]
    return found.ratio >= least ? [] : [failed(path, name, `${found.ratio.toFixed(3)} of it, asked for are ${least}`)]
  })
}
