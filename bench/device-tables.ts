/**
 * Tables and pictures of what bench/device.ts measured: speeds with their share of the device's limits, the bars of the
 * project, and where a step's time goes by opcode.
 */
import { type Bests, barTable } from './device-bars.ts'
import { peerSection } from './device-peer-tables.ts'
import type { DeviceResults, DeviceRow, DeviceRun, DeviceStep } from './device-results.ts'
import { type ShapeName, shapeNames } from './peers/shapes.ts'
import { markdownTable, number, percent } from './peers/table.ts'
import { type Cost, type ProfileRow, rowOf } from './profile.ts'
import { chartSvg, milliseconds } from './profile-chart.ts'

type Ceilings = DeviceResults['ceilings']

const weightsOf = ({ quantize }: Pick<DeviceRow, 'quantize'>) => (quantize === 'none' ? 'bf16' : quantize)
const modeOf = ({ deterministic }: DeviceRow) => (deterministic ? 'deterministic' : 'default')

const sequences = (count: number) => `${count} ${count === 1 ? 'sequence' : 'sequences'}`

/** One number that was measured. */
interface Cell {
  readonly row: DeviceRow
  readonly what: string
  readonly tokensPerSecond: number
  readonly spread: { readonly low: number; readonly high: number; readonly samples: number }
  readonly ms: string
  /** Of the read bandwidth (decode) or of the matrix peak (prefill). */
  readonly share: string
  readonly version: string
}

function cellsOf({ version, bench }: DeviceRun, { read, bf16 }: Ceilings): Cell[] {
  const cells: Cell[] = []
  for (const row of bench) {
    const { decode = [], prefill = [] } = row.report ?? {}
    for (const { batch, context, tokensPerSecond, msPerStep, bytesPerStep, spread } of decode) {
      // A row whose prompts fill a step is there for its prefill: two steps are no measure of decoding.
      if (spread.samples < 8) continue
      const share = `${percent(bytesPerStep / msPerStep / 1e6 / read)} of reading`
      const what = `decode, ${sequences(batch)} at ${context}`
      cells.push({ row, what, tokensPerSecond, spread, ms: msPerStep.toFixed(3), share, version })
    }
    // Products on the device are bf16, whatever the weights are stored as.
    for (const { batch, tokens, operations = 0, tokensPerSecond, spread } of prefill) {
      const share = `${percent((operations * tokensPerSecond) / tokens / (bf16 * 1e9))} of the peak`
      const what = `prefill, ${batch} ${batch === 1 ? 'prompt' : 'prompts'} of ${tokens}`
      cells.push({ row, what, tokensPerSecond, spread, ms: '', share, version })
    }
  }
  return cells
}

/** The last of every cell or breakdown, by shape, weights and mode. */
function latest<T extends { readonly row: DeviceRow }>(all: readonly T[], rest: (each: T) => string): T[] {
  const order = ({ row: { shape, quantize, deterministic } }: T) =>
    [shapeNames.indexOf(shape), ['none', 'fp8', 'q8', 'q4'].indexOf(quantize), Number(deterministic)].join(' ')
  const last = new Map(all.map((each) => [`${order(each)} ${rest(each)}`, each]))
  const byOrder = new Intl.Collator('en', { numeric: true }).compare
  return [...last].sort(([a], [b]) => byOrder(a, b)).map(([, each]) => each)
}

const speedTable = (cells: readonly Cell[]) =>
  markdownTable(
    ['shape', 'weights', 'mode', 'what', 'tokens/s', '10th to 90th percentile', 'ms a step', 'share', 'version'],
    cells.map(({ row, what, tokensPerSecond, spread, ms, share, version }) => [
      row.shape,
      weightsOf(row),
      modeOf(row),
      what,
      number(tokensPerSecond),
      spread.samples > 1 ? `${number(spread.low)} to ${number(spread.high)}` : 'one run',
      ms,
      share,
      version,
    ]),
  )

/** A breakdown with what it belongs to. */
interface Breakdown {
  readonly row: DeviceRow
  readonly step: DeviceStep
  readonly version: string
  readonly opcodes: readonly ProfileRow[]
  /** Milliseconds of the kernels one after the other, and of the step as it runs. */
  readonly alone: number
  readonly wall: number
  /** Share of the limit that the step as a whole reaches. */
  readonly limitShare: number
}

