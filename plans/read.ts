/** Bytes to plan: verified natively first, then read in place and frozen. */
import { ByteBuffer } from 'flatbuffers'
import { dtypeOf } from '../abi/dtypes.ts'
import * as fb from '../abi/gen/plan_generated.ts'
import { layoutOf } from '../abi/layouts.ts'
import {
  type Space,
  type StateAccess,
  type StateKind,
  spaceNames,
  stateAccesses,
  stateKinds,
} from '../abi/ops/define.ts'
import { opDef, opName } from '../abi/ops/index.ts'
import { decodeParams } from '../abi/param-block.ts'
import { type Fork, forks, type StateDescriptor } from '../abi/state.ts'
import type { ExecutionPlan, Instruction, Memory, Operand, Register, StateUse, Tensor } from './plan.ts'
import { NONE } from './plan.ts'
import { verifyPlan } from './verify.ts'

/** Element of a table that the verifier has proved present. */
const list = <T>(length: number, at: (index: number) => T): readonly T[] =>
  Object.freeze(Array.from({ length }, (_, i) => at(i)))

function keyOf<K extends string>(table: Readonly<Record<K, number>>, id: number): K {
  return (Object.keys(table) as K[]).find((key) => table[key] === id)!
}

const spaceOf = (id: number): Space => spaceNames[id]!
const kindOf = (id: number): StateKind => keyOf(stateKinds, id)
const accessOf = (id: number): StateAccess => keyOf(stateAccesses, id)
const forkOf = (id: number): Fork => keyOf(forks, id)

const readRegister = (r: fb.Register): Register =>
  Object.freeze({
    name: r.name() ?? '',
    space: spaceOf(r.space()),
    dtype: dtypeOf(r.dtype())!,
    width: r.width(),
    stride: r.stride(),
    offset: Number(r.offset()),
    first: r.first(),
    last: r.last(),
  })

const readTensor = (t: fb.Tensor): Tensor =>
  Object.freeze({
    name: t.name() ?? '',
    dtype: dtypeOf(t.dtype())!,
    layout: layoutOf(t.layout())!,
    rows: t.rows(),
    cols: t.cols(),
    bytes: Number(t.bytes()),
  })

const readState = (s: fb.State, id: number): StateDescriptor =>
  Object.freeze({
    id,
    name: s.name() ?? '',
    kind: kindOf(s.kind()),
    dtype: dtypeOf(s.dtype())!,
    sizeBytes: Number(s.sizeBytes()),
    alignBytes: s.alignBytes(),
    zeroInit: s.zeroInit(),
    blockTokens: s.blockTokens(),
    lifecycle: s.lifecycle(),
    rewind: s.rewind(),
    fork: forkOf(s.fork()),
  })

function readOperand(o: fb.Operand): Operand | undefined {
  if (o.register() === NONE) return undefined
  return Object.freeze({ register: o.register(), column: o.column(), width: o.width() })
}

function readUse(use: fb.StateUse): StateUse | undefined {
  return use.state() === NONE ? undefined : Object.freeze({ state: use.state(), access: accessOf(use.access()) })
}

function readInstruction(i: fb.Instruction, params: Uint8Array): Instruction {
  const op = opName(i.opcode())!
  const definition = opDef(op)
  const slots = (names: Readonly<Record<string, unknown>>) => Object.keys(names).length
  const weight = (index: number) => {
    const id = index < i.weightsLength() ? i.weights(index)! : NONE
    return id === NONE ? undefined : id
  }
  const block = params.subarray(i.paramsOffset(), i.paramsOffset() + i.paramsSize())
  return Object.freeze({
    op,
    version: i.version(),
    inputs: list(slots(definition.inputs), (n) => (n < i.inputsLength() ? readOperand(i.inputs(n)!) : undefined)),
    outputs: list(i.outputsLength(), (n) => i.outputs(n)!),
    weights: list(slots(definition.weights), weight),
    states: list(slots(definition.states), (n) => (n < i.statesLength() ? readUse(i.states(n)!) : undefined)),
    params: Object.freeze(decodeParams(definition, block) as Record<string, number>),
    lastUse: i.lastUse(),
    label: i.label() ?? '',
  })
}

const readMemory = (m: fb.Memory): Memory =>
  Object.freeze({
    peak: list(m.peakLength(), (i) => Number(m.peak(i))),
    lowerBound: list(m.lowerBoundLength(), (i) => Number(m.lowerBound(i))),
  })

/** The plan in `buffer`, every value frozen. Only of bytes that the verifier has accepted is it a plan. */
export function decodePlan(buffer: ByteBuffer): ExecutionPlan {
  const plan = fb.Plan.getRootAsPlan(buffer)
  const params = plan.paramsArray() ?? new Uint8Array()
  const outputs = list(plan.outputsLength(), (i) => plan.outputs(i)!)
  return Object.freeze({
    format: plan.format(),
    minRuntime: plan.minRuntime(),
    model: plan.model() ?? '',
    vocab: plan.vocab(),
    hidden: plan.hidden(),
    maxContext: plan.maxContext(),
    registers: list(plan.registersLength(), (i) => readRegister(plan.registers(i)!)),
    tensors: list(plan.tensorsLength(), (i) => readTensor(plan.tensors(i)!)),
    states: list(plan.statesLength(), (i) => readState(plan.states(i)!, i)),
    instructions: list(plan.instructionsLength(), (i) => readInstruction(plan.instructions(i)!, params)),
    outputs: Object.freeze(Object.fromEntries(outputs.map((each) => [each.name()!, each.register()]))),
    memory: readMemory(plan.memory()!),
  })
}

/**
 * Verifies `bytes` and reads them without copying; every value is frozen. Operands, weights and states are by position
 * of the opcode's definition, absent ones undefined. Throws PLAN_INVALID or PLAN_NEWER; `path` is for the message.
 */
export function readPlan(bytes: Uint8Array, path: string): ExecutionPlan {
  verifyPlan(bytes, path)
  return decodePlan(new ByteBuffer(bytes))
}
