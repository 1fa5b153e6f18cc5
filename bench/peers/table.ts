/** From single measurements to rows: medians, spreads, ratios of pairs, shares of the ceilings; and rows as text. */
import type { Ceilings } from '../ceilings.ts'
import { quantile } from '../measure.ts'
import type { Format } from './convert.ts'
import type { Parity } from './parity.ts'
import type { Artifact } from './prepare.ts'
import { type Answer, type Scenario, type ScenarioName, type Side, scenarios } from './scenarios.ts'
import { type ModelConfig, operationsPerToken, stateBytesPerToken } from './shapes.ts'

export interface Measurement {
  readonly model: string
  readonly format: Format
  readonly scenario: ScenarioName
  readonly round: number
  readonly side: Side
  readonly answer: Answer
}

/** What rows need to know of a model in a format. */
export interface Subject {
  readonly model: string
  readonly format: Format
  readonly config: ModelConfig
  readonly bytes: Artifact['bytes']
  readonly parity?: Parity
}

/** Median over rounds, and the extremes. */
export interface Range {
  readonly median: number
  readonly least: number
  readonly most: number
}

export interface SideFigures {
  /** Tokens a second; of `start`, milliseconds. */
  readonly value: Range
  /** Of the read bandwidth (decode) or of the matrix peak (prefill). */
  readonly share?: number
  /** Resident bytes beyond weights and state. */
  readonly overhead: number
  readonly resident: number
  /** Milliseconds from opening to a first token, and of the opening alone. */
  readonly firstTokenMs: number
  readonly openMs: number
  /** Step time over that of one sequence. */
  readonly stepRatio?: Range
}

export interface Row {
  readonly model: string
  readonly layers: number
  readonly format: Format
  readonly scenario: ScenarioName
  readonly ingot: SideFigures
  readonly peer: SideFigures
  /** How many times as fast as the peer, pair by pair of the rounds. */
  readonly ratio: Range
  readonly rounds: number
  /** Whether both compute the same; undefined when it was not checked. */
  readonly pass?: boolean
}

export interface Peaks {
  /** GB/s. */
  readonly read: number
  /** GOP/s. */
  readonly bf16: number
  readonly i8: number
}

const median = (values: readonly number[]) => quantile(values, 0.5)
const range = (values: readonly number[]): Range => ({
  median: median(values),
  least: Math.min(...values),
  most: Math.max(...values),
})

/** Medians over the probes of a run. */
export const peaksOf = (probes: readonly Ceilings[]): Peaks => ({
  read: median(probes.map(({ read }) => read.median)),
  bf16: median(probes.map(({ peak }) => peak.bf16.median)),
  i8: median(probes.map(({ peak }) => peak.i8.median)),
})

/** One number of a measurement: tokens a second, or milliseconds to the first token. */
function figureOf({ kind, sequences, context }: Scenario, { samples, firstTokenMs }: Answer): number {
  if (kind === 'start') return firstTokenMs
  return (kind === 'prefill' ? context : sequences) / median(samples)
}

const tokenBytes = (config: ModelConfig, { stateTokenBytes }: Answer) => stateTokenBytes ?? stateBytesPerToken(config)

/** Bytes that a decode step reads: weights, and the state of every sequence in the middle of the measurement. */
const stepBytes = ({ config, bytes }: Subject, side: Side, { sequences, context }: Scenario, answer: Answer) =>
  bytes[side].step + tokenBytes(config, answer) * sequences * (context + answer.samples.length / 2)

function shareOf(subject: Subject, side: Side, scenario: Scenario, answer: Answer, peaks: Peaks): number | undefined {
  const seconds = median(answer.samples)
  if (scenario.kind === 'decode') return stepBytes(subject, side, scenario, answer) / seconds / (peaks.read * 1e9)
  const peak = subject.format === 'bf16' ? peaks.bf16 : peaks.i8
  if (scenario.kind === 'prefill')
    return (operationsPerToken(subject.config) * scenario.context) / seconds / (peak * 1e9)
  return undefined
}