function breakdownOf({ version }: DeviceRun, row: DeviceRow, step: DeviceStep, { read, bf16 }: Ceilings): Breakdown {
  const alone = Object.values(step.opcodes).reduce((sum, us) => sum + us, 0) / 1000
  const costs = Object.entries(step.opcodes).map(([op, us]): Cost => {
    const work = step.work?.[op] ?? { calls: 0, bytes: 0, operations: 0 }
    const least = { memoryMs: work.bytes / read / 1e6, computeMs: work.operations / bf16 / 1e6 }
    return { op, label: op, ms: us / 1000, ...work, ...least }
  })
  const opcodes = costs.map((cost) => rowOf(cost.op, [cost], alone))
  const least = costs.reduce((sum, c) => sum + Math.max(c.memoryMs, c.computeMs), 0)
  const wall = step.wall / 1000
  return { row, step, version, opcodes, alone, wall, limitShare: least / wall }
}

function breakdownsOf({ runs, ceilings }: DeviceResults): Breakdown[] {
  const all = runs.flatMap((run) =>
    run.bench.flatMap((row) => (row.steps ?? []).map((step) => breakdownOf(run, row, step, ceilings))),
  )
  return latest(all, ({ step }) => String(step.batch))
}

function breakdownTable({ row, step, version, opcodes, alone, wall, limitShare }: Breakdown): string {
  const micros = (ms: number) => (ms * 1000).toFixed(0)
  const lines = opcodes.map((o) => [
    o.name,
    o.calls.toFixed(0),
    micros(o.ms),
    percent(o.share),
    number(o.gigabytesPerSecond),
    percent(o.readShare),
    (o.gigaoperationsPerSecond / 1000).toFixed(1),
    percent(o.peakShare),
  ])
  const head = ['opcode', 'calls', 'us', 'of the time', 'GB/s', 'of reading', 'TFLOP/s', 'of the peak']
  const title = `${row.shape}, ${weightsOf(row)}, ${modeOf(row)} mode, ${sequences(step.batch)} (${version})`
  const sums = `The kernels one after the other: ${micros(alone)} us. The step as it runs: ${micros(wall)} us, ${percent(limitShare)} of the limit; ${step.host.toFixed(0)} us of JavaScript between steps.`
  return `### ${title}\n\n${sums}\n\n${markdownTable(head, lines)}`
}

/** What opening took of the device's memory, and what the model accounts for. */
function memoryTable(breakdowns: readonly Breakdown[]): string {
  const mebibytes = (bytes: number) => number(bytes / 2 ** 20)
  const rows = breakdowns.flatMap(({ row, step: { batch, taken, planned } }) =>
    taken === undefined || planned === undefined || row.deterministic
      ? []
      : [
          [
            row.shape,
            weightsOf(row),
            String(batch),
            mebibytes(taken),
            mebibytes(planned),
            `${((taken / planned - 1) * 100).toFixed(2)} %`,
          ],
        ],
  )
  return markdownTable(['shape', 'weights', 'sequences', 'MiB taken', 'MiB accounted for', 'more'], rows)
}

function checkTable({ runs }: DeviceResults): string {
  const passed = (checks: readonly { pass: boolean }[]) =>
    checks.length === 0 ? '' : `${checks.filter(({ pass }) => pass).length} of ${checks.length}`
  const rows = runs.map(({ version, goldens, tasks, invariance, choices, faults }) => [
    version,
    passed(goldens),
    tasks.map(({ quantize, correct, total }) => `${quantize} ${correct}/${total}`).join(', '),
    passed(invariance),
    passed(choices),
    passed(faults),
  ])
  const any = rows.filter(([, ...cells]) => cells.some(Boolean))
  const head = ['version', 'goldens', 'storyteller-7m tasks', 'invariance, deterministic', 'random choices', 'faults']
  return markdownTable(head, any)
}

/** What the bars are about, of the cells and breakdowns that stand. */
function bestsOf(cells: readonly Cell[], breakdowns: readonly Breakdown[], { runs }: DeviceResults): Bests {
  const rowsOf = (shape: ShapeName) => {
    const own = (run: DeviceResults['runs'][number]) =>
      run.bench.filter((row) => row.shape === shape && row.quantize === 'none')
    const last = runs.findLast((run) => own(run).length > 0)
    return runs.filter(({ version }) => version === last?.version).flatMap(own)
  }
  return {
    speed: (shape, quantize, what, deterministic = false) =>
      cells.find(
        ({ row, what: own }) =>
          row.shape === shape &&
          row.quantize === quantize &&
          row.deterministic === deterministic &&
          own.startsWith(what),
      )?.tokensPerSecond,
    launches: (shape) => rowsOf(shape).flatMap(({ report }) => report?.launchesPerStep ?? []),
    memory: () => Math.max(...breakdowns.map(({ step }) => (step.taken ?? 0) / (step.planned ?? 1) - 1)),
  }
}

