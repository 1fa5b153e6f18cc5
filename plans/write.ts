/**
 * Plan to bytes (abi/plan.fbs). The same plan gives the same bytes, so that a content hash means something: strings are
 * shared by value, tables are written in the order of the plan, and a ParamBlock carries the lowest version that
 * expresses it.
 */
import { Builder } from 'flatbuffers'
import { dtypes } from '../abi/dtypes.ts'
import * as fb from '../abi/gen/plan_generated.ts'
import { layouts } from '../abi/layouts.ts'
import { spaces, stateAccesses, stateKinds } from '../abi/ops/define.ts'
import { opDef } from '../abi/ops/index.ts'
import { encodeParams } from '../abi/param-block.ts'
import { forks, type StateDescriptor } from '../abi/state.ts'
import { fail } from '../errors.ts'
import {
  type ExecutionPlan,
  type Instruction,
  NONE,
  type Operand,
  outputNames,
  type Register,
  type Tensor,
} from './plan.ts'

/** Alignment of each ParamBlock inside the blob, and of the blob itself. */
const PARAMS_ALIGN = 8

/** `value` as an unsigned integer below 2^32 (or 2^53), because the builder would drop the bits above. */
function checked(value: number, where: string, limit = 2 ** 32): number {
  if (Number.isInteger(value) && value >= 0 && value < limit) return value
  const reason = `expected an integer from 0 to ${limit - 1}, got ${value}`
  throw fail('PLAN_INVALID', { path: 'plan to be written', rule: 'number-range', where, reason })
}

const u64 = (value: number, where: string) => BigInt(checked(value, where, 2 ** 53))

function writeRegister(b: Builder, r: Register): number {
  const where = `register ${r.name}`
  const name = b.createSharedString(r.name)
  const [width, stride] = [checked(r.width, where), checked(r.stride, where)]
  const [first, last] = [checked(r.first, where), checked(r.last, where)]
  const offset = u64(r.offset, where)
  return fb.Register.createRegister(b, name, spaces[r.space], dtypes[r.dtype].id, width, stride, offset, first, last)
}

function writeTensor(b: Builder, t: Tensor): number {
  const where = `tensor ${t.name}`
  const name = b.createSharedString(t.name)
  const [rows, cols] = [checked(t.rows, where), checked(t.cols, where)]
  return fb.Tensor.createTensor(b, name, dtypes[t.dtype].id, layouts[t.layout].id, rows, cols, u64(t.bytes, where))
}

function writeState(b: Builder, s: StateDescriptor): number {
  const where = `state ${s.name}`
  const name = b.createSharedString(s.name)
  return fb.State.createState(
    b,
    name,
    stateKinds[s.kind],
    dtypes[s.dtype].id,
    u64(s.sizeBytes, where),
    checked(s.alignBytes, where),
    s.zeroInit,
    checked(s.blockTokens, where),
    checked(s.lifecycle, where),
    checked(s.rewind, where),
    forks[s.fork],
  )
}

/** Values up to the last that is present. */
function present<T>(values: readonly (T | undefined)[]): readonly (T | undefined)[] {
  return values.slice(0, values.findLastIndex((value) => value !== undefined) + 1)
}

const absent: Operand = { register: NONE, column: 0, width: 0 }

/** A vector of structs, written back to front as every vector of a FlatBuffer is; none where there are no values. */
function structs<T>(b: Builder, bytes: number, values: readonly T[], write: (value: T) => void): number {
  if (!values.length) return 0
  b.startVector(bytes, values.length, 4)
  for (const value of values.toReversed()) write(value)
  return b.endVector()
}

function writeInstruction(b: Builder, i: Instruction, paramsOffset: number, paramsSize: number): number {
  const label = b.createSharedString(i.label)
  const word = (value: number) => checked(value, `instruction ${i.label}`)
  const inputs = structs(b, fb.Operand.sizeOf(), present(i.inputs), (operand) => {
    const { register, column, width } = operand ?? absent
    fb.Operand.createOperand(b, word(register), word(column), word(width))
  })
  const outputs = fb.Instruction.createOutputsVector(b, i.outputs.map(word))
  const weights = present(i.weights).map((weight) => word(weight ?? NONE))
  const weightsAt = weights.length ? fb.Instruction.createWeightsVector(b, weights) : 0
  const states = structs(b, fb.StateUse.sizeOf(), present(i.states), (use) =>
    fb.StateUse.createStateUse(b, word(use?.state ?? NONE), use ? stateAccesses[use.access] : 0),
  )
  const opcode = opDef(i.op).id
  return fb.Instruction.createInstruction(
    b,
    opcode,
    checked(i.version, `instruction ${i.label}`, 2 ** 16),
    inputs,
    outputs,
    weightsAt,
    states,
    paramsOffset,
    paramsSize,
    word(i.lastUse),
    label,
  )
}

