/** Runs whole plans, one instruction after another, with the event loop served between them. */
import { setImmediate } from 'node:timers/promises'
import { ops } from '../../abi/ops/index.ts'
import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import { BLOCK_TOKENS } from '../../abi/state.ts'
import {
  type ResultView,
  ROW_RESULT_BYTES,
  resultHeader,
  rowResult,
  type StepView,
  sampleFlags,
  stepHeader,
} from '../../abi/step.ts'
import { fail } from '../../errors.ts'
import type { ExecutionPlan, Instruction, Operand, OutputName } from '../../plans/plan.ts'
import type { DeviceInfo, LinkedPackage, MemoryUse, Runner, RunnerOptions, Trace, TracedOutput } from '../device.ts'
import { StepOrder } from '../step-order.ts'
import { joinTrace, traceUnits } from '../trace.ts'
import { type Matrix, type ReferenceStep, row, type Weight } from './kernel.ts'
import { sampleOptions } from './sample.ts'
import { createState, prepareStates, type StateStore, savedSlots } from './states.ts'
import { checkStep, readStep } from './step.ts'
import { type NamedValues, runReference } from './table.ts'
import { loadWeights } from './weights.ts'

/** Live registers by index. */
type Registers = (Matrix | undefined)[]

const info: DeviceInfo = {
  backend: 'reference',
  description: 'TypeScript, float64',
  isa: 'float64',
  threads: 1,
  deterministic: true,
  onEventLoop: true,
}

function view(registers: Registers, { register, column, width }: Operand): Matrix {
  const whole = registers[register]!
  return { ...whole, offset: whole.offset + column, width }
}

/** Values by name of the definition; absent ones are left out. */
function named<V, T>(definition: object, values: readonly (V | undefined)[], of: (value: V) => T): Record<string, T> {
  const entries = Object.keys(definition).flatMap((name, i) =>
    values[i] === undefined ? [] : [[name, of(values[i]!)] as const],
  )
  return Object.fromEntries(entries)
}

/** Sees, and may change in place, what an instruction wrote before any other reads it. */
export type Observer = (index: number, outputs: readonly Matrix[]) => void

/** A runner whose instructions can be watched, and answered for, one by one. */
export class ReferenceRunner implements Runner {
  readonly info = info
  readonly depth: 1 | 2
  private readonly order = new StepOrder()
  private readonly path: string
  private readonly plan: ExecutionPlan
  private readonly options: RunnerOptions
  private weights: readonly Weight[]
  private states: readonly StateStore[]
  private disposed = false
  private arenaBytes = 0
  /** For tests: the instruction before which the next step fails. */
  private failing: number | undefined

  constructor({ path, plan }: LinkedPackage, options: RunnerOptions, weights: readonly Weight[]) {
    this.path = path
    this.plan = plan
    this.options = options
    this.depth = options.pipelined ? 2 : 1
    this.weights = weights
    this.states = plan.states.map(createState)
  }

  async trace(buffer: StepView, result: ResultView, observe?: Observer): Promise<Trace> {
    const outputs: TracedOutput[][] = []
    await this.step(buffer, result, (index, values) => {
      observe?.(index, values)
      const registers = this.plan.instructions[index]!.outputs
      outputs[index] = values.map(({ rows, width, data }, i) => ({
        register: registers[i]!,
        rows,
        width,
        values: data.slice(),
      }))
    })
    const units = traceUnits(this.plan, buffer, (state, unit) => this.readState(state, unit))
    return { instructions: joinTrace(outputs, units) }
  }

  async step(buffer: StepView, result: ResultView, observe?: Observer): Promise<void> {
    if (this.disposed) throw fail('MODEL_DISPOSED', { package: this.path })
    return this.order.run(buffer, result, (ids) => this.compute(buffer, ids, result, observe))
  }

  private async compute(buffer: StepView, ids: Int32Array, result: ResultView, observe?: Observer): Promise<void> {
    if (this.disposed) throw fail('DISPOSED', {})
    const started = performance.now()
    const step = readStep(buffer, ids)
    const { vocab, maxContext } = this.plan
    const { blocks, slots } = this.options
    checkStep(step, { vocab, maxContext, blocks, slots, blockTokens: this.blockTokens })
    using rollback = savedSlots(this.states, step)
    const failing = this.failing
    this.failing = undefined
    prepareStates(this.states, step)
    const registers: Registers = []
    for (const [index, instruction] of this.plan.instructions.entries()) {
      if (index === failing) throw injected(instruction.label)
      if (this.disposed) throw fail('DISPOSED', {})
      const outputs = this.run(instruction, registers, step)
      observe?.(index, outputs)
      this.release(registers, index)
      await setImmediate()
    }
    if (failing === this.plan.instructions.length) throw injected('the results')
    rollback.keep()
    writeRows(this.plan, registers, step, result)
    writeMatrices(this.plan, registers, step, result)
    const { rows, launches, slot_launches, microseconds } = resultHeader.word
    result.header[rows] = step.rows
    result.header[launches] = this.plan.instructions.length
    result.header[slot_launches] = 0
    result.header[microseconds] = (performance.now() - started) * 1000
  }

