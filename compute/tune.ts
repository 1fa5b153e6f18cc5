/**
 * Measures which kernel is fastest, for each opcode, dtype and shape of a plan and each number of rows: as whole steps
 * with one kernel or the other in all instructions that share the choice. A kernel alone would mislead. It finds caches
 * as no step leaves them, and it runs beside its neighbours: of two that attend, the one that is faster alone costs an
 * 8B model on an H200 a quarter of its speed.
 */
import type { NativeChoice } from '../abi/native.ts'
import {
  createResult,
  createStep,
  type StepLimits,
  type StepView,
  sampleFlags,
  sampleParams,
  stepHeader,
} from '../abi/step.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { KernelChoice, Runner } from './device.ts'
import { bucketOf, type Tunable, tunables } from './tuning.ts'

/** Least, middle and largest of the middle half of some times. */
export interface Quartiles {
  readonly low: number
  readonly median: number
  readonly high: number
}

/** A choice with the microseconds of a step by kernel. */
export interface MeasuredChoice extends KernelChoice {
  readonly instructions: number
  /** What the rules take. */
  readonly rule: string
  readonly step: Readonly<Record<string, Quartiles>>
}

export interface TuneOptions {
  /** What the runner was opened with. */
  readonly limits: StepLimits
  readonly blocks: number
  /** Positions that a sequence has after a step that decodes, or a prompt at most. */
  readonly contextTokens: number
  /** Times that each kernel runs a step. */
  readonly rounds: number
  readonly onProgress?: ((done: number, total: number, what: string) => void) | undefined
}

/** A step: tokens that sequences share evenly; one each where they decode, else prompts from their beginning. */
interface Mix {
  readonly sequences: number
  readonly tokens: number
}

/** Steps that together launch every number of rows up to the limits: decoding while there are slots, then prompts. */
export function mixes({ limits, contextTokens }: TuneOptions): Mix[] {
  const all: Mix[] = []
  for (let rows = 1; rows / 2 < limits.tokens; rows *= 2) {
    const tokens = Math.min(rows, limits.tokens)
    const most = Math.min(tokens, limits.sequences)
    const prompts = Math.ceil(tokens / contextTokens)
    if (rows / 2 < limits.sequences) all.push({ sequences: most, tokens: most })
    else if (prompts <= limits.sequences) all.push({ sequences: prompts, tokens })
  }
  return all
}

const word = stepHeader.word
const param = sampleParams.word

/** Greedy, and random tokens, so that each embedding is another. Positions without a block of their own share some. */
export function stepOf(plan: ExecutionPlan, mix: Mix, options: TuneOptions): StepView {
  const { limits, blocks, contextTokens } = options
  const step = createStep({ ...limits, history: 0, biases: 0, copies: 0 })
  const { sequences, tokens } = mix
  const decode = tokens === sequences
  const blockTokens = Math.max(1, ...plan.states.map((state) => state.blockTokens))
  step.header[word.tokens] = tokens
  step.header[word.sequences] = step.header[word.rows] = sequences
  let taken = 0
  for (let s = 0; s < sequences; s++) {
    const [start, end] = [Math.floor((s * tokens) / sequences), Math.floor(((s + 1) * tokens) / sequences)]
    const length = decode ? contextTokens : end - start
    step.sequenceStart[s] = start
    step.sequenceLength[s] = length
    step.sequenceSlot[s] = s + 1
    for (let b = 0; b < Math.ceil(length / blockTokens); b++)
      step.blockTable[s * limits.blocksPerSequence + b] = 1 + (taken++ % (blocks - 1))
    for (let t = start; t < end; t++) {
      step.tokenIds[t] = (t * 7919 + 13) % plan.vocab
      step.positions[t] = length - (end - t)
      step.tokenSequence[t] = s
    }
    step.rowToken[s] = end - 1
    const at = (s * sampleParams.bytes) / 4
    step.sampling[at + param.flags] = sampleFlags.sample
    step.sampling[at + param.position] = length
    step.samplingF32[at + param.top_p] = 1
    step.samplingF32[at + param.repetition_penalty] = 1
  }
  step.sequenceStart[sequences] = tokens
  return step
}

export function quartiles(times: readonly number[]): Quartiles {
  const sorted = [...times].sort((a, b) => a - b)
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]!
  return { low: at(0.25), median: at(0.5), high: at(0.75) }
}

/** Share of a step that a kernel must save to be taken instead of that of the rules. */
const LEAST_GAIN = 0.005

/** The fastest; that of the rules unless another is faster beyond the spread of both, by more than nothing. */
export function fastest(rule: string, step: Readonly<Record<string, Quartiles>>): string {
  const [best] = Object.entries(step).sort(([, a], [, b]) => a.median - b.median)[0]!
  const [own, other] = [step[rule]!, step[best]!]
  return other.high < own.low && other.median < (1 - LEAST_GAIN) * own.median ? best : rule
}

/**
 * Measures a runner that was opened with `compare`, one tunable after the other; the later ones find the earlier choices
 * made. Its states hold anything afterwards. Rejects as Runner.step does.
 */
export async function tune(runner: Runner, plan: ExecutionPlan, options: TuneOptions): Promise<MeasuredChoice[]> {
  const { limits, rounds, onProgress } = options
  const groups = tunables(plan)
  const steps = mixes(options)
  const result = createResult(limits.rows, { vocab: 0, hidden: 0 }).view
  const measured = new Map<string, MeasuredChoice>()
  const made: NativeChoice[] = []
  for (const [index, mix] of steps.entries()) {
    const step = stepOf(plan, mix, options)
    const counts = { tokens: mix.tokens, rows: mix.sequences, sequences: mix.sequences }
    for (const [at, group] of groups.entries()) {
      const what = `${counts.tokens} tokens: ${group.opcode} ${group.shape}`
      onProgress?.(index * groups.length + at, steps.length * groups.length, what)
      const rows = bucketOf(counts[group.space])
      const key = `${at} ${rows}`
      const kernels = runner.choices!(group.instructions[0]!, counts[group.space], mix.tokens === mix.sequences)
      if (measured.has(key) || kernels.length < 2) continue
      const found = await compareKernels(runner, { group, rows, kernels, made, step, result, rounds })
      measured.set(key, found)
      made.push({ instructions: group.instructions, rows, kernel: found.chosen })
    }
  }
  const total = steps.length * groups.length
  onProgress?.(total, total, `${measured.size} choices`)
  return [...measured.values()]
}

interface Comparing {
  readonly group: Tunable
  readonly rows: number
  readonly kernels: readonly string[]
  /** Chosen before. */
  readonly made: readonly NativeChoice[]
  readonly step: StepView
  readonly result: ReturnType<typeof createResult>['view']
  readonly rounds: number
}

async function compareKernels(runner: Runner, comparing: Comparing): Promise<MeasuredChoice> {
  const { group, rows, kernels, made, step, result, rounds } = comparing
  const { opcode, dtype, shape, instructions } = group
  const sets = kernels.map((kernel) => [...made, { instructions, rows, kernel }])
  const times = await runner.compare!(step, result, sets, rounds)
  const byKernel = Object.fromEntries(kernels.map((kernel, i) => [kernel, quartiles(times[i]!)]))
  const rule = kernels[0]!
  const chosen = fastest(rule, byKernel)
  return { opcode, dtype, shape, rows, instructions: instructions.length, rule, chosen, step: byKernel }
}
