/** A parity matrix as lines for people. */
import { printDivergence } from './divergence.ts'
import type { MatrixCell, MatrixReport } from './matrix-report.ts'

/** Cells of one line: one model, precision and pair of rows. */
function grouped(cells: readonly MatrixCell[]): Map<string, MatrixCell[]> {
  const groups = new Map<string, MatrixCell[]>()
  for (const cell of cells) {
    const key = `${cell.model}, ${cell.precision}: ${cell.actual} by ${cell.expected}`
    groups.set(key, [...(groups.get(key) ?? []), cell])
  }
  return groups
}

function factsOf(cells: readonly MatrixCell[]): string {
  const run = cells.filter(({ verdict }) => verdict !== 'skipped')
  if (run.length === 0) return `skipped: ${cells[0]!.reason}`
  const unseen = run.flatMap(({ reason }) => (reason === undefined ? [] : [reason]))
  if (run.every(({ sameBits }) => sameBits)) return `${run.length} shapes, the same bits`
  const metrics = run.flatMap((cell) => (cell.metrics ? [cell.metrics] : []))
  const worst = metrics.reduce((a, b) => (b.rms.value / b.rms.allowed > a.rms.value / a.rms.allowed ? b : a))
  const sum = (of: (m: (typeof metrics)[number]) => number) => metrics.reduce((total, m) => total + of(m), 0)
  const least = metrics.reduce((low, m) => Math.min(low, m.argmaxAgreement), 1)
  return [
    `${run.length} shapes`,
    `rms error ${worst.rms.value.toExponential(1)} of ${worst.rms.allowed.toExponential(1)}`,
    `KL ${worst.kl.value.toExponential(1)}`,
    `same best token ${(100 * least).toFixed(1)} %`,
    `greedy ${sum((m) => m.greedy.matched)}/${sum((m) => m.greedy.total)}, ${sum((m) => m.greedy.ties)} ties`,
    ...new Set(unseen),
  ].join(', ')
}

function failure(cell: MatrixCell): string[] {
  const why = cell.failures.map((each) => `     ${cell.shape}: ${each}`)
  const where = cell.divergence ? printDivergence(cell.divergence).split('\n') : [cell.divergenceReason ?? '']
  return [...why, ...where.filter(Boolean).map((line) => `       ${line}`)]
}

/** Pairs of one model and precision of which the same is to be said, on one line. */
export function printMatrix(report: MatrixReport): string {
  const facts = new Map<string, string[]>()
  const failures: string[] = []
  for (const [name, cells] of grouped(report.cells)) {
    const failed = cells.filter(({ verdict }) => verdict === 'fail')
    const { model, precision, actual, expected } = cells[0]!
    const same = cells.every(({ sameBits }) => sameBits)
    const side = same ? '' : ` by ${expected}`
    const key = `${model}, ${precision}${side}: ${factsOf(cells)}`
    const pair = same ? `${actual} = ${expected}` : actual
    if (failed.length === 0) facts.set(key, [...(facts.get(key) ?? []), pair])
    else failures.push(`FAIL ${name}: ${factsOf(cells)}`, ...failure(failed[0]!))
  }
  const lines = [...facts].map(([key, pairs]) => `ok   ${key} (${pairs.join(', ')})`)
  const count = (verdict: MatrixCell['verdict']) => report.cells.filter((cell) => cell.verdict === verdict).length
  const verdict = `${report.pass ? 'pass' : 'FAIL'}: ${count('pass')} cells pass, ${count('fail')} fail, ${count('skipped')} skipped; code ${report.code.slice(0, 12)}, ${report.seconds.toFixed(0)} s`
  return [...lines, ...failures, verdict].join('\n')
}
