/** A report as one self-contained HTML page: no script, no request, nothing but what it was given. */
import type { MatrixReport } from './matrix-report.ts'
import { errorsPart, layersPart, performancePart } from './report/charts.ts'
import { details, escapeHtml, figure, percent, plural, section, short, table } from './report/html.ts'
import { matrixPart, shareOf } from './report/matrix-part.ts'
import { style } from './report/style.ts'
import type { CertificatePart, ConformancePart, LedgerPart, ReportData, ScorePart } from './report-data.ts'

export type { ReportData } from './report-data.ts'

const verdict = (pass: boolean) => `<span class="verdict ${pass ? 'pass' : 'fail'}">${pass ? 'Passes' : 'Fails'}</span>`

function header({ title, subtitle, pass, matrix }: ReportData): string {
  const verdictOf = pass ?? matrix?.pass
  const facts: (readonly [string, string])[] = matrix
    ? [
        ['made', matrix.created.slice(0, 16).replace('T', ' ')],
        ['in', `${figure(matrix.seconds)} s`],
        ['on', `${matrix.machine.cpu}, Node ${matrix.machine.node}, Ingot ${matrix.machine.ingot}`],
        ['code', short(matrix.code)],
        ['corpus', short(matrix.corpus)],
        ['seed', String(matrix.seed)],
      ]
    : []
  const list = facts.map(([name, value]) => `<span>${name} <b>${escapeHtml(value)}</b></span>`).join('')
  return `<header>${verdictOf === undefined ? '' : verdict(verdictOf)}<h1>${escapeHtml(title)}</h1>${subtitle ? `<p class="sub">${escapeHtml(subtitle)}</p>` : ''}${list && `<div class="facts">${list}</div>`}</header>`
}

/** Figures that say at a glance how the matrix stands. */
function tiles({ cells, operations, rows }: MatrixReport): string {
  const count = (wanted: string) => cells.filter(({ verdict: each }) => each === wanted).length
  const greedy = cells.flatMap(({ metrics }) => (metrics ? [metrics.greedy] : []))
  const sum = (of: (each: (typeof greedy)[number]) => number) => greedy.reduce((total, each) => total + of(each), 0)
  const worst = operations.reduce(
    (most, { errors, allowed }) => errors.reduce((m, e) => Math.max(m, e === 0 ? 0 : e / allowed), most),
    0,
  )
  const share = cells
    .filter(({ verdict: each }) => each !== 'skipped')
    .reduce((most, cell) => Math.max(most, shareOf(cell)), 0)
  const same = cells.filter(({ sameBits }) => sameBits).length
  const shown: (readonly [string, string])[] = [
    [`${count('pass')} of ${cells.length - count('skipped')}`, 'cells pass'],
    [plural(rows.length, 'backend'), `and ${plural(same, 'cell')} of the same bits`],
    [percent(share), 'of what is allowed, at worst'],
    ...(operations.length ? ([[percent(worst), 'the worst instruction, alone']] as const) : []),
    [
      `${sum((each) => each.outsideTies.value)}`,
      `of ${sum((each) => each.total).toLocaleString('en-US')} greedy tokens part outside ties`,
    ],
    ...(count('skipped') ? ([[`${count('skipped')}`, 'cells skipped, with a reason']] as const) : []),
  ]
  return `<div class="tiles">${shown.map(([value, name]) => `<div class="tile"><b>${escapeHtml(value)}</b><span>${escapeHtml(name)}</span></div>`).join('')}</div>`
}

function subjects({ models, rows }: MatrixReport): string {
  const packages = table(
    ['model', 'precision', 'keys and values', 'layers', 'plan', 'weights'],
    models.map((m) => [
      m.name,
      m.precision,
      m.state,
      m.layers,
      { html: `<code>${short(m.planSha256)}</code>` },
      { html: `<code>${short(m.weightsSha256)}</code>` },
    ]),
  )
  const backends = table(
    ['backend', 'device', 'kernels'],
    rows.map((row) => [row.name, row.description, { html: `<code>${short(row.kernels)}</code>` }]),
  )
  return section('What was judged', '', `<div class="card">${backends}</div><p></p><div class="card">${packages}</div>`)
}

const reasons = (matrix: MatrixReport) =>
  details(
    'Why each threshold is what it is',
    table(
      ['threshold', 'reason'],
      Object.entries(matrix.reasons).map(([name, reason]) => [
        name,
        { html: `<span class="wrap">${escapeHtml(reason)}</span>` },
      ]),
    ),
  )

