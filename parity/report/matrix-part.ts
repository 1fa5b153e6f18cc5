/** The matrix of a report: triangles of backends, failures with the instruction that made them, all cells as a table. */
import type { Divergence, MatrixCell, MatrixReport } from '../matrix-report.ts'
import { type Cell, details, escapeHtml, figure, legend, percent, plural, section, table } from './html.ts'

/** The largest share of what is allowed that any figure of a cell takes. */
export function shareOf({ metrics, layers = [] }: MatrixCell): number {
  if (!metrics) return 0
  const { rms, maxAbs, kl, mismatchRatio } = metrics
  const bounds = [rms, maxAbs, kl, mismatchRatio, ...layers.map(({ worst }) => worst)]
  return bounds.reduce((most, { value, allowed }) => Math.max(most, value === 0 ? 0 : value / allowed), 0)
}

const heat = (share: number) =>
  share < 0.5
    ? `color-mix(in oklab, var(--heat1) ${(200 * share).toFixed(0)}%, var(--heat0))`
    : `color-mix(in oklab, var(--heat2) ${(200 * Math.min(1, share) - 100).toFixed(0)}%, var(--heat1))`

/** One square: all shapes of one pair of rows. */
function square(cells: readonly MatrixCell[]): string {
  const [first] = cells
  if (!first) return '<span></span>'
  const run = cells.filter(({ verdict }) => verdict !== 'skipped')
  const share = run.reduce((most, cell) => Math.max(most, shareOf(cell)), 0)
  const what = (cell: MatrixCell) =>
    `${cell.shape}: ${cell.verdict === 'skipped' ? (cell.reason ?? 'skipped') : cell.sameBits ? 'the same bits' : `${percent(shareOf(cell))} of what is allowed`}${cell.verdict === 'fail' ? ', FAIL' : ''}`
  const title = `title="${escapeHtml([`${first.actual} by ${first.expected}`, ...cells.map(what)].join('\n'))}"`
  if (run.length === 0) return `<span class="heat none" ${title}></span>`
  if (run.some(({ verdict }) => verdict === 'fail')) return `<span class="heat over" ${title}>×</span>`
  if (run.every(({ sameBits }) => sameBits)) return `<span class="heat same" ${title}>=</span>`
  return `<span class="heat" style="background:${heat(share)}" ${title}>${Math.round(100 * share)}</span>`
}

/** Rows below, columns to the right: what is judged, and by what. */
function triangle({ rows, cells }: MatrixReport, model: string, precision: string): string {
  const of = cells.filter((cell) => cell.model === model && cell.precision === precision)
  const names = rows.map(({ name }) => name)
  const columns = names.slice(0, -1)
  const lines = names.slice(1).map((actual, r) => {
    const squares = columns.map((expected, c) =>
      c > r ? '<span></span>' : square(of.filter((cell) => cell.expected === expected && cell.actual === actual)),
    )
    return `<span class="name side own">${escapeHtml(actual)}</span>${squares.join('')}`
  })
  const feet = columns.map((name) => `<span class="name down">${escapeHtml(name)}</span>`)
  const run = of.filter(({ verdict }) => verdict !== 'skipped').length
  const failed = of.filter(({ verdict }) => verdict === 'fail').length
  const count = failed
    ? `<span class="pill fail">${failed} of ${run} fail</span>`
    : `<small>${plural(run, 'cell')}</small>`
  return `<div class="card"><h3>${escapeHtml(precision)} ${count}</h3><div class="grid" style="grid-template-columns:max-content repeat(${columns.length}, minmax(0, 2.6rem))">${lines.join('')}<span></span>${feet.join('')}</div></div>`
}

function triangles(matrix: MatrixReport): string {
  const models = [...new Set(matrix.models.map(({ name }) => name))]
  return models
    .map((model) => {
      const precisions = matrix.models.filter(({ name }) => name === model).map(({ precision }) => precision)
      const cards = precisions.map((precision) => triangle(matrix, model, precision)).join('')
      return `<h3>${escapeHtml(model)}</h3><div class="cards">${cards}</div><p></p>`
    })
    .join('')
}

