/** Runs steps that are written down (parity/batch.ts) on any backend, one after the other, with or without a trace. */
import { createResult, createStep, type ResultView, type StepLimits, type StepView } from '../abi/step.ts'
import { backendOf } from '../compute/backends.ts'
import type { Backend, DeviceInfo, LinkedPackage, Runner, RunnerOptions, Trace } from '../compute/device.ts'
import { fail } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { type BatchInput, packStep } from './batch.ts'

/** A backend to be judged, or to judge by. One more backend is one more row. */
export interface BackendRow {
  /** Unique: "reference", "cpu:avx2". */
  readonly name: string
  readonly backend: Backend
  /** Empty or absent: the best available. */
  readonly isa?: string
  readonly options?: Partial<Pick<RunnerOptions, 'threads' | 'pin' | 'allowPerSlot'>>
}

/** "cpu:avx2" is the backend cpu with an instruction set; "cpu" is it with `isa`, or its best. */
export function rowOf(name: string, isa?: string): { readonly backend: string; readonly isa?: string } {
  const [backend, own = isa] = name.split(':') as [string, string?]
  return { backend, ...(own && { isa: own }) }
}

/** The row of such a name. Throws BACKEND_UNKNOWN or BACKEND_UNAVAILABLE. */
export function backendRow(text: string, option?: string): BackendRow {
  const { backend, isa } = rowOf(text, option)
  return { name: isa ? `${backend}:${isa}` : backend, backend: backendOf(backend), ...(isa && { isa }) }
}

/** Two runs that must agree in every bit. The instruction sets of the CPU share one arithmetic (ADR 0003). */
export const sameArithmetic = (a: DeviceInfo, b: DeviceInfo): boolean =>
  a.backend === b.backend && a.deterministic && b.deterministic && (a.backend === 'cpu' || a.isa === b.isa)

const most = <T>(items: readonly T[], of: (item: T) => number) =>
  items.reduce((max, item) => Math.max(max, of(item)), 0)
const sum = <T>(items: readonly T[], of: (item: T) => number) => items.reduce((total, item) => total + of(item), 0)

/** Rows of a step. */
export const rowsOf = ({ sequences }: BatchInput): number =>
  sum(sequences, ({ tokens, rows }) => (rows ?? tokens).length)

/** What `steps` need at most. */
function limitsOf(steps: readonly BatchInput[]): StepLimits {
  const sampling = (step: BatchInput) => Array.from({ length: rowsOf(step) }, (_, row) => step.sampling?.(row) ?? {})
  return {
    tokens: most(steps, ({ sequences }) => sum(sequences, ({ tokens }) => tokens.length)),
    rows: Math.max(1, most(steps, rowsOf)),
    sequences: most(steps, ({ sequences }) => sequences.length),
    blocksPerSequence: Math.max(
      1,
      most(steps, ({ sequences }) => most(sequences, ({ blocks }) => blocks.length)),
    ),
    history: most(steps, (step) => sum(sampling(step), ({ history }) => history?.length ?? 0)),
    biases: most(steps, (step) => sum(sampling(step), ({ bias }) => bias?.length ?? 0)),
    copies: most(steps, ({ copies }) => copies?.length ?? 0),
  }
}

/** Blocks and slots, dump included, that `steps` name. */
function unitsOf(steps: readonly BatchInput[]): { blocks: number; slots: number } {
  const sequences = steps.flatMap((step) => step.sequences)
  return {
    blocks: 1 + most(sequences, ({ blocks }) => most(blocks, (b) => b)),
    slots: 1 + most(sequences, ({ slot }) => slot),
  }
}

/** A step that ran; the views are those of the next step once it starts. */
export interface RanStep {
  readonly batch: BatchInput
  readonly step: StepView
  readonly result: ResultView
  readonly trace: Trace | undefined
}

/** A runner with room for some steps. */
export class Session {
  readonly runner: Runner
  readonly #plan: ExecutionPlan
  readonly #step: StepView
  readonly #result: ResultView
  readonly #offsets: { readonly logits: number; readonly hidden: number }

  private constructor(runner: Runner, plan: ExecutionPlan, limits: StepLimits) {
    this.runner = runner
    this.#plan = plan
    this.#step = createStep(limits)
    const widths = {
      vocab: plan.outputs.logits === undefined ? 0 : plan.vocab,
      hidden: plan.outputs.hidden === undefined ? 0 : plan.hidden,
    }
    const { view, offsets } = createResult(limits.rows, widths)
    this.#result = view
    this.#offsets = offsets
  }

  /** Opens `pkg` with room for `steps`. Throws as Backend.open does. */
  static async open(row: BackendRow, pkg: LinkedPackage, steps: readonly BatchInput[]): Promise<Session> {
    const limits = limitsOf(steps)
    const options = { limits, ...unitsOf(steps), threads: 0, isa: row.isa ?? '', ...row.options }
    return new Session(await row.backend.open(pkg, options), pkg.plan, limits)
  }

  /** Runs one step. Throws DeviceError, and TRACE_MISSING. */
  async run(batch: BatchInput, traced = false): Promise<RanStep> {
    const [step, result] = [packStep(this.#step, batch, this.#offsets), this.#result]
    if (!traced) await this.runner.step(step, result)
    else if (!this.runner.trace) throw fail('TRACE_MISSING', { backend: this.runner.info.backend })
    return { batch, step, result, trace: traced ? await this.runner.trace!(step, result) : undefined }
  }

  /** Packs without running: for who runs it on a runner of its own. */
  pack(batch: BatchInput): { step: StepView; result: ResultView } {
    return { step: packStep(this.#step, batch, this.#offsets), result: this.#result }
  }

  [Symbol.dispose](): void {
    this.runner.dispose()
  }
}
