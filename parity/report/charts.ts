/** The plots of a report: divergence by layer, errors by opcode, and bars of performance. */
import type { MatrixCell, MatrixReport, OpErrors } from '../matrix-report.ts'
import type { PerformanceGroup, PerformancePart } from '../report-data.ts'
import { colourOf, escapeHtml, figure, legend, section } from './html.ts'

const decades = (low: number, high: number): number[] =>
  Array.from({ length: Math.max(0, high - low) + 1 }, (_, i) => low + i)
const power = (exponent: number) =>
  exponent === 0 ? '1' : `10<tspan dy="-5" font-size="9">${exponent < 0 ? '−' : ''}${Math.abs(exponent)}</tspan>`
const log = (value: number, least: number) => Math.log10(Math.max(value, least))
const unique = <T>(values: readonly T[]): T[] => [...new Set(values)]

/** A line, its dots, and what it may reach. */
interface Line {
  readonly name: string
  readonly colour: string
  readonly points: readonly number[]
  readonly allowed: number
}

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [560, 270, 44, 12, 12, 40]

/** Layers where no line shows anything, as the embedding, are left out. */
function layerPlot(title: string, labels: readonly string[], lines: readonly Line[]): string {
  const shown = labels.map((_, i) => i).filter((i) => lines.some(({ points }) => points[i]! > 0))
  if (shown.length < labels.length && shown.length > 1) {
    const points = (line: Line) => shown.map((i) => line.points[i]!)
    return layerPlot(
      title,
      shown.map((i) => labels[i]!),
      lines.map((line) => ({ ...line, points: points(line) })),
    )
  }
  const values = lines.flatMap(({ points, allowed }) => [...points, allowed]).filter((value) => value > 0)
  const low = Math.floor(Math.log10(Math.min(...values)))
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))))
  const x = (i: number) => LEFT + (i / Math.max(1, labels.length - 1)) * (WIDTH - LEFT - RIGHT)
  const y = (value: number) => TOP + ((high - log(value, 10 ** low)) / (high - low)) * (HEIGHT - TOP - BOTTOM)
  const grid = decades(low, high)
    .map((e) => {
      const at = y(10 ** e).toFixed(1)
      return `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${at}" y2="${at}" stroke="var(--line)"/><text x="${LEFT - 8}" y="${Number(at) + 4}" text-anchor="end">${power(e)}</text>`
    })
    .join('')
  const every = Math.ceil(labels.length / 10)
  const ticks = labels
    .map((label, i) =>
      i % every
        ? ''
        : `<text x="${x(i).toFixed(1)}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${escapeHtml(label.replace(/^layers\./, ''))}</text>`,
    )
    .join('')
  const drawn = lines.map(({ name, colour, points, allowed }) => {
    const path = points.map((value, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join('')
    const dots = points.map(
      (value, i) =>
        `<circle cx="${x(i).toFixed(1)}" cy="${y(value).toFixed(1)}" r="3.2" fill="${colour}" stroke="var(--card)" stroke-width="1.2"><title>${escapeHtml(`${name}, behind ${labels[i]}: ${figure(value)} (allowed ${figure(allowed)})`)}</title></circle>`,
    )
    const bound = `<line x1="${WIDTH - RIGHT - 26}" x2="${WIDTH - RIGHT}" y1="${y(allowed).toFixed(1)}" y2="${y(allowed).toFixed(1)}" stroke="${colour}" stroke-width="2" stroke-dasharray="3 3"><title>${escapeHtml(`${name}: allowed ${figure(allowed)}`)}</title></line>`
    return `${bound}<path d="${path}" fill="none" stroke="${colour}" stroke-width="2" stroke-linejoin="round"/>${dots.join('')}`
  })
  const foot = `<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 4}" text-anchor="middle">behind layer</text>`
  return `<figure><h3>${escapeHtml(title)}</h3><div class="plot"><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" style="min-width:26rem" role="img" aria-label="${escapeHtml(title)}">${grid}${ticks}${foot}${drawn.join('')}</svg></div></figure>`
}

/** Rows judged by the reference, those of the same bits once. */
function judged(cells: readonly MatrixCell[]): MatrixCell[] {
  const seen = new Map<string, MatrixCell>()
  for (const cell of cells) {
    const key = JSON.stringify([cell.model, cell.precision, cell.shape, cell.layers])
    if (cell.layers?.length && !seen.has(key)) seen.set(key, cell)
  }
  return [...seen.values()]
}

/** Divergence by layer: for each model and kind of prompts, a line for each precision and row of other bits. */
export function layersPart({ cells, shapes, rows, models }: MatrixReport): string {
  const oracle = rows.find(({ backend }) => backend === 'reference')?.name ?? rows[0]!.name
  const plots = unique(models.map(({ name }) => name)).flatMap((model) =>
    shapes
      .filter((shape) => shape.judged)
      .map(({ name: shape, kind }) => {
        const of = judged(
          cells.filter((cell) => cell.model === model && cell.shape === shape && cell.expected === oracle),
        )
        const names = unique(of.map(({ actual }) => actual))
        const lines = of.map(
          ({ precision, actual, layers }): Line => ({
            name: names.length > 1 ? `${precision}, ${actual}` : precision,
            colour: colourOf(indexOf(models, precision)),
            points: layers!.map(({ worst }) => worst.value),
            allowed: layers![0]!.worst.allowed,
          }),
        )
        return lines.length
          ? layerPlot(
              `${model}, ${kind}`,
              of[0]!.layers!.map(({ label }) => label),
              lines,
            )
          : ''
      }),
  )
  const key = legend(unique(models.map(({ precision }) => precision)).map((name, i) => [name, colourOf(i)]))
  const lead =
    'How far the residual stream of the worst token is from the reference behind each layer, relative to itself. Backends of the same bits share a line; a dash at the right edge is what is allowed.'
  return plots.join('')
    ? section('Divergence by layer', lead, `${key}<div class="cards wide">${plots.join('')}</div>`)
    : ''
}

const indexOf = (models: MatrixReport['models'], precision: string) =>
  unique(models.map((each) => each.precision)).indexOf(precision)

const LANE = 44
const LOWEST = -4

/** One lane an opcode: a dot for each instruction, at its share of what it may err. */
function errorPlot(operations: readonly OpErrors[], models: MatrixReport['models'], title: string): string {
  const ops = unique(operations.filter(({ errors }) => errors.some((error) => error > 0)).map(({ op }) => op))
  if (ops.length === 0) return ''
  const shares = operations.flatMap(({ errors, allowed }) => errors.map((error) => log(error / allowed, 10 ** LOWEST)))
  const high = Math.max(1, Math.ceil(Math.max(...shares.filter(Number.isFinite))))
  const [width, left, right] = [760, 92, 14]
  const height = 16 + ops.length * LANE + 34
  const x = (exponent: number) =>
    left + ((Math.min(exponent, high) - LOWEST) / (high - LOWEST)) * (width - left - right)
  const lanes = ops.map((op, i) => {
    const middle = 16 + (i + 0.5) * LANE
    const dots = operations
      .filter((each) => each.op === op)
      .flatMap(({ precision, kind, errors, allowed, model, row }, s) =>
        errors
          .filter((error) => error > 0)
          .map((error, k) => {
            const colour = colourOf(indexOf(models, precision))
            // spread by what is drawn, so that equal values do not hide each other
            const jitter = (((s * 7 + k * 5) % 15) - 7) * 2.1
            const share = error / allowed
            const look = kind === 'text' ? `fill="${colour}"` : `fill="none" stroke="${colour}" stroke-width="1.4"`
            return `<circle cx="${x(log(share, 10 ** LOWEST)).toFixed(1)}" cy="${(middle + jitter).toFixed(1)}" r="3.4" ${look} opacity=".7"><title>${escapeHtml(`${model}, ${precision}, ${kind}, ${row}: ${figure(error)} of ${figure(allowed)}`)}</title></circle>`
          }),
      )
    return `<line x1="${left}" x2="${width - right}" y1="${middle}" y2="${middle}" stroke="var(--line)"/><text class="strong" x="${left - 12}" y="${middle + 4}" text-anchor="end">${escapeHtml(op)}</text>${dots.join('')}`
  })
  const axis = decades(LOWEST, high).map(
    (e) =>
      `<text x="${x(e).toFixed(1)}" y="${height - 8}" text-anchor="middle">${e === 0 ? 'allowed' : power(e)}</text><line x1="${x(e).toFixed(1)}" x2="${x(e).toFixed(1)}" y1="10" y2="${height - 26}" stroke="${e === 0 ? 'var(--bad)' : 'var(--line)'}" ${e === 0 ? 'stroke-width="1.5"' : 'stroke-dasharray="2 4"'}/>`,
  )
  return `<figure><h3>${escapeHtml(title)}</h3><div class="plot"><svg viewBox="0 0 ${width} ${height}" style="min-width:30rem" role="img" aria-label="errors by opcode">${axis.join('')}${lanes.join('')}</svg></div><figcaption>Filled: text. Hollow: random ids. Instructions that are exact have no dot.</figcaption></figure>`
}

export function errorsPart({ operations, models }: MatrixReport): string {
  if (operations.length === 0) return ''
  const key = legend(unique(models.map(({ precision }) => precision)).map((name, i) => [name, colourOf(i)]))
  const plots = unique(models.map(({ name }) => name)).map((model) =>
    errorPlot(
      operations.filter((each) => each.model === model),
      models,
      model,
    ),
  )
  const lead =
    'Each instruction judged alone: the reference answers it on the operands that the backend really had. A dot is the worst row of one instruction, as a share of what its opcode may err.'
  return section(
    'Errors by opcode',
    lead,
    `${key}<div class="cards" style="grid-template-columns:1fr">${plots.join('')}</div>`,
  )
}

function bars({ name, unit, bars: all, ceiling, threshold, lowerIsBetter }: PerformanceGroup): string {
  const most =
    Math.max(...all.flatMap(({ value, spread }) => [value, spread?.[1] ?? 0]), ceiling ?? 0, threshold ?? 0) || 1
  const at = (value: number) => `${((100 * value) / most).toFixed(2)}%`
  const mark = (value: number | undefined, title: string) =>
    value === undefined
      ? ''
      : `<u style="left:calc(${at(value)} - 1px)" title="${escapeHtml(`${title}: ${figure(value)} ${unit}`)}"></u>`
  const lines = all.map(({ name: label, value, spread, own }) => {
    const range = spread
      ? `<s style="left:${at(spread[0])};width:${at(spread[1] - spread[0])}" title="${figure(spread[0])} to ${figure(spread[1])}"></s>`
      : ''
    return `<span class="label">${escapeHtml(label)}</span><span class="track"><i class="${own ? 'own' : ''}" style="width:${at(value)}"></i>${range}${mark(ceiling, 'ceiling')}${mark(threshold, 'threshold')}</span><span>${figure(value)} <small class="note">${escapeHtml(unit)}</small></span>`
  })
  const better = lowerIsBetter ? ' <small>less is better</small>' : ''
  return `<div class="card"><h3>${escapeHtml(name)}${better}</h3><div class="bars">${lines.join('')}</div></div>`
}

export const performancePart = ({ machine, groups }: PerformancePart): string =>
  section(
    'Speed beside peers',
    machine,
    groups.length ? `<div class="cards wide">${groups.map(bars).join('')}</div>` : '',
  )
