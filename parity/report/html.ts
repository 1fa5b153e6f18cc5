/** Pieces of a page; every text is escaped where it enters. */
import { escapeHtml } from '../../plans/report.ts'

export { escapeHtml }

/** A number short enough for a chart: 1,234, 0.12 or 3.4e-5. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (value === 0) return '0'
  if (size >= 100) return Math.round(value).toLocaleString('en-US')
  if (size >= 1e-2) return String(Number(value.toPrecision(3)))
  const [mantissa, exponent] = value.toExponential(1).split('e')
  return `${mantissa}e${exponent}`
}

export const percent = (share: number): string => `${figure(100 * share)} %`
export const plural = (count: number, one: string, many = `${one}s`): string =>
  `${count.toLocaleString('en-US')} ${count === 1 ? one : many}`
export const short = (sha256: string): string => sha256.slice(0, 12)

/** A cell of a table: text is escaped; `html` is not; a number is aligned to the right. */
export type Cell = string | number | { readonly html: string; readonly right?: boolean }

function cell(tag: 'td' | 'th', value: Cell): string {
  const right = typeof value === 'number' || (typeof value === 'object' && value.right)
  const inner = typeof value === 'object' ? value.html : escapeHtml(typeof value === 'number' ? figure(value) : value)
  return `<${tag}${right ? ' class="n"' : ''}>${inner}</${tag}>`
}

export function table(head: readonly Cell[], rows: readonly (readonly Cell[])[]): string {
  const line = (tag: 'td' | 'th') => (cells: readonly Cell[]) =>
    `<tr>${cells.map((each) => cell(tag, each)).join('')}</tr>`
  // a column of numbers has its name above them
  const above = head.map(
    (name, i): Cell =>
      typeof name === 'string' && typeof rows[0]?.[i] === 'number' ? { html: escapeHtml(name), right: true } : name,
  )
  return `<div class="scroll"><table><thead>${line('th')(above)}</thead><tbody>${rows.map(line('td')).join('')}</tbody></table></div>`
}

/** Nothing where the body is empty. */
export const section = (title: string, lead: string, body: string): string =>
  body === ''
    ? ''
    : `<section><h2>${escapeHtml(title)}</h2>${lead && `<p class="lead">${escapeHtml(lead)}</p>`}${body}</section>`

export const details = (summary: string, body: string): string =>
  `<details><summary>${escapeHtml(summary)}</summary>${body}</details>`

/** Colours of series, told apart in light and dark and by people who see fewer of them (Okabe and Ito). */
export const series = [
  'var(--s0)',
  'var(--s1)',
  'var(--s2)',
  'var(--s3)',
  'var(--s4)',
  'var(--s5)',
  'var(--s6)',
] as const
export const colourOf = (index: number): string => series[index % series.length]!

export const legend = (entries: readonly (readonly [name: string, colour: string])[]): string =>
  `<div class="legend">${entries
    .map(([name, colour]) => `<span><i style="background:${colour}"></i>${escapeHtml(name)}</span>`)
    .join('')}</div>`
