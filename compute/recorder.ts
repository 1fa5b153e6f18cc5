/** Records the steps of a running engine (compute/record.ts): a runner around a runner, which sees step buffers only. */
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { copyPair, type ResultView, type StepView, stepHeader } from '../abi/step.ts'
import { fail, IngotError } from '../errors.ts'
import { digestOf } from '../plans/hash.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { Runner, StateUnit } from './device.ts'
import { captureStep, digestRow, RECORD_FORMAT, RECORD_VERSION, recordText, type StepRecord } from './record.ts'
import { reachedUnits } from './trace.ts'

export interface RecordOptions {
  /** Made where it does not exist; records are step-<index>.json. */
  readonly directory: string
  /** The newest records that are kept; older ones of this run are removed. */
  readonly keep: number
}

/** What a record says of the package. */
export interface RecordedPackage {
  readonly plan: ExecutionPlan
  readonly planHash: string
  readonly weightsHash: string
}

const UNKNOWN = -1

/**
 * The token ids that made each unit of state: by block where a state is paged, by slot otherwise. What a step computes
 * overwrites what it had guessed before.
 */
class History {
  readonly #plan: ExecutionPlan
  /** Positions of a block; 0: no state is paged. */
  readonly blockTokens: number
  readonly #blocks = new Map<number, Int32Array>()
  readonly #slots = new Map<number, number[]>()

  constructor(plan: ExecutionPlan) {
    this.#plan = plan
    this.blockTokens = plan.states.find(({ kind }) => kind !== 'fixed')?.blockTokens ?? 0
  }

