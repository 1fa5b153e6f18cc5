/** A plan as one self-contained HTML page: memory map over time, opcodes, weights, state. */

import { type Space, spaceNames } from '../abi/ops/define.ts'
import { opNames } from '../abi/ops/index.ts'
import type { ExecutionPlan, Register } from './plan.ts'

const escapes: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
export const escapeHtml = (text: string) => text.replace(/[&<>"]/g, (character) => escapes[character]!)
const count = (value: number) => value.toLocaleString('en-US')

/** Bytes with a binary unit. */
export function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let scaled = value
  let unit = 0
  while (scaled >= 1024 && unit < units.length - 1) {
    scaled /= 1024
    unit++
  }
  return `${unit ? scaled.toFixed(scaled < 10 ? 2 : 1) : scaled} ${units[unit]}`
}

const style = `
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5d6673; --line: #d9dee5; --ground: #fbfaf8; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa3af; --line: #333a44; --ground: #14171b; --card: #1c2026; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--ground); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
p, figcaption { color: var(--soft); margin: .25rem 0 } code, .mono { font: 12.5px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem }
.tile b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums } .tile span { color: var(--soft); font-size: .85rem }
figure { margin: 0; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem }
svg { display: block; width: 100%; min-width: 40rem; height: auto } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap } th { color: var(--soft); font-weight: 500 }
td.n, th.n { text-align: right } .legend { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin-top: .6rem; font-size: .85rem; color: var(--soft) }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em }
details pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem }
`

/** A hue an opcode, spread so that neighbours in the list differ. */
const hue = (op: string) => (opNames.indexOf(op as (typeof opNames)[number]) * 137.5) % 360
const colour = (op: string) => `hsl(${hue(op).toFixed(0)} 52% 52%)`

const table = (head: readonly string[], rows: readonly (readonly (string | number)[])[]) => {
  const cell = (tag: string, value: string | number) =>
    `<${tag}${typeof value === 'number' ? ' class="n"' : ''}>${typeof value === 'number' ? count(value) : escapeHtml(value)}</${tag}>`
  const headCell = (name: string, column: number) =>
    typeof rows[0]?.[column] === 'number' ? `<th class="n">${name}</th>` : `<th>${name}</th>`
  return `<div class="scroll"><table><thead><tr>${head.map(headCell).join('')}</tr></thead><tbody>${rows
    .map((row) => `<tr>${row.map((value) => cell('td', value)).join('')}</tr>`)
    .join('')}</tbody></table></div>`
}

/** Registers of one space: time to the right, bytes upwards. */
function memoryMap(plan: ExecutionPlan, space: Space): string {
  const index = spaceNames.indexOf(space)
  const peak = plan.memory.peak[index]!
  if (peak === 0) return ''
  const [width, height, left, top] = [1000, 300, 70, 10]
  const steps = plan.instructions.length
  const x = (step: number) => left + (step / steps) * (width - left - 10)
  const y = (offset: number) => top + (1 - offset / peak) * (height - top - 25)
  const box = (register: Register) => {
    const op = plan.instructions[register.first]!.op
    const end = Math.min(register.last + 1, steps)
    const label = `${register.name}: ${op} ${plan.instructions[register.first]!.label}; instructions ${register.first} to ${register.last}; bytes ${register.offset} to ${register.offset + register.stride}`
    return `<rect x="${x(register.first).toFixed(1)}" y="${y(register.offset + register.stride).toFixed(1)}" width="${Math.max(1, x(end) - x(register.first)).toFixed(1)}" height="${Math.max(0.5, y(register.offset) - y(register.offset + register.stride)).toFixed(1)}" fill="${colour(op)}" fill-opacity=".78" stroke="var(--card)" stroke-width=".5"><title>${escapeHtml(label)}</title></rect>`
  }
  const marks = [0, 0.5, 1]
    .map((share) => `<text x="${left - 8}" y="${y(share * peak) + 4}" text-anchor="end">${bytes(share * peak)}</text>`)
    .join('')
  const bound = plan.memory.lowerBound[index]!
  return `<h2>Memory of one ${space.slice(0, -1)}</h2><figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="registers over time">
${plan.registers
  .filter((register) => register.space === space)
  .map(box)
  .join('\n')}
<line x1="${left}" x2="${width - 10}" y1="${y(bound)}" y2="${y(bound)}" stroke="currentColor" stroke-dasharray="4 3" opacity=".5"/>
${marks}<text x="${left}" y="${height - 5}">instruction 0</text><text x="${width - 10}" y="${height - 5}" text-anchor="end">${steps - 1}</text></svg>
<figcaption>Peak ${bytes(peak)}, lower bound ${bytes(bound)} (dashed), ratio ${(peak / bound).toFixed(3)}.</figcaption></figure>`
}

function legend(plan: ExecutionPlan): string {
  const used = opNames.filter((name) => plan.instructions.some(({ op }) => op === name))
  return `<div class="legend">${used.map((name) => `<span><i style="background:${colour(name)}"></i>${name}</span>`).join('')}</div>`
}

function groupSum<T>(
  items: readonly T[],
  key: (item: T) => string,
  size: (item: T) => number,
): [string, number, number][] {
  const groups = new Map<string, [number, number]>()
  for (const item of items) {
    const [n, sum] = groups.get(key(item)) ?? [0, 0]
    groups.set(key(item), [n + 1, sum + size(item)])
  }
  return [...groups].map(([name, [n, sum]]): [string, number, number] => [name, n, sum]).sort((a, b) => b[2] - a[2])
}

/** The page. `listing` is the text of plans/print.ts; `hash` names the plan. */
export function planReport(plan: ExecutionPlan, hash: string, listing: string): string {
  const weights = plan.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)
  const perToken = plan.states.reduce(
    (sum, state) => sum + (state.kind === 'paged' ? state.sizeBytes / state.blockTokens : 0),
    0,
  )
  const tiles: [string, string][] = [
    ['instructions', count(plan.instructions.length)],
    ['weights', bytes(weights)],
    ['state a token', bytes(perToken)],
    ['activations a token', bytes(plan.memory.peak[0]!)],
    ['vocabulary', count(plan.vocab)],
    ['context', count(plan.maxContext)],
  ]
  const opcodes = groupSum(
    plan.instructions,
    ({ op }) => op,
    () => 0,
  )
    .map(([op, n]) => [op, n] as const)
    .sort((a, b) => b[1] - a[1])
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(plan.model)} plan</title><style>${style}</style>
<h1>${escapeHtml(plan.model)} plan</h1><p class="mono">${hash}</p>
<div class="tiles">${tiles.map(([name, value]) => `<div class="tile"><b>${value}</b><span>${name}</span></div>`).join('')}</div>
${spaceNames.map((space) => memoryMap(plan, space)).join('')}${legend(plan)}
<h2>Weights by dtype and layout</h2>${table(
    ['dtype, layout', 'tensors', 'bytes'],
    groupSum(
      plan.tensors,
      ({ dtype, layout }) => `${dtype}, ${layout}`,
      (t) => t.bytes,
    ),
  )}
<h2>Opcodes</h2>${table(['opcode', 'instructions'], opcodes)}
<h2>States</h2>${table(
    ['name', 'kind', 'dtype', 'bytes a unit', 'positions a unit', 'fork'],
    plan.states.map((s) => [s.name, s.kind, s.dtype, s.sizeBytes, s.blockTokens, s.fork]),
  )}
<h2>Instructions</h2><details><summary>${plan.instructions.length} instructions</summary><pre class="mono">${escapeHtml(listing)}</pre></details></html>
`
}