  readState(state: number, unit: number): Uint8Array {
    return this.stateOf(state, unit).read(unit)
  }

  writeState(state: number, unit: number, bytes: Uint8Array): void {
    const store = this.stateOf(state, unit)
    const expected = store.unit(unit).byteLength
    if (bytes.length !== expected) throw new RangeError(`bytes: expected ${expected}, got ${bytes.length}`)
    store.write(unit, bytes)
  }

  failAfter(instructions: number): void {
    this.failing = instructions
  }

  memory(): MemoryUse {
    const weightsBytes = this.weights.reduce((sum, weight) => sum + weight.data.byteLength, 0)
    const stateBytes = this.states.reduce((sum, state) => sum + state.bytes(), 0)
    return { weightsBytes, arenaBytes: this.arenaBytes, stateBytes, scratchBytes: 0 }
  }

  dispose(): void {
    this.disposed = true
    this.weights = []
    this.states = []
  }

  /** Throws RangeError where there is no such unit. */
  private stateOf(state: number, unit: number): StateStore {
    const store = this.states[state]
    const units = store?.descriptor.kind === 'fixed' ? this.options.slots : this.options.blocks
    if (!store || unit < 0 || unit >= units) throw new RangeError(`state ${state} has no unit ${unit}`)
    return store
  }

  private get blockTokens(): number {
    return this.plan.states.some(({ kind }) => kind !== 'fixed') ? BLOCK_TOKENS : 0
  }

  private run(instruction: Instruction, registers: Registers, step: ReferenceStep): Matrix[] {
    const definition = ops[instruction.op]
    const values: NamedValues = {
      params: instruction.params,
      inputs: named(definition.inputs, instruction.inputs, (operand) => view(registers, operand)),
      weights: named(definition.weights, instruction.weights, (tensor) => this.weights[tensor]!),
      states: named(definition.states, instruction.states, ({ state }) => this.states[state]!),
      step,
    }
    const outputs = runReference(instruction.op, values)
    return Object.keys(definition.outputs).map((name, i) => {
      registers[instruction.outputs[i]!] = outputs[name]
      return outputs[name]!
    })
  }

  /** Drops the registers that no later instruction reads, and keeps the most bytes that were live. */
  private release(registers: Registers, index: number): void {
    const live = registers.reduce((sum, register) => sum + (register?.data.byteLength ?? 0), 0)
    this.arenaBytes = Math.max(this.arenaBytes, live)
    for (const [i, { last }] of this.plan.registers.entries()) if (last <= index) registers[i] = undefined
  }
}

const injected = (where: string) => fail('STEP_FAILED', { where, reason: 'a failure injected for a test' })

/** An output of the plan, where it has it. */
function output(plan: ExecutionPlan, registers: Registers, name: OutputName): Matrix | undefined {
  const index = plan.outputs[name]
  return index === undefined ? undefined : registers[index]
}

/** Writes the RowResult of every row; token and alternatives are -1 where nothing is sampled. */
function writeRows(plan: ExecutionPlan, registers: Registers, step: ReferenceStep, result: ResultView): void {
  const names = ['tokens', 'logprobs', 'top_tokens'] as const
  const [tokens, logprobs, top] = names.map((name) => output(plan, registers, name))
  const { token, logprob } = rowResult.word
  const topIds = rowResult.bytes / 4
  for (let r = 0; r < step.rows; r++) {
    const at = (r * ROW_RESULT_BYTES) / 4
    result.rows.fill(0, at, at + ROW_RESULT_BYTES / 4).fill(-1, at + topIds, at + topIds + TOP_LOGPROBS)
    result.rows[at + token] = tokens ? row(tokens, r)[0]! : -1
    if (top) result.rows.set(row(top, r), at + topIds)
    if (!logprobs) continue
    result.rowsF32[at + logprob] = row(logprobs, r)[0]!
    result.rowsF32.set(row(logprobs, r).subarray(1), at + topIds + TOP_LOGPROBS)
  }
}

/** Copies out the logits and hidden states of the rows that want them; of every sequence where they are pooled. */
function writeMatrices(plan: ExecutionPlan, registers: Registers, step: ReferenceStep, result: ResultView): void {
  for (const name of ['logits', 'hidden'] as const) {
    const source = output(plan, registers, name)
    if (!source || step.header[stepHeader.word[`result_${name}`]] === 0) continue
    const pooled = plan.registers[plan.outputs[name]!]!.space === 'sequences'
    for (let r = 0; r < source.rows; r++)
      if (pooled || sampleOptions(step, r).flags & sampleFlags[name]) result[name].set(row(source, r), r * source.width)
  }
}

/** Unpacks the weights of a linked package and gives its plan a runner. */
export async function openReference(pkg: LinkedPackage, options: RunnerOptions): Promise<ReferenceRunner> {
  return new ReferenceRunner(pkg, options, await loadWeights(pkg))
}