function conformanceOf({ backend, pass, ops }: ConformancePart): string {
  const line = (op: ConformancePart['ops'][number]) => {
    const notes = [
      ...op.unsupported.map(({ what, reason }) => `${what}: ${reason}`),
      ...op.expectedFailures.map(({ what, issue }) => `${what} is expected to fail: ${issue}`),
    ]
    const state = op.failed ? 'fail' : op.passed ? 'pass' : 'skipped'
    const word = op.failed ? `${op.failed} fail` : op.passed ? 'pass' : 'unsupported'
    return [
      { html: `<code>${escapeHtml(op.op)}</code>` },
      { html: `<span class="pill ${state}">${word}</span>` },
      op.passed,
      op.worst === undefined ? '' : { html: percent(op.worst), right: true },
      { html: `<span class="wrap">${escapeHtml(notes.join('; '))}</span>` },
    ]
  }
  const head = ['opcode', '', { html: 'cases', right: true }, { html: 'worst of allowed', right: true }, 'notes']
  return `<div class="card"><h3>${escapeHtml(backend)} <span class="pill ${pass ? 'pass' : 'fail'}">${pass ? 'conforms' : 'does not conform'}</span></h3>${table(head, ops.map(line))}</div>`
}

const conformance = (parts: readonly ConformancePart[]) =>
  section(
    'Opcode by opcode',
    'Generated cases of every opcode and dtype against the float64 reference.',
    parts.length
      ? `<div class="cards" style="grid-template-columns:1fr">${parts.map(conformanceOf).join('')}</div>`
      : '',
  )

const scores = (parts: readonly ScorePart[]) =>
  section(
    'What the gates catch',
    'Defects seeded on purpose, and how many of them were found.',
    parts.length
      ? `<div class="tiles">${parts.map(({ name, caught, total, note }) => `<div class="tile"><b>${caught.toLocaleString('en-US')} of ${total.toLocaleString('en-US')}</b><span>${escapeHtml(name)}${note ? `: ${escapeHtml(note)}` : ''}</span></div>`).join('')}</div>`
      : '',
  )

function certificate({ verdict: said, keyId, issued, expires, subjects: all, facts = [] }: CertificatePart): string {
  const rows = [
    ...all.map(({ name, sha256 }) => [name, `<code>${escapeHtml(sha256)}</code>`] as const),
    ['signed with', `<code>${escapeHtml(keyId)}</code>`] as const,
    ['issued', escapeHtml(issued)] as const,
    ...(expires ? [['expires', escapeHtml(expires)] as const] : []),
    ...facts.map(([name, value]) => [name, escapeHtml(value)] as const),
  ]
  const passes = said === 'pass'
  return section(
    'Certificate',
    '',
    `<div class="seal"><span class="verdict ${passes ? 'pass' : 'fail'}">${escapeHtml(said)}</span><dl>${rows.map(([name, html]) => `<dt>${escapeHtml(name)}</dt><dd>${html}</dd>`).join('')}</dl></div>`,
  )
}

const ledger = ({ entries }: LedgerPart) =>
  section(
    'Ledger',
    'Append-only; each entry holds the hash of the one before it.',
    entries.length
      ? `<ol class="ledger">${entries.map(({ index, time, what, by, hash }) => `<li><time>${escapeHtml(time)}</time><br><b>${escapeHtml(what)}</b> by ${escapeHtml(by)}<br><code class="note">#${index} ${escapeHtml(short(hash))}</code></li>`).join('')}</ol>`
      : '',
  )

const commands = (lines: readonly string[]) =>
  section(
    'Make it again',
    '',
    lines.length ? `<pre>${lines.map((line) => `<span class="p">$ </span>${escapeHtml(line)}`).join('\n')}</pre>` : '',
  )

/** The page. Parts that `data` lacks are left out; nothing in it is trusted to be HTML. */
export function renderReport(data: ReportData): string {
  const { matrix } = data
  const parts = [
    header(data),
    matrix ? tiles(matrix) : '',
    data.certificate ? certificate(data.certificate) : '',
    matrix ? matrixPart(matrix) + layersPart(matrix) + errorsPart(matrix) : '',
    conformance(data.conformance ?? []),
    scores(data.scores ?? []),
    data.performance ? performancePart(data.performance) : '',
    data.ledger ? ledger(data.ledger) : '',
    matrix ? subjects(matrix) + reasons(matrix) : '',
    commands(data.commands ?? []),
  ]
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(data.title)}</title><style>${style}</style><body>
${parts.filter((part) => part !== '').join('\n')}
</body></html>
`
}
