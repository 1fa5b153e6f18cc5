/** What the CUDA backend is to reach on an H200, beside what others reach there on the same shapes. */
import type { DeviceRow } from './device-results.ts'
import type { ShapeName } from './peers/shapes.ts'
import { shape } from './peers/shapes.ts'
import { markdownTable, number, percent } from './peers/table.ts'

/** What was measured; undefined: nothing. */
export interface Bests {
  /** Tokens a second; `what` is how a cell begins. */
  speed(name: ShapeName, quantize: DeviceRow['quantize'], what: string, deterministic?: boolean): number | undefined
  /** Kernels launched by a step, of each run of the last version that ran the shape. */
  launches(name: ShapeName): readonly number[]
  /** Device memory taken over what is accounted for, less 1; the worst. */
  memory(): number
}

interface Bar {
  readonly shape: ShapeName
  readonly quantize: DeviceRow['quantize']
  readonly what: string
  /** Tokens a second of llama.cpp CUDA, and of PyTorch: compiled with graphs (decode), eager (prefill). */
  readonly llama?: number
  readonly torch?: number
  /** The best that is published for an H200: a graph of kernels, and one kernel for all. */
  readonly published?: string
  readonly bar: number
  readonly goal: number
}

const one = { shape: 'Llama-3.2-1B', quantize: 'none' } as const
const eight = { shape: 'Llama-3.1-8B', quantize: 'none' } as const
const [single, many, prefill] = ['decode, 1 sequence', 'decode, 128 sequences', 'prefill, 1 prompt of 2048'] as const
const bars: readonly Bar[] = [
  { ...one, what: single, llama: 766, torch: 568, published: '1,258, 1,316', bar: 1150, goal: 1350 },
  { ...one, what: many, llama: 23_968, torch: 11_293, bar: 50_000, goal: 85_000 },
  { ...eight, what: single, llama: 205, torch: 162, bar: 240, goal: 257 },
  { ...eight, what: many, llama: 9858, torch: 2919, bar: 15_000, goal: 20_000 },
  { ...eight, what: prefill, llama: 28_107, torch: 33_366, bar: 34_000, goal: 45_000 },
  { ...one, what: prefill, llama: 109_846, torch: 172_277, bar: 173_000, goal: 250_000 },
  { ...eight, quantize: 'q4', what: single, llama: 274, bar: 450, goal: 700 },
]

const verdict = (met: boolean | undefined) => (met === undefined ? 'not measured' : met ? 'met' : '**missed**')

function speedRow(
  bests: Bests,
  { shape: name, quantize, what, llama, torch, published = '-', bar, goal }: Bar,
): string[] {
  const found = bests.speed(name, quantize, what)
  const figure = (value: number | undefined) => (value === undefined ? '-' : number(value))
  const title = `${name} ${quantize === 'none' ? 'bf16' : quantize}, ${what}, tok/s`
  const peers = [figure(llama), figure(torch), published]
  return [
    title,
    figure(found),
    ...peers,
    number(bar),
    number(goal),
    verdict(found === undefined ? undefined : found >= bar),
  ]
}

const kept = (title: string, found: string, bar: string, met: boolean | undefined) => [
  title,
  found,
  '-',
  '-',
  '-',
  bar,
  '-',
  verdict(met),
]

/** A layer may launch six kernels and what is outside layers six more, whatever the batch. */
function launchRow(bests: Bests, name: ShapeName): string[] {
  const [found, bar] = [bests.launches(name), 6 * shape(name).num_hidden_layers + 6]
  const [least, most] = [Math.min(...found), Math.max(...found)]
  const met = found.length > 0 ? most <= bar && least === most : undefined
  return kept(
    `${name} bf16, launches a step`,
    found.length === 0 ? '-' : least === most ? String(least) : `${least} to ${most}`,
    `${bar}, constant`,
    met,
  )
}

const gains = [
  [single, 1.6],
  [many, 1.3],
] as const

/** What fp8 gains over bf16. */
function fp8Row(bests: Bests): string[] {
  const found = gains.map(([what]) => {
    const [fp8, none] = (['fp8', 'none'] as const).map((quantize) => bests.speed(eight.shape, quantize, what))
    return fp8 && none ? fp8 / none : undefined
  })
  const shown = found.every((gain) => gain === undefined)
    ? '-'
    : found.map((gain) => gain?.toFixed(2) ?? '-').join(', ')
  const met = found.includes(undefined) ? undefined : gains.every(([, bar], i) => found[i]! >= bar)
  const bar = gains.map(([, least]) => least).join(', ')
  return kept(`${eight.shape} fp8 over bf16, 1 and 128 sequences`, shown, bar, met)
}

function costRow(bests: Bests, what: string): string[] {
  const { shape: name, quantize } = one
  const speeds = [true, false].map((mode) => bests.speed(name, quantize, what, mode))
  const cost = speeds[0] && speeds[1] && 1 - speeds[0] / speeds[1]
  const title = `${name} bf16, ${what}: cost of deterministic mode`
  return kept(title, cost === undefined ? '-' : percent(cost), '15 %', cost === undefined ? undefined : cost <= 0.15)
}

/** Every bar, with what was measured of it. */
export function barTable(bests: Bests): string {
  const memory = bests.memory()
  return markdownTable(
    ['', 'Ingot', 'llama.cpp CUDA', 'PyTorch', 'published', 'bar', 'goal', ''],
    [
      ...bars.map((bar) => speedRow(bests, bar)),
      ...(['Llama-3.2-1B', 'Llama-3.1-8B'] as const).map((name) => launchRow(bests, name)),
      fp8Row(bests),
      kept('device memory over what is accounted for', percent(memory), '3 %', memory <= 0.03),
      ...[single, many].map((what) => costRow(bests, what)),
    ],
  )
}
