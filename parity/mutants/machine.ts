/** A runtime over watched memory: arenas, states and weights as a plan states them, and the reference kernels. */
import { byteSize, type DType, dtypes } from '../../abi/dtypes.ts'
import { elementIndex } from '../../abi/layouts.ts'
import { evaluate, type OperandDef, type Space, spaceNames } from '../../abi/ops/define.ts'
import { type OpName, opDef } from '../../abi/ops/index.ts'
import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import type { StateDescriptor } from '../../abi/state.ts'
import { copyPair, type StepLimits, sampleFlags, stepHeader } from '../../abi/step.ts'
import type { Matrix, ReferenceKernel, ReferenceStep, State, Weight } from '../../compute/reference/kernel.ts'
import { sampleOptions } from '../../compute/reference/sample.ts'
import { referenceTable } from '../../compute/reference.ts'
import type { ExecutionPlan, Instruction, OutputName, Register, StateUse } from '../../plans/plan.ts'
import { Breach, Cells, noise, words } from './memory.ts'

/** Of a matrix: elements from row to row, so far apart that no column reaches the next row. */
const PITCH = 2 ** 23
const WORD = 4

/** Units of one state by index: words by element. */
interface Units {
  readonly cells: Map<number, Cells>
  /** Units that hold what was computed before: no word of theirs is poison. */
  readonly adopted: Set<number>
}

type Snapshot = readonly Units[]

const copyUnits = ({ cells, adopted }: Units): Units => ({
  cells: new Map([...cells].map(([unit, words]) => [unit, words.copy()])),
  adopted: new Set(adopted),
})

export class Machine {
  readonly #plan: ExecutionPlan
  readonly #limits: StepLimits
  readonly #counts: { readonly blocks: number; readonly slots: number }
  readonly #arenas: Readonly<Record<Space, Cells>>
  readonly #weights = new Map<number, Weight>()
  #units: Units[]
  /** The step and the instruction that run. */
  #step!: ReferenceStep
  #now = 0

  /** Blocks and slots: units of every paged and every fixed state. */
  constructor(plan: ExecutionPlan, limits: StepLimits, counts: { blocks: number; slots: number }) {
    this.#plan = plan
    this.#limits = limits
    this.#counts = counts
    this.#arenas = { tokens: new Cells(), rows: new Cells(), sequences: new Cells() }
    this.#units = plan.states.map(() => ({ cells: new Map(), adopted: new Set() }))
  }

  adopt({ blocks, slots }: { blocks: readonly number[]; slots: readonly number[] }): void {
    for (const [i, { kind }] of this.#plan.states.entries())
      for (const unit of kind === 'fixed' ? slots : blocks) this.#units[i]!.adopted.add(unit)
  }

  snapshot(): Snapshot {
    return this.#units.map(copyUnits)
  }

  /** Takes back the states that `wanted` names. */
  restore(snapshot: Snapshot, wanted: (state: number) => boolean): void {
    this.#units = this.#units.map((units, i) => (wanted(i) ? copyUnits(snapshot[i]!) : units))
  }

  /** Runs a step; `stateless`: up to the first instruction with a state. Answers every value that it gave out. */
  run(step: ReferenceStep, extent: 'all' | 'stateless' = 'all'): number[] {
    const { instructions } = this.#plan
    this.#step = step
    for (const name of spaceNames) this.#arenas[name].clear()
    this.#prepareStates()
    for (const [index, instruction] of instructions.entries()) {
      if (extent === 'stateless' && instruction.states.some(Boolean)) return []
      this.#now = index
      this.#execute(instruction)
    }
    this.#now = instructions.length
    return extent === 'all' ? this.#results() : []
  }

  // --- instructions

  #execute(instruction: Instruction): void {
    const { registers } = this.#plan
    for (const r of registers) if (r.first === this.#now) this.#poison(r)
    const definition = opDef(instruction.op)
    const slots = <D, V, T>(defs: Readonly<Record<string, D>>, values: readonly (V | undefined)[], of: Bind<D, V, T>) =>
      Object.fromEntries(
        Object.entries(defs).flatMap(([name, def], i) =>
          values[i] === undefined ? [] : [[name, of(values[i]!, def, name)]],
        ),
      )
    const inputs = new Set(instruction.inputs.flatMap((operand) => (operand ? [operand.register] : [])))
    const call = {
      params: instruction.params,
      step: this.#step,
      inputs: slots(definition.inputs, instruction.inputs, ({ register, column, width }, def) =>
        this.#input(register, column, width, def),
      ),
      outputs: slots(definition.outputs, instruction.outputs, (register, def) => this.#output(register, def, inputs)),
      weights: slots(definition.weights, instruction.weights, (tensor, def, slot) => {
        this.#expectReadable(instruction, tensor, slot)
        return this.#weight(tensor, def.form)
      }),
      states: slots(definition.states, instruction.states, (use, _, slot) => this.#state(use, instruction, slot)),
    }
    const kernel = (referenceTable as unknown as Readonly<Record<OpName, ReferenceKernel>>)[instruction.op]
    kernel(call as unknown as Parameters<ReferenceKernel>[0])
    this.#release(instruction)
  }

  /** What the plan says is dead becomes poison. */
  #release({ inputs, lastUse }: Instruction): void {
    for (const r of this.#plan.registers) if (r.last === this.#now) this.#poison(r)
    for (const [i, operand] of inputs.entries())
      if (operand && lastUse & (1 << i)) this.#poison(this.#register(operand.register))
  }

  // --- registers

  #register(index: number): Register {
    const register = this.#plan.registers[index]
    if (!register) throw new Breach('index', `register ${index} of ${this.#plan.registers.length}`)
    return register
  }

  #rows(space: Space): number {
    return this.#step[space]
  }

  /** Word address of (row, column) in the arena of the register's space. */
  #address(r: Register, row: number, column: number): number {
    const capacity = this.#limits[r.space]
    const start = r.offset * capacity + row * r.stride
    if (start % 64) throw new Breach('alignment', `row ${row} of ${r.name} at byte ${start}`)
    const at = start + column * WORD
    const arena = this.#plan.memory.peak[spaceNames.indexOf(r.space)]! * capacity
    if (!(at >= 0 && at + WORD <= arena)) throw new Breach('range', `${r.name}: byte ${at} of an arena of ${arena}`)
    return at / WORD
  }