  /** Ids before the first token of sequence `s`; the step's copies are not made yet. */
  before(step: StepView, s: number): number[] {
    const position = step.positions[step.sequenceStart[s]!]!
    if (this.#plan.states.length === 0) return []
    if (!this.blockTokens) return (this.#slots.get(step.sequenceSlot[s]!) ?? []).slice(0, position)
    const copied = new Map(copiesOf(step).map(([source, target]) => [target, source]))
    return Array.from({ length: position }, (_, p) => {
      const block = this.#blockAt(step, s, p)
      return this.#blocks.get(copied.get(block) ?? block)?.[p % this.blockTokens] ?? UNKNOWN
    })
  }

  /** Blocks that start with this step: nothing in them is of a known token. */
  started(step: StepView): number[] {
    if (!this.blockTokens) return []
    return positionsOf(step).flatMap(([s, p]) => (p % this.blockTokens ? [] : [this.#blockAt(step, s, p)]))
  }

  /** Notes what the step computes, and returns the blocks that held later positions of it already: guesses. */
  advance(step: StepView): ReadonlySet<number> {
    for (const [source, target] of copiesOf(step)) this.#blocks.set(target, this.#block(source).slice())
    for (const block of this.started(step)) this.#block(block).fill(UNKNOWN)
    for (const [s, p, id] of positionsOf(step)) {
      if (this.blockTokens) this.#block(this.#blockAt(step, s, p))[p % this.blockTokens] = id
      const known = this.#slots.get(step.sequenceSlot[s]!) ?? []
      if (!this.blockTokens) this.#slots.set(step.sequenceSlot[s]!, [...known.slice(0, p), id])
    }
    return new Set(positionsOf(step).flatMap(([s, p]) => this.#beyond(step, s, p)))
  }

  #beyond(step: StepView, s: number, p: number): number[] {
    const last = p + 1 === step.sequenceLength[s]!
    if (!this.blockTokens || !last) return []
    const block = this.#blockAt(step, s, p)
    return this.#block(block)
      .subarray((p % this.blockTokens) + 1)
      .some((id) => id !== UNKNOWN)
      ? [block]
      : []
  }

  #block(index: number): Int32Array {
    const known = this.#blocks.get(index) ?? new Int32Array(this.blockTokens).fill(UNKNOWN)
    this.#blocks.set(index, known)
    return known
  }

  #blockAt(step: StepView, s: number, p: number): number {
    const width = step.header[stepHeader.word.blocks_per_sequence]!
    return step.blockTable[s * width + Math.floor(p / this.blockTokens)]!
  }
}

/** Sequence, position and id of every token. */
const positionsOf = (step: StepView): (readonly [number, number, number])[] =>
  Array.from({ length: step.header[stepHeader.word.tokens]! }, (_, t) => [
    step.tokenSequence[t]!,
    step.positions[t]!,
    step.tokenIds[t]!,
  ])

const copiesOf = (step: StepView): (readonly [number, number])[] =>
  Array.from({ length: step.header[stepHeader.word.copies]! }, (_, i) => {
    const at = (i * copyPair.bytes) / 4
    return [step.copyPairs[at + copyPair.word.source]!, step.copyPairs[at + copyPair.word.target]!]
  })

const nameOf = (index: number) => `step-${String(index).padStart(8, '0')}.json`

class Recorder {
  readonly #runner: Runner
  readonly #pkg: RecordedPackage
  readonly #options: RecordOptions
  readonly #history: History
  #index = 0

  constructor(runner: Runner, pkg: RecordedPackage, options: RecordOptions) {
    this.#runner = runner
    this.#pkg = pkg
    this.#options = options
    this.#history = new History(pkg.plan)
  }

  async step(step: StepView, result: ResultView): Promise<void> {
    const { order, ...inputs } = captureStep(step, this.#history.blockTokens, (s) => this.#history.before(step, s))
    this.#clear(this.#history.started(step))
    let failure: unknown
    await this.#runner.step(step, result).catch((error: unknown) => {
      failure = error
    })
    const guessed = this.#history.advance(step)
    const outcome = failure
      ? { error: failure instanceof IngotError ? failure.code : String(failure).slice(0, 1000) }
      : { result: this.#outcome(step, result, order, guessed) }
    await this.#write({ ...this.#heading(), ...inputs, ...outcome })
    if (failure) throw failure
  }

  /** What is left in a block of an earlier sequence would make digests differ: nobody reads it. */
  #clear(blocks: readonly number[]): void {
    const { readState, writeState } = this.#runner
    if (!readState || !writeState) return
    for (const [state, { kind }] of this.#pkg.plan.states.entries())
      for (const block of kind === 'fixed' ? [] : blocks) {
        const zero = readState.call(this.#runner, state, block).fill(0)
        writeState.call(this.#runner, state, block, zero)
      }
  }

  #outcome(step: StepView, result: ResultView, order: readonly number[], guessed: ReadonlySet<number>) {
    const { plan } = this.#pkg
    const rows = order.map((row) => digestRow(plan, step, result, row))
    return { rows, units: this.#runner.readState ? unitsOf(this.#runner, plan, step, guessed) : [] }
  }

  #heading() {
    const { plan, planHash, weightsHash } = this.#pkg
    const { backend, isa, description } = this.#runner.info
    return {
      format: RECORD_FORMAT as typeof RECORD_FORMAT,
      version: RECORD_VERSION as typeof RECORD_VERSION,
      plan: planHash,
      weights: weightsHash,
      model: plan.model,
      backend,
      isa,
      description,
      created: new Date().toISOString(),
      index: this.#index,
    }
  }

  async #write(record: StepRecord): Promise<void> {
    const { directory, keep } = this.#options
    const index = this.#index++
    const path = join(directory, nameOf(index))
    try {
      await writeFile(path, recordText(record))
      if (index >= keep) await rm(join(directory, nameOf(index - keep)), { force: true })
    } catch (cause) {
      throw fail('OUTPUT_UNWRITABLE', { path, reason: (cause as Error).message }, cause)
    }
  }
}

/** Digests of the units that a step reaches, but for blocks that hold guesses behind their positions. */
export function unitsOf(
  runner: Runner,
  plan: ExecutionPlan,
  step: StepView,
  guessed: ReadonlySet<number> = new Set(),
): StateUnit[] {
  return plan.states.flatMap(({ kind }, state) =>
    reachedUnits(plan, step, state)
      .filter((unit) => kind === 'fixed' || !guessed.has(unit))
      .map((unit) => ({ state, unit, sha256: digestOf(runner.readState!(state, unit)) })),
  )
}

/** `runner`, with every step recorded. Throws OUTPUT_UNWRITABLE where the directory cannot be made. */
export async function recordSteps(runner: Runner, pkg: RecordedPackage, options: RecordOptions): Promise<Runner> {
  try {
    await mkdir(options.directory, { recursive: true })
  } catch (cause) {
    throw fail('OUTPUT_UNWRITABLE', { path: options.directory, reason: (cause as Error).message }, cause)
  }
  const recorder = new Recorder(runner, pkg, options)
  const step: Runner['step'] = (view, result) => recorder.step(view, result)
  return new Proxy(runner, {
    get(target, name) {
      if (name === 'step') return step
      // What a step took and left is read between it and the next.
      if (name === 'depth') return 1
      const value: unknown = Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}