/** All ParamBlocks in one blob, each at a multiple of 8, and where each lies. */
function encodeAll(instructions: readonly Instruction[]): { blob: Uint8Array; offsets: number[]; sizes: number[] } {
  const blocks = instructions.map(({ op, params }) => encodeParams(opDef(op), params))
  const offsets: number[] = []
  let end = 0
  for (const block of blocks) {
    offsets.push(end)
    end += Math.ceil(block.length / PARAMS_ALIGN) * PARAMS_ALIGN
  }
  const blob = new Uint8Array(end)
  for (const [i, block] of blocks.entries()) blob.set(block, offsets[i])
  return { blob, offsets, sizes: blocks.map((block) => block.length) }
}

function writeBlob(b: Builder, blob: Uint8Array): number {
  b.startVector(1, blob.length, PARAMS_ALIGN)
  for (const byte of blob.toReversed()) b.addInt8(byte)
  return b.endVector()
}

function writeMemory(b: Builder, { peak, lowerBound }: ExecutionPlan['memory']): number {
  const peaks = fb.Memory.createPeakVector(
    b,
    peak.map((bytes) => u64(bytes, 'memory')),
  )
  const bounds = fb.Memory.createLowerBoundVector(
    b,
    lowerBound.map((bytes) => u64(bytes, 'memory')),
  )
  fb.Memory.startMemory(b)
  fb.Memory.addPeak(b, peaks)
  fb.Memory.addLowerBound(b, bounds)
  return fb.Memory.endMemory(b)
}

function writeOutputs(b: Builder, outputs: ExecutionPlan['outputs']): number {
  const tables = outputNames
    .filter((name) => outputs[name] !== undefined)
    .map((name) => fb.Output.createOutput(b, b.createSharedString(name), checked(outputs[name]!, `output ${name}`)))
  return fb.Plan.createOutputsVector(b, tables)
}

/**
 * Bytes of `plan`, file identifier INGT. Throws PLAN_INVALID (rule number-range) where a number does not fit its field;
 * whether the plan is sound is for the verifier to say.
 */
export function writePlan(plan: ExecutionPlan): Uint8Array {
  const b = new Builder(1 << 16)
  const { blob, offsets, sizes } = encodeAll(plan.instructions)
  const header = ([name, value]: [string, number]) => checked(value, `plan ${name}`)
  const { format, minRuntime, vocab, hidden, maxContext } = plan
  Object.entries({ format, minRuntime, vocab, hidden, maxContext }).forEach(header)
  const registers = plan.registers.map((register) => writeRegister(b, register))
  const tensors = plan.tensors.map((tensor) => writeTensor(b, tensor))
  const states = plan.states.map((state) => writeState(b, state))
  const instructions = plan.instructions.map((each, i) => writeInstruction(b, each, offsets[i]!, sizes[i]!))
  const at = {
    registers: fb.Plan.createRegistersVector(b, registers),
    tensors: fb.Plan.createTensorsVector(b, tensors),
    states: fb.Plan.createStatesVector(b, states),
    instructions: fb.Plan.createInstructionsVector(b, instructions),
    outputs: writeOutputs(b, plan.outputs),
    memory: writeMemory(b, plan.memory),
    params: writeBlob(b, blob),
    model: b.createSharedString(plan.model),
  }
  fb.Plan.startPlan(b)
  fb.Plan.addFormat(b, format)
  fb.Plan.addMinRuntime(b, minRuntime)
  fb.Plan.addModel(b, at.model)
  fb.Plan.addVocab(b, vocab)
  fb.Plan.addHidden(b, hidden)
  fb.Plan.addMaxContext(b, maxContext)
  fb.Plan.addRegisters(b, at.registers)
  fb.Plan.addTensors(b, at.tensors)
  fb.Plan.addStates(b, at.states)
  fb.Plan.addInstructions(b, at.instructions)
  fb.Plan.addOutputs(b, at.outputs)
  fb.Plan.addMemory(b, at.memory)
  fb.Plan.addParams(b, at.params)
  fb.Plan.finishPlanBuffer(b, fb.Plan.endPlan(b))
  return b.asUint8Array().slice()
}
