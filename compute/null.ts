/**
 * The null backend: it accepts every plan, computes nothing and answers tokens that depend on seed, position and last
 * token only. It measures what the host costs, and drives the engine in tests.
 */
import { setImmediate } from 'node:timers/promises'
import { dtypeNames } from '../abi/dtypes.ts'
import { opDef, opNames } from '../abi/ops/index.ts'
import {
  type ResultView,
  ROW_RESULT_BYTES,
  resultHeader,
  rowResult,
  type StepView,
  sampleFlags,
  sampleParams,
  stepHeader,
} from '../abi/step.ts'
import { fail } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { Backend, DeviceInfo, Runner } from './device.ts'
import { link } from './link.ts'
import { StepOrder } from './step-order.ts'
import type { Kernel, KernelTable } from './table.ts'

/** Every opcode, at its newest version, on every dtype. */
export const nullTable = Object.fromEntries(
  opNames.map((name): [string, Kernel] => [
    name,
    { symbol: 'null', version: opDef(name).version, weights: dtypeNames, states: dtypeNames },
  ]),
) as KernelTable

const info: DeviceInfo = {
  backend: 'null',
  description: 'computes nothing',
  isa: 'none',
  threads: 0,
  deterministic: true,
}
const head = stepHeader.word
const param = sampleParams.word
const PARAM_WORDS = sampleParams.bytes / 4
const ROW_WORDS = ROW_RESULT_BYTES / 4
const TOP = rowResult.bytes / 4

/** Mixes 32-bit words (MurmurHash3's finaliser, Appleby, 2011). */
function hash(...words: readonly number[]): number {
  let h = 0
  for (const word of words) {
    h = Math.imul(h ^ word, 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
    h ^= h >>> 16
  }
  return h >>> 0
}

class NullRunner implements Runner {
  readonly info = info
  readonly depth: 1 | 2
  private readonly order = new StepOrder()
  private readonly path: string
  private readonly plan: ExecutionPlan
  private disposed = false

  constructor(path: string, plan: ExecutionPlan, pipelined: boolean) {
    this.depth = pipelined ? 2 : 1
    this.path = path
    this.plan = plan
  }

  async step(step: StepView, result: ResultView): Promise<void> {
    if (this.disposed) throw fail('MODEL_DISPOSED', { package: this.path })
    return this.order.run(step, result, (ids) => this.run(step, result, ids))
  }

  private async run(step: StepView, result: ResultView, ids: Int32Array): Promise<void> {
    // A turn of the event loop, as a real device takes: an engine that loops on steps must not starve the timers.
    await setImmediate()
    const rows = step.header[head.rows]!
    for (let row = 0; row < rows; row++) this.writeRow(step, result, row, ids)
    const { rows: count, launches, slot_launches, microseconds } = resultHeader.word
    result.header[count] = rows
    result.header[launches] = this.plan.instructions.length
    result.header[slot_launches] = 0
    result.header[microseconds] = 0
  }

  private writeRow(step: StepView, result: ResultView, row: number, ids: Int32Array): void {
    const at = row * ROW_WORDS
    const sampling = row * PARAM_WORDS
    const flags = step.sampling[sampling + param.flags]!
    const token = this.token(step, row, sampling, ids)
    result.rows.fill(0, at, at + ROW_WORDS)
    result.rows.fill(-1, at + TOP, at + TOP + (ROW_WORDS - TOP) / 2)
    result.rows[at + rowResult.word.token] = flags & sampleFlags.sample ? token : -1
    const { vocab, hidden } = this.plan
    if (flags & sampleFlags.logits && step.header[head.result_logits]) {
      result.logits.fill(0, row * vocab, (row + 1) * vocab)
      result.logits[row * vocab + token] = 1
    }
    if (flags & sampleFlags.hidden && step.header[head.result_hidden])
      result.hidden.fill(0, row * hidden, (row + 1) * hidden)
  }

  private token(step: StepView, row: number, sampling: number, ids: Int32Array): number {
    const last = step.rowToken[row]!
    const words = step.sampling
    const seed = hash(words[sampling + param.seed_low]!, words[sampling + param.seed_high]!)
    return hash(seed, step.positions[last]!, ids[last]!) % this.plan.vocab
  }

  memory() {
    return { weightsBytes: 0, arenaBytes: 0, stateBytes: 0, scratchBytes: 0 }
  }

  dispose(): void {
    this.disposed = true
  }
}

export const nullBackend: Backend = {
  name: 'null',
  table: nullTable,
  unavailable: () => undefined,
  async open(pkg, { pipelined = false }) {
    link('null', nullTable, pkg)
    return new NullRunner(pkg.path, pkg.plan, pipelined)
  },
}