  #poison(r: Register): void {
    const from = (r.offset * this.#limits[r.space]) / WORD
    this.#arenas[r.space].poison(from, from + (this.#rows(r.space) * r.stride) / WORD)
  }

  /** Reads (row, column) of a register as `dtype`: only what its own definition has written. */
  #load(index: number, row: number, column: number, dtype: DType): number {
    const r = this.#register(index)
    const cell = this.#arenas[r.space].get(this.#address(r, row, column))
    const where = `${r.name}[${row}, ${column}]`
    if (!cell) throw new Breach('undefined', `${where} is read and holds poison`)
    if (cell.owner !== index || cell.row !== row)
      throw new Breach('overwritten', `${where} holds what register ${cell.owner} has written over it`)
    if (cell.writer === this.#now) throw new Breach('in-place', `${where} is read after it was written over`)
    if (cell.dtype !== dtype || r.dtype !== dtype)
      throw new Breach('type', `${where} holds ${cell.dtype}, declared as ${r.dtype}, read as ${dtype}`)
    return cell.value
  }

  #store(index: number, row: number, column: number, dtype: DType, value: number, inputs: ReadonlySet<number>): void {
    const r = this.#register(index)
    const [cells, address] = [this.#arenas[r.space], this.#address(r, row, column)]
    const before = cells.get(address)
    const where = `${r.name}[${row}, ${column}]`
    if (r.dtype !== dtype) throw new Breach('type', `${where} is declared as ${r.dtype}, written as ${dtype}`)
    if (before && before.writer !== this.#now && inputs.has(before.owner))
      throw new Breach('in-place', `${where} lies on input register ${before.owner}`)
    if (before && before.writer === this.#now && (before.owner !== index || before.row !== row))
      throw new Breach('overwritten', `${where} lies on register ${before.owner}, written by the same instruction`)
    cells.set(address, { value, owner: index, row, writer: this.#now, dtype })
  }

  /** A matrix whose every access goes to `at`, inside `rows` and `width`. */
  #matrix(rows: number, width: number, at: (row: number, column: number, value?: number) => number): Matrix {
    const locate = (index: number) => {
      const [row, column] = [Math.floor(index / PITCH), index % PITCH]
      if (row >= rows || column >= width)
        throw new Breach('range', `[${row}, ${column}] of an operand of ${rows} x ${width}`)
      return [row, column] as const
    }
    const access = {
      read: (index: number) => at(...locate(index)),
      write: (index: number, value: number) => void at(...locate(index), value),
    }
    return { data: words(access, rows * PITCH), offset: 0, stride: PITCH, rows, width }
  }

  #input(index: number, column: number, width: number, definition: OperandDef): Matrix {
    const r = this.#register(index)
    const dtype = definition.dtype ?? 'f32'
    if (column + width > r.width)
      throw new Breach('range', `columns to ${column + width} of ${r.name}, ${r.width} wide`)
    return this.#matrix(this.#rows(r.space), width, (row, c, value) => {
      if (value !== undefined) throw new Breach('access', `an input, ${r.name}, is written`)
      return this.#load(index, row, column + c, dtype)
    })
  }

