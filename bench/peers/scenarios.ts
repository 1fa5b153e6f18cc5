/** What is measured, and how a number comes from what a process saw: one definition for both sides. */
import type { Format } from './convert.ts'

export type Side = 'ingot' | 'peer'

export interface Scenario {
  readonly label: string
  readonly kind: 'decode' | 'prefill' | 'start'
  readonly sequences: number
  /** Tokens of each prompt. */
  readonly context: number
  readonly formats: readonly Format[]
  /** Also measure one sequence in the same process, for the ratio of step times. */
  readonly withSingle?: boolean
  /** Rounds at most: for what takes minutes to set up. */
  readonly rounds?: number
}

const all: readonly Format[] = ['bf16', 'q8', 'q4']

export const scenarios = {
  start: { label: 'warm start to first token, prompt 16', kind: 'start', sequences: 1, context: 16, formats: all },
  decode1: { label: 'decode, 1 sequence', kind: 'decode', sequences: 1, context: 16, formats: all },
  prefill512: { label: 'prefill 512', kind: 'prefill', sequences: 1, context: 512, formats: all },
  decode512: { label: 'decode, 1 sequence after 512', kind: 'decode', sequences: 1, context: 512, formats: ['q4'] },
  decode8: {
    label: 'decode, 8 sequences after 256',
    kind: 'decode',
    sequences: 8,
    context: 256,
    formats: ['q4'],
    withSingle: true,
  },
  decode32: { label: 'decode, 32 sequences after 128', kind: 'decode', sequences: 32, context: 128, formats: ['q4'] },
  decode8192: {
    label: 'decode, 1 sequence after 8,192',
    kind: 'decode',
    sequences: 1,
    context: 8192,
    formats: ['q4'],
    rounds: 1,
  },
} as const satisfies Record<string, Scenario>
export type ScenarioName = keyof typeof scenarios
export const scenarioNames = Object.keys(scenarios) as ScenarioName[]

/** Token budget of a step, and the peer's batch: the same for both. */
export const STEP_TOKENS = 512
/** Decode steps that a measurement wants at least and at most. */
const LEAST_STEPS = 8
const MOST_STEPS = 48
/** Prompts that a prefill measurement times at most. */
export const MOST_PROMPTS = 5

/** Generated tokens that a sequence needs room for: sequences whose prompts come first decode while others still read. */
export const generatedTokens = ({ sequences, context }: Pick<Scenario, 'sequences' | 'context'>) =>
  MOST_STEPS + 1 + (sequences === 1 ? 0 : Math.ceil((sequences * context) / STEP_TOKENS) + 1)

/** What a measuring process is asked, as JSON in its one argument. */
export interface Task {
  /** Package folder or GGUF file. */
  readonly path: string
  readonly threads: number
  /** Ours: instruction set, the best when empty. The peer's: folder of its libraries; see peerLibraries. */
  readonly isa: string
  readonly vocab: number
  readonly seed: number
  /** Seconds that one measurement should take. */
  readonly seconds: number
  readonly scenario?: Scenario
  /** Instead: write the logits of every token of these prompts, one after another, as float32. */
  readonly logits?: { readonly prompts: readonly (readonly number[])[]; readonly out: string }
}

/** What it answers, as JSON on stdout. */
export interface Answer {
  /** What computed: instruction set, threads, library. */
  readonly device: string
  /** From before the package is opened until it can take a prompt, and until the first token of the first prompt. */
  readonly openMs: number
  readonly firstTokenMs: number
  /** Seconds of each step or prompt. */
  readonly samples: readonly number[]
  /** Steps of one sequence alone. */
  readonly single?: readonly number[]
  /** Tokens of state that memory is taken for; bytes of one where they are not 16 bits an element. */
  readonly stateTokens: number
  readonly stateTokenBytes?: number
  readonly memory: Memory
}

/** Resident bytes: all, private, and of mapped files. */
export interface Memory {
  readonly resident: number
  readonly anonymous: number
  readonly file: number
}

/** From the text of /proc/self/status. */
export function parseMemory(status: string): Memory {
  const bytes = (field: string) =>
    Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? Number.NaN) * 1024
  return { resident: bytes('VmRSS'), anonymous: bytes('RssAnon'), file: bytes('RssFile') }
}

/**
 * Seconds of each step from the times (ms) at which each sequence got its tokens: counted from when the last sequence
 * had its first token until one sequence ended, a step being as many tokens as there are sequences.
 */
export function stepSeconds(arrivals: readonly (readonly number[])[]): number[] {
  const start = Math.max(...arrivals.map((times) => times[0]!))
  const end = Math.min(...arrivals.map((times) => times.at(-1)!))
  const tokens = arrivals
    .flat()
    .filter((time) => time > start && time <= end)
    .sort((a, b) => a - b)
  const steps: number[] = []
  for (let last = start, i = arrivals.length - 1; i < tokens.length; last = tokens[i]!, i += arrivals.length)
    steps.push((tokens[i]! - last) / 1000)
  return steps
}

/** Collects arrivals, and says when a measurement has enough: `seconds` or MOST_STEPS after all sequences started. */
export class Arrivals {
  readonly times: number[][]
  readonly #seconds: number
  enough = false
  constructor(sequences: number, seconds: number) {
    this.times = Array.from({ length: sequences }, () => [])
    this.#seconds = seconds
  }
  add(sequence: number): void {
    const now = performance.now()
    this.times[sequence]!.push(now)
    if (this.times.some((times) => times.length === 0)) return
    const start = Math.max(...this.times.map((times) => times[0]!))
    const steps = this.times[sequence]!.filter((time) => time > start).length
    if (steps >= MOST_STEPS || (steps >= LEAST_STEPS && now - start > this.#seconds * 1000)) this.enough = true
  }
}