function figures(subject: Subject, side: Side, scenario: Scenario, answers: readonly Answer[], peaks: Peaks) {
  const shares = answers.flatMap((answer) => shareOf(subject, side, scenario, answer, peaks) ?? [])
  const state = (answer: Answer) => answer.stateTokens * tokenBytes(subject.config, answer)
  const over = (answer: Answer) => answer.memory.resident - subject.bytes[side].weights - state(answer)
  const ratios = answers.flatMap(({ samples, single }) => (single ? [median(samples) / median(single)] : []))
  return {
    value: range(answers.map((answer) => figureOf(scenario, answer))),
    ...(shares.length > 0 && { share: median(shares) }),
    overhead: median(answers.map(over)),
    resident: median(answers.map(({ memory }) => memory.resident)),
    firstTokenMs: median(answers.map(({ firstTokenMs }) => firstTokenMs)),
    openMs: median(answers.map(({ openMs }) => openMs)),
    ...(ratios.length > 0 && { stepRatio: range(ratios) }),
  }
}

/** A row for every scenario of a subject that both sides finished at least once. */
export function rowsOf(subject: Subject, measurements: readonly Measurement[], peaks: Peaks): Row[] {
  const { model, format, config, parity } = subject
  const own = measurements.filter((m) => m.model === model && m.format === format)
  return (Object.keys(scenarios) as ScenarioName[]).flatMap((name) => {
    const scenario: Scenario = scenarios[name]
    const answerOf = (side: Side, round: number) =>
      own.find((m) => m.scenario === name && m.side === side && m.round === round)?.answer
    const rounds = [...new Set(own.map(({ round }) => round))]
    const pairs = rounds.flatMap((round) => {
      const [ingot, peer] = [answerOf('ingot', round), answerOf('peer', round)]
      return ingot && peer ? [{ ingot, peer }] : []
    })
    if (pairs.length === 0) return []
    const side = (which: Side) =>
      figures(
        subject,
        which,
        scenario,
        pairs.map((pair) => pair[which]),
        peaks,
      )
    const ratios = pairs.map(({ ingot, peer }) => {
      const [ours, theirs] = [figureOf(scenario, ingot), figureOf(scenario, peer)]
      return scenario.kind === 'start' ? theirs / ours : ours / theirs
    })
    return {
      model,
      layers: config.num_hidden_layers,
      format,
      scenario: name,
      ingot: side('ingot'),
      peer: side('peer'),
      ratio: range(ratios),
      rounds: pairs.length,
      ...(parity && { pass: parity.pass }),
    }
  })
}

export const number = (value: number) =>
  value >= 100 ? Math.round(value).toLocaleString('en') : value.toFixed(value >= 10 ? 1 : 2)