/** The last of every shape. */
const peersOf = ({ runs }: DeviceResults) => [
  ...new Map(runs.flatMap(({ peers }) => peers.map((peer) => [peer.shape, peer]))).values(),
]

function report(
  name: string,
  results: DeviceResults,
  cells: readonly Cell[],
  breakdowns: readonly Breakdown[],
): string {
  const { device, date } = results.runs.at(-1)!
  const { read, bf16 } = results.ceilings
  const pictures = picturesOf(name, breakdowns).map(({ file, title }) => `![${title}](${file})`)
  const toolkit = (version: number) => `${Math.floor(version / 1000)}.${(version % 1000) / 10}`
  return `# ${device.name}, ${date}

Compute capability ${device.capability}; CUDA ${toolkit(device.runtime)}, driver for ${toolkit(device.driver)}. Random weights. Limits measured on this class of device: reading ${number(read)} GB/s, bf16 products ${number(bf16 / 1000)} TFLOP/s. "Decode, 8 sequences at 544": with 544 tokens each in the mean; its share is that of the bytes of weights and state that a step reads, in its time. Drawn by \`node dist/bench/device-report.js\` from ${name}.json.

## Speed

${speedTable(cells)}

## Against the bars

${barTable(bestsOf(cells, breakdowns, results))}
${peerSection(peersOf(results))}
## Device memory

${memoryTable(breakdowns)}

## Checks

${checkTable(results)}

## Where a step's time goes

Times by opcode are those of kernels that run one after the other, between events; as it runs, a step is a captured graph whose kernels start before those ahead of them end.

${pictures.join('\n')}

${breakdowns.map(breakdownTable).join('\n\n')}
`
}

/** One picture a shape and weights: its breakdowns below each other. */
function picturesOf(name: string, breakdowns: readonly Breakdown[]) {
  const groups = new Map<string, Breakdown[]>()
  for (const each of breakdowns) {
    const { row } = each
    const mode = row.deterministic ? '-deterministic' : ''
    const key = `${row.shape.toLowerCase()}-${weightsOf(row)}${mode}`
    groups.set(key, [...(groups.get(key) ?? []), each])
  }
  return [...groups].map(([key, parts]) => {
    const { row } = parts[0]!
    return {
      file: `${name}-${key}.svg`,
      title: `${row.shape}, ${weightsOf(row)}${row.deterministic ? ', deterministic' : ''}: where a decode step's time goes`,
      parts,
    }
  })
}

/** What fits a column: of a linear its sizes, else the opcode. */
const brief = (name: string) => name.replace(/^linear (?=\d)|(?<!^linear) .*$/g, '')

function drawing(
  { title, parts }: ReturnType<typeof picturesOf>[number],
  device: string,
  { read, bf16 }: Ceilings,
): string {
  const panels = parts.map(({ row, step, opcodes, alone, wall, limitShare }) => ({
    name: `${sequences(step.batch)}, ${modeOf(row)} mode`,
    rate: `kernels one after the other ${milliseconds(alone)}; a step as it runs ${milliseconds(wall)}, ${number((step.batch / wall) * 1000)} tokens/s`,
    limitShare,
    opcodes: opcodes.map((row) => ({ ...row, name: brief(row.name) })).sort((a, b) => b.ms - a.ms),
    outside: [],
  }))
  const about = `${device}; measured limits: read ${number(read)} GB/s, bf16 ${number(bf16 / 1000)} TFLOP/s; sizes alone: linear`
  return chartSvg({ title, about, panels })
}

/** The report <name>.md and its pictures: what each file holds. */
export function draw(name: string, results: DeviceResults): ReadonlyMap<string, string> {
  const all = results.runs.flatMap((run) => cellsOf(run, results.ceilings))
  const [cells, breakdowns] = [latest(all, ({ what }) => what), breakdownsOf(results)]
  const device = results.runs.at(-1)!.device.name
  return new Map([
    [`${name}.md`, report(name, results, cells, breakdowns)],
    ...picturesOf(name, breakdowns).map((each) => [each.file, drawing(each, device, results.ceilings)] as const),
  ])
}
