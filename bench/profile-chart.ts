/**
 * A profile as a picture: a column for each opcode, as wide as its share of the time and filled up to its share of the
 * limit that bounds it. What is empty is time that a better kernel could save.
 */
import type { OutsideRow, Profile, ProfileRow, Scenario } from './profile.ts'

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
const escaped = (text: string) => text.replace(/[&<>"]/g, (character) => escapes[character]!)
export const percent = (share: number) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`
export const milliseconds = (ms: number) => `${ms.toFixed(ms < 1 ? 3 : ms < 100 ? 2 : 0)} ms`

/** Layout in SVG units; text is sized for a width of about 900 pixels. */
const [width, left, right] = [960, 52, 20]
const [panelHeight, top, plot] = [304, 70, 172]
const header = 84
const inner = width - left - right
/** Columns narrower than this share are drawn as one. */
const narrow = 0.02

interface Column {
  readonly name: string
  readonly ms: number
  readonly share: number
  readonly kind: 'memory' | 'compute' | 'outside'
  /** Of its limit. */
  readonly reached: number
  readonly note: string
}

const opcodeColumn = (row: ProfileRow): Column => ({
  name: row.name,
  ms: row.ms,
  share: row.share,
  kind: row.bound,
  reached: row.limitShare,
  note: `${row.calls.toFixed(0)} calls; ${row.gigabytesPerSecond.toFixed(1)} GB/s, ${percent(row.readShare)} of read; ${row.gigaoperationsPerSecond.toFixed(0)} GOP/s, ${percent(row.peakShare)} of peak`,
})

/** A row of columns with its headline. */
export interface Panel {
  readonly name: string
  readonly rate: string
  /** Share of the time in which the machine worked at its limit. */
  readonly limitShare: number
  readonly opcodes: readonly ProfileRow[]
  readonly outside: readonly OutsideRow[]
}

export interface Chart {
  readonly title: string
  /** The line below it. */
  readonly about: string
  readonly panels: readonly Panel[]
}

/** Opcodes by time, the small ones as one, and then what is outside. */
function columns({ opcodes, outside }: Panel): Column[] {
  const all = opcodes.filter(({ ms }) => ms > 0).map(opcodeColumn)
  const small = all.filter(({ share }) => share < narrow)
  const wide = all.filter(({ share }) => share >= narrow)
  const merge = (name: string, parts: readonly (Column | OutsideRow)[], kind: Column['kind'], reached: number) => {
    const sum = (of: (part: Column | OutsideRow) => number) => parts.reduce((total, part) => total + of(part), 0)
    const note = parts.map((part) => `${part.name} ${milliseconds(part.ms)}`).join(', ')
    return { name, ms: sum((p) => p.ms), share: sum((p) => p.share), kind, reached, note }
  }
  const used = small.reduce((sum, { ms, reached }) => sum + ms * reached, 0)
  const time = small.reduce((sum, { ms }) => sum + ms, 0)
  return [
    ...wide,
    ...(small.length > 1 ? [merge('small opcodes', small, small[0]!.kind, used / time)] : small),
    ...(outside.length > 0 ? [merge('outside', outside, 'outside', 0)] : []),
  ]
}

/** The characters that fit, of about `unit` each; the rest is cut. */
const fit = (text: string, space: number, unit = 6.2) =>
  text.length * unit <= space ? text : space < 30 ? '' : `${text.slice(0, Math.floor(space / unit) - 1)}…`

function columnOf(column: Column, from: number, base: number): string {
  const { name, ms, share, kind, reached, note } = column
  const wide = share * inner
  const filled = Math.min(1, reached) * plot
  const middle = (from + wide / 2).toFixed(1)
  const label = (y: number, text: string, style = '') => {
    const shown = fit(text, wide - 4, style ? 7.5 : 6.2)
    return (
      shown && `<text class="${style}" x="${middle}" y="${y.toFixed(1)}" text-anchor="middle">${escaped(shown)}</text>`
    )
  }
  const full = `${percent(share)}, ${milliseconds(ms)}`
  const brief = full.length * 6.2 <= wide - 4 ? full : percent(share)
  const limit = kind === 'memory' ? 'of read' : 'of peak'
  // Above the fill, where the column is empty, unless it reaches the top.
  const at = base - filled
  const inside = filled > plot - 20
  const reachedLabel =
    kind === 'outside'
      ? ''
      : label(
          inside ? at + 16 : at - 6,
          wide > 84 ? `${percent(reached)} ${limit}` : percent(reached),
          inside ? 'on' : 'value',
        )
  const box = (y: number, height: number, style: string) =>
    `<rect class="${style}" x="${(from + 0.75).toFixed(1)}" y="${y.toFixed(1)}" width="${Math.max(0.5, wide - 1.5).toFixed(1)}" height="${height.toFixed(1)}" rx="2"/>`
  const title = `${name}: ${milliseconds(ms)}, ${percent(share)} of the time${kind === 'outside' ? '' : `; ${percent(reached)} ${limit}`}; ${note}`
  return `<g><title>${escaped(title)}</title>${box(base - plot, plot, kind === 'outside' ? 'outside' : 'room')}${filled > 0.3 && kind !== 'outside' ? box(at, filled, kind) : ''}
${label(base + 17, name, 'name')}${label(base + 32, brief)}${reachedLabel}</g>`
}

function panelOf(panel: Panel, y: number): string {
  const base = y + top + plot
  const grid = [0, 0.5, 1]
    .map((share) => {
      const at = base - share * plot
      return `<line class="grid" x1="${left}" x2="${width - right}" y1="${at}" y2="${at}"/><text x="${left - 8}" y="${at + 4}" text-anchor="end">${share * 100}</text>`
    })
    .join('')
  let from = left
  const drawn = columns(panel).map((column) => {
    const svg = columnOf(column, from, base)
    from += column.share * inner
    return svg
  })
  return `<g><text class="title" x="${left}" y="${y + 30}">${escaped(panel.name)}</text>
<text class="rate" x="${left}" y="${y + 52}">${escaped(panel.rate)}</text>
<text class="big" x="${width - right}" y="${y + 36}" text-anchor="end">${percent(panel.limitShare)}</text>
<text x="${width - right}" y="${y + 54}" text-anchor="end">of the limit</text>
${grid}${drawn.join('\n')}</g>`
}

const colours = `
.c { --ink: #1d2127; --soft: #5d6673; --ground: #fbfaf8; --room: #e9e7e2; --grid: #cfd4db; --memory: #2f7ab8; --compute: #d9822b; --out: #c4c7cc; --on: #fff }
@media (prefers-color-scheme: dark) { .c { --ink: #e8eaed; --soft: #a3acb8; --ground: #14171b; --room: #262b32; --grid: #3a424d; --memory: #5aa2dd; --compute: #eb9d4e; --out: #4a515b; --on: #14171b } }
.c text { font: 11.5px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums }
.c .title { font-size: 17px; font-weight: 600; fill: var(--ink) } .c .head { font-size: 21px; font-weight: 650; fill: var(--ink) }
.c .rate { font-size: 13px } .c .big { font-size: 24px; font-weight: 650; fill: var(--ink) }
.c .name, .c .value { fill: var(--ink); font-weight: 550 } .c .on { fill: var(--on); font-weight: 600 }
.c .ground { fill: var(--ground) } .c .room { fill: var(--room) } .c .grid { stroke: var(--grid); stroke-width: 1; stroke-dasharray: 2 4 }
.c .memory { fill: var(--memory) } .c .compute { fill: var(--compute) } .c .outside { fill: var(--out); opacity: .55 }
`

/** A self-contained image; its colours follow the reader's light or dark scheme. */
export function chartSvg({ title, about, panels }: Chart): string {
  const height = header + panels.length * panelHeight + 8
  const key = (x: number, style: string, text: string) =>
    `<rect class="${style}" x="${x}" y="64" width="11" height="11" rx="2"/><text x="${x + 17}" y="74">${text}</text>`
  const outside = panels.some((panel) => panel.outside.length > 0)
  return `<svg xmlns="http://www.w3.org/2000/svg" class="c" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escaped(title)}">
<style>${colours}</style><rect class="ground" width="${width}" height="${height}"/>
<text class="head" x="${left}" y="34">${escaped(title)}</text><text x="${left}" y="53">${escaped(about)}</text>
${key(left, 'memory', 'bound by memory')}${key(left + 142, 'compute', 'bound by arithmetic')}${key(left + 302, 'room', 'below the limit: could be saved')}${outside ? key(left + 514, 'outside', 'outside opcodes') : ''}
<text x="${width - right}" y="74" text-anchor="end">width: share of time; height: % of the limit</text>
${panels.map((panel, i) => panelOf(panel, header + i * panelHeight)).join('\n')}
</svg>
`
}

const tera = (value: number) => (value / 1000).toFixed(2)

export function profileSvg({ package: name, device, ceilings: { read, peak }, scenarios }: Profile): string {
  const about = `${device}; measured limits: read ${read.median.toFixed(1)} GB/s, peak ${tera(peak.f32.median)} (f32), ${tera(peak.bf16.median)} (bf16), ${tera(peak.i8.median)} (int8) TOP/s`
  const panels = scenarios.map((scenario) => {
    const { ms, run, tokensPerSecond } = scenario
    const rate = `${milliseconds(ms)} a ${run}, ${tokensPerSecond.toFixed(tokensPerSecond < 100 ? 1 : 0)} tokens/s`
    return { ...scenario, rate }
  })
  return chartSvg({ title: `${name}: where the time goes`, about, panels })
}

const page = `
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5d6673; --line: #d9dee5; --ground: #fbfaf8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3acb8; --line: #333a44; --ground: #14171b } }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1rem 3rem; color: var(--ink); background: var(--ground); font: 14px/1.5 system-ui, sans-serif }
.scroll { overflow-x: auto } svg.c { display: block; width: 100%; min-width: 44rem; height: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } caption { text-align: left; font-weight: 600; padding: 1.4rem 0 .4rem }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap } th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child { text-align: left; padding-left: 0 } summary { cursor: pointer; color: var(--soft); margin-top: .5rem }
`

const cells = (tag: string, values: readonly string[]) =>
  `<tr>${values.map((value) => `<${tag}>${escaped(value)}</${tag}>`).join('')}</tr>`

/** Columns of a table of rows, for the page and for the terminal. */
export const profileHead = ['opcode', 'calls', 'ms', '% of time', 'GB/s', '% of read', 'GOP/s', '% of peak', 'bound by']
export const profileCells = (row: ProfileRow): string[] => [
  row.name,
  row.calls.toFixed(0),
  row.ms.toFixed(3),
  (row.share * 100).toFixed(1),
  row.gigabytesPerSecond.toFixed(1),
  (row.readShare * 100).toFixed(1),
  row.gigaoperationsPerSecond.toFixed(0),
  (row.peakShare * 100).toFixed(1),
  row.bound === 'memory' ? 'read' : 'peak',
]
export const outsideCells = ({ name, ms, share }: OutsideRow): string[] => [
  name,
  '',
  ms.toFixed(3),
  (share * 100).toFixed(1),
]

function tableOf({ name, opcodes, instructions, outside, ms }: Scenario): string {
  const padded = (row: OutsideRow) => [...outsideCells(row), '', '', '', '', '']
  const body = [
    ...opcodes.map(profileCells),
    ...outside.map(padded),
    ['all', '', ms.toFixed(3), '100.0', '', '', '', '', ''],
  ]
  const table = (caption: string, rows: readonly string[][]) =>
    `<div class="scroll"><table>${caption && `<caption>${escaped(caption)}</caption>`}<thead>${cells('th', profileHead)}</thead><tbody>${rows.map((row) => cells('td', row)).join('')}</tbody></table></div>`
  return `${table(name, body)}<details><summary>${instructions.length} instructions</summary>${table('', instructions.map(profileCells))}</details>`
}

/** A self-contained page: the picture, and the numbers behind it. */
export function profileHtml(profile: Profile): string {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(profile.package)}: profile</title><style>${page}</style>
<div class="scroll">${profileSvg(profile)}</div>${profile.scenarios.map(tableOf).join('\n')}</html>
`
}