export const unitOf = (scenario: ScenarioName) => (scenarios[scenario].kind === 'start' ? 'ms' : 'tok/s')
export const percent = (share: number | undefined) =>
  share === undefined ? '' : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`
const megabytes = (bytes: number) => (bytes / 1e6).toFixed(0)
const spreadText = ({ median: middle, least, most }: Range) => `${number(middle)} (${number(least)} to ${number(most)})`

export const markdownTable = (head: readonly string[], rows: readonly (readonly string[])[]) =>
  [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n')

/** Every row: speeds, ratio and how many rounds it is of, shares of the ceiling, resident memory over weights and state, first token, verdict. */
export function speedTable(rows: readonly Row[]): string {
  const head = [
    'model',
    'weights',
    'what',
    'Ingot',
    'node-llama-cpp',
    'ratio',
    'rounds',
    'of the ceiling',
    'MB over weights + state',
    'open to first token, ms',
    'parity',
  ]
  const both = (text: (side: SideFigures) => string, { ingot, peer }: Row) => `${text(ingot)} / ${text(peer)}`
  return markdownTable(
    head,
    rows.map((row) => [
      `${row.model}, ${row.layers} layers`,
      row.format,
      scenarios[row.scenario].label,
      `${number(row.ingot.value.median)} ${unitOf(row.scenario)}`,
      `${number(row.peer.value.median)} ${unitOf(row.scenario)}`,
      spreadText(row.ratio),
      `${row.rounds}`,
      row.ingot.share === undefined ? '' : both(({ share }) => percent(share), row),
      both(({ overhead }) => megabytes(overhead), row),
      both(({ firstTokenMs }) => firstTokenMs.toFixed(0), row),
      row.pass === undefined ? 'not checked' : row.pass ? 'pass' : 'FAIL',
    ]),
  )
}

/** What the bars are about, from the rows at hand. */
export function goalTable(rows: readonly Row[]): string {
  const goals: (readonly string[])[] = []
  const add = (what: string, row: Row, ours: string, theirs: string, bar: string, goal: string) =>
    goals.push([`${what}, ${row.model} ${row.format}`, ours, theirs, bar, goal])
  for (const row of rows) {
    const { ingot, peer, scenario, ratio } = row
    const share = (bar: string, goal: string) =>
      add(
        scenario === 'decode1' ? 'decode, share of read bandwidth' : 'prefill 512, share of matrix peak',
        row,
        percent(ingot.share),
        percent(peer.share),
        bar,
        goal,
      )
    if (scenario === 'decode1') share('88 %', '95 %')
    if (scenario === 'prefill512') share('40 %', '62 %')
    if (scenario === 'decode8')
      add(
        'step of 8 sequences over that of 1',
        row,
        number(ingot.stepRatio!.median),
        number(peer.stepRatio!.median),
        '1.30',
        '1.12',
      )
    if (scenario === 'decode512') {
      add('decode after 512, tok/s', row, number(ingot.value.median), number(peer.value.median), '38', '45')
      add('resident over weights + state, MB', row, megabytes(ingot.overhead), megabytes(peer.overhead), '150', '60')
    }
    if (scenario === 'decode32') add('decode, 32 sequences, times the peer', row, number(ratio.median), '1', '6', '12')
    if (scenario === 'decode8192') add('decode after 8,192, times the peer', row, number(ratio.median), '1', '2.5', '4')
    if (scenario === 'start' && row.format === 'q4')
      add('open to first token, ms', row, number(ingot.value.median), number(peer.value.median), '80', '40')
  }
  return markdownTable(['', 'Ingot', 'node-llama-cpp', 'bar', 'goal'], goals)
}

/** Errors of both sides against float64, and of the two against each other on the timed files. */
export function parityTable(subjects: readonly Subject[]): string {
  const figure = (value: number) => (value === 0 ? '0' : value.toPrecision(2))
  const rows = subjects.flatMap(({ model, format, bytes, parity }) => {
    if (!parity) return []
    const { ingot, peer, timed, pass } = parity
    return [
      [
        model,
        format,
        `${megabytes(bytes.ingot.weights)} / ${megabytes(bytes.peer.weights)}`,
        `${figure(ingot.error)} / ${figure(peer.error)}`,
        `${figure(ingot.kl)} / ${figure(peer.kl)}`,
        figure(timed.error),
        figure(timed.kl),
        pass ? 'pass' : 'FAIL',
      ],
    ]
  })
  const head = [
    'model',
    'weights',
    'MB (Ingot / peer)',
    'error to float64, in deviations',
    'KL to float64, nats',
    'error between the timed files',
    'KL between them',
    'verdict',
  ]
  return markdownTable(head, rows)
}

/** Loss per token of a trained model by side and format, and what the format adds to bf16. */
export function lossTable(losses: Readonly<Partial<Record<Format, Readonly<Record<Side, number>>>>>): string {
  const base = losses.bf16
  const cell = (loss: number, from: number | undefined) =>
    `${loss.toFixed(4)}${from === undefined || loss === from ? '' : ` (${loss >= from ? '+' : ''}${((loss / from - 1) * 100).toFixed(2)} %)`}`
  return markdownTable(
    ['weights', 'Ingot', 'node-llama-cpp'],
    Object.entries(losses).map(([format, loss]) => [
      format,
      cell(loss.ingot, base?.ingot),
      cell(loss.peer, base?.peer),
    ]),
  )
}
