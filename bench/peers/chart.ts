/** The rows as one self-contained SVG: times the peer, and shares of the ceiling. Follows the reader's light or dark. */

import { scenarios } from './scenarios.ts'
import { number, type Row, unitOf } from './table.ts'

const WIDTH = 1000
const LABEL = 410
const ROW = 30
const TOP = 84
const RATIO_WIDTH = 280
const SHARE_LEFT = LABEL + RATIO_WIDTH + 100
const SHARE_WIDTH = WIDTH - SHARE_LEFT - 50

const style = `
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .small { font-size: 11px; fill: #57606a }
    .title { font-size: 16px; font-weight: 600 }
    .ours { fill: #c2581a } .peer { fill: #8c959f }
    .line { stroke: #8c959f; stroke-width: 1 } .faint { stroke: #d0d7de; stroke-width: 1 } .whisker { stroke: #24292f; stroke-width: 1.5 }
    .back { fill: #ffffff }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #f0883e } .peer { fill: #6e7681 }
      .line { stroke: #6e7681 } .faint { stroke: #30363d } .whisker { stroke: #e6edf3 } .back { fill: #0d1117 }
    }`

const escaped = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)
const text = (x: number, y: number, value: string, kind = '', anchor = 'start') =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" class="${kind}" text-anchor="${anchor}">${escaped(value)}</text>`
const line = (x1: number, y1: number, x2: number, y2: number, kind: string) =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" class="${kind}"/>`
const bar = (x: number, y: number, width: number, height: number, kind: string) =>
  `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${Math.max(0, width).toFixed(1)}" height="${height}" class="${kind}" rx="1"/>`

/** 1, 2, 5, 10 ...: the least at which `most` fits. */
const roundUp = (most: number) => {
  const power = 10 ** Math.floor(Math.log10(most))
  return power * ([1, 2, 5, 10].find((step) => step * power >= most) ?? 10)
}

function ratioBar({ ratio, ingot, peer, scenario }: Row, y: number, most: number): string {
  const x = (value: number) => LABEL + (value / most) * RATIO_WIDTH
  const middle = y + ROW / 2
  const speeds = `${number(ingot.value.median)} : ${number(peer.value.median)} ${unitOf(scenario)}`
  return [
    bar(LABEL, y + 8, x(ratio.median) - LABEL, ROW - 16, 'ours'),
    line(x(ratio.least), middle, x(ratio.most), middle, 'whisker'),
    line(x(ratio.least), middle - 3, x(ratio.least), middle + 3, 'whisker'),
    line(x(ratio.most), middle - 3, x(ratio.most), middle + 3, 'whisker'),
    text(x(ratio.most) + 6, middle - 1, `${number(ratio.median)}x`),
    text(x(ratio.most) + 6, middle + 11, speeds, 'small'),
  ].join('')
}

function shareBars({ ingot, peer }: Row, y: number): string {
  if (ingot.share === undefined || peer.share === undefined) return ''
  const width = (share: number) => Math.min(1, share) * SHARE_WIDTH
  const percent = (share: number) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`
  return [
    bar(SHARE_LEFT, y + 5, width(ingot.share), 9, 'ours'),
    bar(SHARE_LEFT, y + 16, width(peer.share), 9, 'peer'),
    text(SHARE_LEFT + width(ingot.share) + 4, y + 14, percent(ingot.share), 'small'),
    text(SHARE_LEFT + width(peer.share) + 4, y + 25, percent(peer.share), 'small'),
  ].join('')
}

/** `title` names the machine, `note` what was measured how. */
export function chart(rows: readonly Row[], title: string, note: string): string {
  const most = roundUp(Math.max(2, ...rows.map(({ ratio }) => ratio.most)) * 1.05)
  const bottom = TOP + rows.length * ROW
  const one = LABEL + RATIO_WIDTH / most
  const body = rows.map((row, index) => {
    const y = TOP + index * ROW
    const newModel = row.model !== rows[index - 1]?.model
    return [
      newModel && index > 0 ? line(16, y, WIDTH - 16, y, 'faint') : '',
      text(16, y + 19, newModel ? `${row.model}, ${row.layers} layers` : '', 'small'),
      text(
        LABEL - 8,
        y + 19,
        `${scenarios[row.scenario].label}, ${row.format}${row.pass === false ? ' (parity FAILS)' : ''}`,
        'small',
        'end',
      ),
      ratioBar(row, y, most),
      shareBars(row, y),
    ].join('')
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${bottom + 44}" width="${WIDTH}" height="${bottom + 44}" role="img" aria-label="${escaped(title)}">`,
    `<style>${style}\n  </style>`,
    `<rect width="100%" height="100%" class="back"/>`,
    text(16, 28, title, 'title'),
    text(16, 48, note, 'small'),
    text(LABEL, TOP - 10, 'times node-llama-cpp (= 1), least to most of the rounds', 'small'),
    text(SHARE_LEFT, TOP - 10, 'share of the ceiling', 'small'),
    bar(WIDTH - 190, 22, 10, 10, 'ours'),
    text(WIDTH - 176, 31, 'Ingot', 'small'),
    bar(WIDTH - 130, 22, 10, 10, 'peer'),
    text(WIDTH - 116, 31, 'node-llama-cpp', 'small'),
    line(LABEL, TOP, LABEL, bottom, 'line'),
    line(SHARE_LEFT, TOP, SHARE_LEFT, bottom, 'line'),
    line(SHARE_LEFT + SHARE_WIDTH, TOP, SHARE_LEFT + SHARE_WIDTH, bottom, 'faint'),
    ...body,
    line(one, TOP, one, bottom, 'line'),
    text(
      16,
      bottom + 26,
      'Ceilings: read bandwidth for decode (weights and state of a step), matrix peak for prefill, measured in the same run.',
      'small',
    ),
    '</svg>\n',
  ].join('\n')
}