const statisticsTable = ({ inputs, outputs }: Divergence) =>
  table(
    [
      '',
      'shape',
      ...['min', 'max', 'mean', 'rms', 'NaN', 'largest difference'].map((name) => ({ html: name, right: true })),
    ],
    [...inputs.map((each) => ['reads', each] as const), ...outputs.map((each) => ['writes', each] as const)].map(
      ([side, s]): Cell[] => [
        { html: `${side} <code>${escapeHtml(s.name)}</code>` },
        `${s.rows} x ${s.width}`,
        s.min,
        s.max,
        s.mean,
        s.rms,
        s.nans + s.infinities,
        {
          html: s.largest ? `${figure(s.largest.difference)} at (${s.largest.row}, ${s.largest.column})` : '',
          right: true,
        },
      ],
    ),
  )

const how: Readonly<Record<Divergence['found'], string>> = {
  bits: 'is the first whose bits differ',
  alone: 'is the first that is wrong alone, on the operands that it had',
  largest: 'comes nearest to what it may err; none is wrong alone',
}

function divergence(d: Divergence): string {
  const position = d.position === null ? '' : `, position ${d.position}`
  return `<p>Instruction ${d.instruction}, <code>${escapeHtml(d.op)} ${escapeHtml(d.label)}</code> of ${escapeHtml(d.judged)}, ${how[d.found]}: relative error ${figure(d.error.value)}, allowed ${figure(d.error.allowed)} (step ${d.step}, row ${d.row}${position}).</p>${statisticsTable(d)}`
}

const MOST_FAILURES = 24

function failures({ cells }: MatrixReport): string {
  const failed = cells.filter(({ verdict }) => verdict === 'fail')
  const cards = failed.slice(0, MOST_FAILURES).map((cell) => {
    const why = cell.failures.map((each) => `<li>${escapeHtml(each)}</li>`).join('')
    const where = cell.divergence
      ? divergence(cell.divergence)
      : `<p class="note">${escapeHtml(cell.divergenceReason ?? '')}</p>`
    return `<div class="card"><h3>${escapeHtml(`${cell.actual} by ${cell.expected}`)} <small>${escapeHtml(`${cell.model}, ${cell.precision}; ${cell.shape}`)}</small></h3><ul class="why">${why}</ul>${where}</div>`
  })
  const more = failed.length - cards.length
  const rest = more > 0 ? `<p class="note">and ${plural(more, 'more cell')}</p>` : ''
  return failed.length ? `<div class="cards" style="grid-template-columns:1fr">${cards.join('')}</div>${rest}` : ''
}

function cellTable({ cells }: MatrixReport): string {
  const bound = ({ value, allowed }: { value: number; allowed: number }) => ({
    html: `${figure(value)} <small class="note">/ ${figure(allowed)}</small>`,
    right: true,
  })
  const line = (cell: MatrixCell): Cell[] => {
    const { metrics: m, verdict } = cell
    const head: Cell[] = [
      { html: `<span class="pill ${verdict}">${verdict}</span>` },
      cell.model,
      cell.precision,
      cell.shape,
      `${cell.actual} by ${cell.expected}`,
    ]
    if (!m) return [...head, { html: escapeHtml(cell.reason ?? '') }]
    if (cell.sameBits)
      return [...head, 'the same bits', '', '', 1, { html: `${m.greedy.matched} of ${m.greedy.total}`, right: true }]
    const ties = m.greedy.ties ? `, ${plural(m.greedy.ties, 'tie')}` : ''
    const greedy = `${m.greedy.matched} of ${m.greedy.total}${ties}`
    return [...head, bound(m.rms), bound(m.maxAbs), bound(m.kl), m.argmaxAgreement, { html: greedy, right: true }]
  }
  const right = (html: string) => ({ html, right: true })
  const head: Cell[] = [
    '',
    'model',
    'precision',
    'shape',
    'judged',
    ...['rms error / allowed', 'largest', 'KL', 'same best token', 'greedy'].map(right),
  ]
  return details(`All ${plural(cells.length, 'cell')}`, table(head, cells.map(line)))
}

export function matrixPart(matrix: MatrixReport): string {
  const key = legend([
    ['the same bits', 'var(--same)'],
    ['hardly any of what is allowed', 'var(--heat0)'],
    ['half', 'var(--heat1)'],
    ['all', 'var(--heat2)'],
    ['more: fails', 'var(--heat3)'],
  ])
  const lead = `Each square is one backend judged by another, over ${plural(matrix.shapes.length, 'shape')}: text and random ids, alone and in batches, whole and in chunks, then token by token. The number is the worst share, in percent, of what is allowed.`
  return (
    section('What failed', 'Each with the first instruction that diverges.', failures(matrix)) +
    section('Backend by backend', lead, key + triangles(matrix) + cellTable(matrix))
  )
}
