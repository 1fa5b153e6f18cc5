/** A phase as a report: what was judged and measured, who signed, and what was issued. */
import { basename } from 'node:path'
import { readCertificates, readClaims } from '../../models/certificate.ts'
import type { CertificatePart, ConformanceOp, ConformancePart, PerformancePart, ReportData } from '../report-data.ts'
import type { Evidence } from './evidence.ts'
import type { LedgerEntry } from './ledger.ts'
import { certificateFile, type Phase, type PhaseRecord, packagePaths } from './phase.ts'
import type { Check } from './signoff.ts'

/** In the page's subtitle; `check` prints all. */
const SHOWN_REFUSALS = 3

type Suite = Evidence['conformance']['reports'][number]

function opOf(op: string, all: Suite['cells']): ConformanceOp {
  const cells = all.filter((cell) => cell.op === op)
  const what = ({ weights, state }: (typeof cells)[number]) =>
    [weights, state].filter((dtype) => dtype !== '-').join(', state ') || 'all'
  const of = (verdict: (typeof cells)[number]['verdict']) => cells.filter((cell) => cell.verdict === verdict)
  const count = (verdict: 'pass' | 'fail') => cells.reduce((sum, { cases }) => sum + cases[verdict], 0)
  const worst = cells.reduce((most, cell) => Math.max(most, cell.worst ?? Number.POSITIVE_INFINITY), 0)
  return {
    op,
    passed: count('pass'),
    failed: count('fail'),
    unsupported: of('unsupported').map((cell) => ({ what: what(cell), reason: cell.reason })),
    expectedFailures: of('expected to fail').map((cell) => ({ what: what(cell), issue: cell.reason })),
    ...(count('pass') + count('fail') > 0 && { worst }),
  }
}

const conformancePart = ({ row, pass, cells }: Suite): ConformancePart => ({
  backend: row,
  pass,
  ops: [...new Set(cells.map(({ op }) => op))].map((op) => opOf(op, cells)),
})

/** Our bar, and what it is compared with: a line for a ceiling, a bar for a peer. */
function performancePart({ machine, cells }: Evidence['performance'], record: PhaseRecord): PerformancePart {
  const groups = cells.map(({ name, unit, measured, compared, low, high, package: ofOurs }) => {
    const least = record.performance.cells.find((cell) => cell.name === name)?.least
    const own = { name: 'Ingot', value: measured, spread: [low, high] as const, own: true }
    const lowerIsBetter = unit === 'ms'
    return {
      name,
      unit,
      lowerIsBetter,
      bars: ofOurs === null ? [own, { name: 'peer', value: compared }] : [own],
      ...(ofOurs !== null && { ceiling: compared }),
      ...(least !== undefined && { threshold: lowerIsBetter ? compared / least : compared * least }),
    }
  })
  return { machine, groups }
}

const figure = (value: number) => Number(value.toPrecision(3)).toString()

/** The certificate of the first row, and the names of the others. */
async function certificatePart(phase: Phase): Promise<CertificatePart | undefined> {
  const found = (await Promise.all([...packagePaths(phase).values()].map(readCertificates))).flat()
  const named = (path: string) => basename(path) === certificateFile(phase.record.parity.rows[0]!)
  const first = found.find(({ path }) => named(path)) ?? found[0]
  if (!first) return undefined
  const others = found.filter((each) => each !== first)
  const { predicate, subjects, keyIds } = readClaims(first.content, first.path)
  const { weights, states } = predicate.precision
  return {
    verdict: predicate.verdict,
    keyId: keyIds.join(', '),
    issued: predicate.issued,
    expires: predicate.expires,
    subjects,
    facts: [
      ['reference', predicate.reference],
      ['device', `${predicate.device.class}, ${predicate.device.description}`],
      ['precision', `weights ${weights.join(', ')}; states ${states.join(', ') || 'none'}`],
      ...predicate.metrics.map(
        ({ name, value, threshold }) => [name, `${figure(value)}, allowed is ${figure(threshold)}`] as const,
      ),
      ...(others.length ? [['besides', others.map(({ path }) => basename(path)).join(', ')] as const] : []),
    ],
  }
}

function entryLine(entry: LedgerEntry): { what: string; by: string } {
  if (entry.kind === 'start') return { what: `${entry.phase} starts`, by: `record ${entry.record.slice(0, 12)}` }
  if (entry.kind === 'sign') return { what: `${entry.phase} is signed`, by: entry.role }
  if (entry.kind === 'signoff')
    return { what: `${entry.phase} is signed off`, by: entry.packages.map(({ release }) => release).join(', ') }
  return { what: `${entry.path} goes back`, by: entry.to }
}

/** What is there of a phase, for renderReport. Throws as readCertificates and readClaims do. */
export async function phaseReport(phase: Phase, found: Check): Promise<ReportData> {
  const { record, name, path } = phase
  const { evidence, refusals, entries } = found
  const certificate = await certificatePart(phase)
  const told = refusals.slice(0, SHOWN_REFUSALS).map(({ code, message }) => `${code}: ${message}`)
  const more = refusals.length - SHOWN_REFUSALS
  return {
    title: record.title,
    subtitle: [`Phase ${name}`, ...told, ...(more > 0 ? [`and ${more} more`] : [])].join('; '),
    pass: refusals.length === 0,
    ...(evidence && {
      matrix: evidence.parity,
      conformance: evidence.conformance.reports.map(conformancePart),
      performance: performancePart(evidence.performance, record),
    }),
    ...(certificate && { certificate }),
    ledger: { entries: entries.map((entry) => ({ ...entry, ...entryLine(entry) })) },
    commands: [
      ...record.exitCriteria.map(({ command }) => command),
      `npx ingot signoff measure ${path}`,
      `npx ingot signoff check ${path}`,
    ],
  }
}