  /** Reads as zero until the instruction itself writes. */
  #output(index: number, definition: OperandDef, inputs: ReadonlySet<number>): Matrix {
    const r = this.#register(index)
    const dtype = definition.dtype ?? 'f32'
    return this.#matrix(this.#rows(r.space), r.width, (row, column, value) => {
      if (value !== undefined) this.#store(index, row, column, dtype, value, inputs)
      const cell = this.#arenas[r.space].get(this.#address(r, row, column))
      return cell?.owner === index && cell.row === row && cell.writer === this.#now ? cell.value : 0
    })
  }

  // --- weights

  /** What a kernel makes numbers of: floats, scales and int8 sub-scales by themselves, integers and e4m3 with what scales them. */
  #expectReadable({ op, weights }: Instruction, index: number, slot: string): void {
    const tensor = this.#plan.tensors[index]
    const names = Object.keys(opDef(op).weights)
    const scales = slot.endsWith('scales')
    const sub = slot.endsWith('sub_scales')
    if (!tensor || opDef(op).weights[slot]!.form === 'row') return
    const { name, dtype } = tensor
    const scaledSlot = slot === 'scales' ? names[0]! : slot.replace(/_scales$/, '')
    const scaled8 = this.#plan.tensors[weights[names.indexOf(scaledSlot)] ?? -1]?.dtype === 'e4m3'
    const expected = sub ? 'i8' : scaled8 ? 'f32' : 'f16'
    if (scales && dtype !== expected) throw new Breach('type', `${name} is ${dtype} and scales a weight`)
    if (scales || (dtype !== 'i8' && dtype !== 'i4' && dtype !== 'e4m3')) return
    const scaled = (kind: string) =>
      [`${slot}_${kind}`, kind].some((other) => weights[names.indexOf(other)] !== undefined)
    if (!scaled('scales')) throw new Breach('type', `${name} is ${dtype} and nothing scales it`)
    if (scaled('sub_scales') !== (dtype === 'i4')) throw new Breach('type', `${name} is ${dtype}, its sub-scales not`)
  }

  /** Values by place; each read must lie in the stored bytes, in the layout that a kernel of this slot walks. */
  #weight(index: number, form: 'row' | 'tiled'): Weight {
    const tensor = this.#plan.tensors[index]
    if (!tensor) throw new Breach('index', `tensor ${index} of ${this.#plan.tensors.length}`)
    const { name, dtype, layout, rows, cols, bytes } = tensor
    if ((layout === 'row') !== (form === 'row'))
      throw new Breach('type', `${name} is stored as ${layout}, read ${form}`)
    const known = this.#weights.get(index)
    if (known) return known
    const stored = (bytes * 8) / dtypes[dtype].bits
    const value = dtype === 'i8' || dtype === 'i4' ? (n: number) => Math.round(n * 14) : (n: number) => n
    const read = (i: number) => {
      const at = elementIndex(layout, cols, Math.floor(i / cols), i % cols)
      if (at >= stored) throw new Breach('range', `${name}: element ${at} of ${stored} stored`)
      return value(noise(index, i))
    }
    const write = () => {
      throw new Breach('access', `weight ${name} is written`)
    }
    const weight = { data: words({ read, write }, rows * cols), rows, cols }
    this.#weights.set(index, weight)
    return weight
  }

  // --- states

  #descriptor(index: number): StateDescriptor {
    const state = this.#plan.states[index]
    if (!state) throw new Breach('index', `state ${index} of ${this.#plan.states.length}`)
    return state
  }

  #unit(index: number, unit: number): Cells {
    const { name, kind, sizeBytes, alignBytes } = this.#descriptor(index)
    const count = kind === 'fixed' ? this.#counts.slots : this.#counts.blocks
    if (!(unit >= 0 && unit < count)) throw new Breach('range', `unit ${unit} of ${count} of ${name}`)
    if ((unit * sizeBytes) % alignBytes) throw new Breach('alignment', `unit ${unit} of ${name}`)
    const { cells } = this.#units[index]!
    const known = cells.get(unit) ?? new Cells()
    cells.set(unit, known)
    return known
  }

  /** A state as one instruction uses it: int8 elements leave room for the scales behind them. */
  #state(use: StateUse, { op, params }: Instruction, slot: string): State {
    const descriptor = this.#descriptor(use.state)
    const { name, dtype, kind, sizeBytes, blockTokens } = descriptor
    const definition = opDef(op).states[slot]!
    if (dtype === 'i8' && !definition.scales) throw new Breach('type', `${name} is int8 and has no scales`)
    if ((kind === 'fixed') !== (definition.kind === 'fixed'))
      throw new Breach('type', `${name} is kept as ${kind}, used as ${definition.kind}`)
    const scales = dtype === 'i8' ? byteSize('f32', evaluate(definition.scales!, params)) * blockTokens : 0
    const elements = Math.floor(((sizeBytes - scales) * 8) / dtypes[dtype].bits)
    const unit = (index: number) => words(this.#stateAccess(use, index, elements), elements)
    return { blockTokens, unit }
  }

  #stateAccess(use: StateUse, unit: number, elements: number) {
    const { name } = this.#descriptor(use.state)
    const cells = this.#unit(use.state, unit)
    const adopted = this.#units[use.state]!.adopted.has(unit)
    const inside = (i: number) => {
      if (i >= elements) throw new Breach('range', `element ${i} of ${elements} of ${name}`)
    }
    return {
      read: (i: number) => {
        inside(i)
        if (use.access === 'write') throw new Breach('access', `${name} is read by an instruction that only writes it`)
        const cell = cells.get(i)
        if (!cell && !adopted) throw new Breach('undefined', `${name}: unit ${unit}, element ${i} holds poison`)
        // Whoever advances a state reads its own; whoever only reads it, what another wrote.
        if (cell && cell.owner >= 0 && cell.owner !== this.#now && use.access !== 'read')
          throw new Breach('overwritten', `${name} holds what instruction ${cell.owner} has written over it`)
        return cell?.value ?? noise(unit, i)
      },
      write: (i: number, value: number) => {
        inside(i)
        if (use.access === 'read') throw new Breach('access', `${name} is written by an instruction that only reads it`)
        cells.set(i, { value, owner: this.#now, row: 0, writer: this.#now, dtype: 'state' })
      },
    }
  }

  /** Copies on write, and the zeroing of what must read as zero; nothing else is ever cleared. */
  #prepareStates(): void {
    const { header, copyPairs, resetSlots } = this.#step
    for (const [index, { kind, zeroInit }] of this.#plan.states.entries()) {
      const units = this.#units[index]!
      if (kind === 'fixed')
        for (const slot of resetSlots.subarray(0, header[stepHeader.word.resets])) {
          units.cells.delete(slot)
          // Any values stand for the zeroes, as long as they are defined and always the same.
          if (zeroInit) units.adopted.add(slot)
        }
      else
        for (let i = 0; i < header[stepHeader.word.copies]!; i++) {
          const at = (i * copyPair.bytes) / WORD
          const source = this.#unit(index, copyPairs[at + copyPair.word.source]!)
          units.cells.set(copyPairs[at + copyPair.word.target]!, source.copy())
        }
    }
  }

  // --- results

  /** What leaves the step: a row of each output as wide as the result buffer is laid out for. */
  #results(): number[] {
    const { outputs, vocab, hidden } = this.#plan
    const given: number[] = []
    if (!Object.keys(outputs).length) throw new Breach('undefined', 'no output')
    const copy = (name: OutputName, dtype: DType, width: number, rows: (row: number) => number) => {
      if (outputs[name] === undefined) return
      const r = this.#register(outputs[name])
      if (r.width !== width) throw new Breach('range', `output ${name} is ${r.width} wide, its place ${width}`)
      const pooled = name === 'hidden' && r.space === 'sequences'
      if (r.space !== 'rows' && !pooled) throw new Breach('type', `output ${name} has a row for each of ${r.space}`)
      for (let row = 0; row < this.#rows(r.space); row++)
        for (let c = 0; c < (pooled ? width : rows(row)); c++) given.push(this.#load(outputs[name], row, c, dtype))
    }
    const option = (row: number) => sampleOptions(this.#step, row)
    const sampled = (row: number, count: number) => (option(row).flags & sampleFlags.sample ? count : 0)
    const reported = (row: number, count: number) => sampled(row, option(row).flags & sampleFlags.logprobs ? count : 0)
    const asked = (row: number) => Math.min(option(row).top_logprobs, vocab)
    for (const name of Object.keys(outputs))
      if (!widths[name as OutputName]) throw new Breach('index', `no output is called ${name}`)
    copy('tokens', 'i32', widths.tokens(this.#plan), (row) => sampled(row, 1))
    copy('logprobs', 'f32', widths.logprobs(this.#plan), (row) => reported(row, 1 + asked(row)))
    copy('top_tokens', 'i32', widths.top_tokens(this.#plan), (row) => reported(row, asked(row)))
    copy('logits', 'f32', vocab, () => vocab)
    copy('hidden', 'f32', hidden, () => hidden)
    return given
  }
}

type Bind<D, V, T> = (value: V, definition: D, slot: string) => T

/** Elements of a row of each output in the result buffer. */
const widths: Readonly<Record<OutputName, (plan: ExecutionPlan) => number>> = {
  tokens: () => 1,
  logprobs: () => 1 + TOP_LOGPROBS,
  top_tokens: () => TOP_LOGPROBS,
  logits: ({ vocab }) => vocab,
  hidden: ({ hidden }) => hidden,
}
