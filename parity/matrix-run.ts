/** Runs the prompts of one shape on one row: logits, the residual stream behind every layer, and a greedy continuation. */
import { createHash, type Hash } from 'node:crypto'
import type { DeviceInfo, LinkedPackage } from '../compute/device.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { BatchInput, SequenceInput } from './batch.ts'
import type { MatrixShape } from './matrix-report.ts'
import { type BackendRow, type RanStep, rowsOf, Session } from './steps.ts'

const BLOCK = 32

/** An instruction that writes the residual stream behind a layer. */
export interface Layer {
  readonly label: string
  readonly instruction: number
}

/** The embedding, then of each layer the last instruction that writes as wide a value for every token. */
export function layersOf({ instructions, registers, hidden }: ExecutionPlan): Layer[] {
  const found = new Map<string, number>()
  for (const [index, { op, label, outputs }] of instructions.entries()) {
    const { space, width } = registers[outputs[0]!]!
    const layer = op === 'embed' ? label : /^(.*?\.\d+)\./.exec(label)?.[1]
    if (layer !== undefined && space === 'tokens' && width === hidden) found.set(layer, index)
  }
  return [...found].map(([label, instruction]) => ({ label, instruction }))
}

/** What one sequence came to; positions count from 0, the generated ones included. */
export interface RanSequence {
  /** Prompt, then what was generated. */
  readonly tokens: number[]
  readonly prompt: number
  /** (vocab) of every position that was computed. */
  readonly logits: Float32Array[]
  /** By layer: (hidden) of every such position. */
  readonly streams: Float32Array[][]
}

export interface Run {
  readonly device: DeviceInfo
  readonly sequences: readonly RanSequence[]
  readonly layers: readonly Layer[]
  /** As they ran, so that a divergence can be looked for in them. */
  readonly steps: readonly BatchInput[]
  /** SHA-256 of all that its instructions wrote, but for sampling; of the logits where it shows none. */
  readonly digest: string
  /** SHA-256 of the logits. */
  readonly logitsDigest: string
  /** Whether instructions were seen; without, streams are empty. */
  readonly traced: boolean
}

/** A sequence under way. */
interface Going extends RanSequence {
  readonly slot: number
  readonly blocks: number[]
  computed: number
}

/** Sequences of one batch, started at position 0. */
function start(prompts: readonly (readonly number[])[], layers: number, generate: number): Going[] {
  let next = 1
  return prompts.map((ids, index) => {
    const count = Math.ceil((ids.length + generate) / BLOCK)
    return {
      tokens: [...ids],
      prompt: ids.length,
      logits: [],
      streams: Array.from({ length: layers }, () => []),
      slot: index + 1,
      blocks: Array.from({ length: count }, () => next++),
      computed: 0,
    }
  })
}

/** The next tokens of every sequence that has some to compute: at most `chunk` of a prompt, one of a continuation. */
function nextBatch(going: readonly Going[], chunk: number): { batch: BatchInput; advancing: readonly Going[] } {
  const advancing = going.filter(({ computed, tokens }) => computed < tokens.length)
  const sequences = advancing.map(
    ({ slot, blocks, computed, tokens }): SequenceInput => ({
      slot,
      blocks,
      position: computed,
      tokens: tokens.slice(computed, computed + chunk),
    }),
  )
  const resets = advancing.filter(({ computed }) => computed === 0).map(({ slot }) => slot)
  return { batch: { sequences, resets }, advancing }
}

function argmax(row: Float32Array): number {
  let best = 0
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i
  return best
}

/** Copies logits and streams of a step into its sequences, and appends the greedy tokens. */
function collect(
  plan: ExecutionPlan,
  layers: readonly Layer[],
  advancing: readonly Going[],
  ran: RanStep,
  generate: number,
): void {
  const { vocab, hidden } = plan
  let token = 0
  for (const [s, sequence] of advancing.entries()) {
    for (const _ of ran.batch.sequences[s]!.tokens) {
      sequence.logits.push(ran.result.logits.slice(token * vocab, (token + 1) * vocab))
      for (const [layer, { instruction }] of (ran.trace ? layers : []).entries()) {
        const { values } = ran.trace!.instructions[instruction]!.outputs[0]!
        sequence.streams[layer]!.push(Float32Array.from(values.subarray(token * hidden, (token + 1) * hidden)))
      }
      token++
      sequence.computed++
    }
    const { computed, tokens, prompt } = sequence
    if (computed === tokens.length && tokens.length < prompt + generate) tokens.push(argmax(sequence.logits.at(-1)!))
  }
}

/** Adds what the instructions of a step wrote, but for sampling, which leaves to chance what is not asked for. */
function digestTrace(plan: ExecutionPlan, hash: Hash, { trace }: RanStep): void {
  for (const [index, { outputs }] of (trace?.instructions ?? []).entries())
    if (plan.instructions[index]!.op !== 'sample') for (const { values } of outputs) hash.update(values)
}

/** Adds the logits of a step, all of whose tokens are rows. */
function digestLogits(plan: ExecutionPlan, hash: Hash, { result, batch }: RanStep): void {
  hash.update(result.logits.slice(0, rowsOf(batch) * plan.vocab))
}

/** Room for the largest step of the shape. */
function roomFor(shape: MatrixShape, prompts: readonly (readonly number[])[]): BatchInput[] {
  return groups(prompts, shape.batch).map((group) => ({
    sequences: start(group, 0, shape.generate).map(({ slot, blocks, tokens }) => ({
      slot,
      blocks,
      position: 0,
      tokens,
    })),
  }))
}

const groups = <T>(items: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size))

/** Runs `prompts` as `shape` says. Throws as Backend.open does, and DeviceError. */
export async function runShape(
  pkg: LinkedPackage,
  row: BackendRow,
  shape: MatrixShape,
  prompts: readonly (readonly number[])[],
): Promise<Run> {
  const { plan } = pkg
  using session = await Session.open(row, pkg, roomFor(shape, prompts))
  const traced = session.runner.trace !== undefined
  const layers = layersOf(plan)
  const [written, logits] = [createHash('sha256'), createHash('sha256')]
  const steps: BatchInput[] = []
  const sequences: RanSequence[] = []
  for (const group of groups(prompts, shape.batch)) {
    const going = start(group, layers.length, shape.generate)
    for (;;) {
      const { batch, advancing } = nextBatch(going, shape.chunk)
      if (advancing.length === 0) break
      const ran = await session.run(batch, traced)
      digestTrace(plan, written, ran)
      digestLogits(plan, logits, ran)
      collect(plan, layers, advancing, ran, shape.generate)
      steps.push(batch)
    }
    sequences.push(...going)
  }
  const logitsDigest = logits.digest('hex')
  const digest = traced ? written.digest('hex') : logitsDigest
  return { device: session.runner.info, sequences, layers, steps, digest, logitsDigest, traced }
}
