/** Mutants of plan bytes: what no plan that is written could hold. Each answers undefined where the plan has no place for it. */
import { Builder, ByteBuffer } from 'flatbuffers'
import * as fb from '../../abi/gen/plan_generated.ts'
import { random } from '../random.ts'

/** Choices out of a seed. */
export class Dice {
  readonly #next: () => number
  constructor(seed: number) {
    this.#next = random(seed)
  }
  /** 0 to below n. */
  below(n: number): number {
    return Math.floor(this.#next() * n)
  }
  /** from to to, both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1)
  }
  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!
  }
}

type Table = { readonly bb: ByteBuffer | null; readonly bb_pos: number }
const root = (bytes: Uint8Array) => fb.Plan.getRootAsPlan(new ByteBuffer(bytes))
const view = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)

/** Byte of the field at vtable offset `slot`; 0: absent. */
function field({ bb, bb_pos }: Table, slot: number): number {
  const offset = bb!.__offset(bb_pos, slot)
  return offset ? bb_pos + offset : 0
}

/** A random table of the plan, with how many fields its schema has. */
function anyTable(plan: fb.Plan, dice: Dice): readonly [table: Table, fields: number] {
  const one = (length: number, at: (i: number) => Table | null, fields: number) =>
    length ? ([at(dice.below(length))!, fields] as const) : ([plan, 13] as const)
  return dice.pick([
    () => [plan, 13] as const,
    () => [plan.memory()!, 2] as const,
    () => one(plan.registersLength(), (i) => plan.registers(i), 8),
    () => one(plan.tensorsLength(), (i) => plan.tensors(i), 6),
    () => one(plan.statesLength(), (i) => plan.states(i), 10),
    () => one(plan.instructionsLength(), (i) => plan.instructions(i), 10),
    () => one(plan.outputsLength(), (i) => plan.outputs(i), 2),
  ])()
}

/** The same bytes with a vtable behind them that gives a table one field more than its schema. */
function withUnknownField(bytes: Uint8Array, dice: Dice): Uint8Array {
  const [{ bb_pos }, fields] = anyTable(root(bytes), dice)
  const old = view(bytes)
  const vtable = bb_pos - old.getInt32(bb_pos, true)
  const known = old.getUint16(vtable, true)
  const end = Math.ceil(bytes.length / 4) * 4
  const size = 4 + 2 * (fields + 1)
  const grown = new Uint8Array(end + Math.ceil(size / 4) * 4)
  grown.set(bytes)
  grown.set(bytes.subarray(vtable, vtable + known), end)
  const to = view(grown)
  to.setUint16(end, size, true)
  to.setUint16(end + size - 2, 4, true)
  to.setInt32(bb_pos, bb_pos - end, true)
  return grown
}

/** Positions of the characters of every string. */
function strings(plan: fb.Plan): (readonly [at: number, length: number])[] {
  const tables: [Table, number][] = [[plan, 8]]
  for (let i = 0; i < plan.registersLength(); i++) tables.push([plan.registers(i)!, 4])
  for (let i = 0; i < plan.tensorsLength(); i++) tables.push([plan.tensors(i)!, 4])
  for (let i = 0; i < plan.statesLength(); i++) tables.push([plan.states(i)!, 4])
  for (let i = 0; i < plan.instructionsLength(); i++) tables.push([plan.instructions(i)!, 22])
  return tables.flatMap(([table, slot]) => {
    const at = field(table, slot)
    return at ? [[table.bb!.__vector(at), table.bb!.__vector_len(at)] as const] : []
  })
}

/** Bytes that no text holds: control characters, and what is not UTF-8. */
const notText = [0x00, 0x01, 0x07, 0x08, 0x1b, 0x1f, 0x7f, 0x80, 0xbf, 0xc0, 0xc1, 0xf5, 0xfe, 0xff] as const

function withoutText(bytes: Uint8Array, dice: Dice): Uint8Array | undefined {
  const places = strings(root(bytes)).filter(([, length]) => length > 0)
  if (!places.length) return undefined
  const [at, length] = dice.pick(places)
  return bytes.with(at + dice.below(length), dice.pick(notText))
}

/** Vectors of the root and of its first instruction, by vtable offset. */
const vectors = [16, 18, 20, 22, 24, 28] as const

/** Something that points outside, is misaligned, or is cut off. */
function withBrokenStructure(bytes: Uint8Array, dice: Dice): Uint8Array | undefined {
  const plan = root(bytes)
  const put = (at: number, value: number) => {
    if (!at) return undefined
    const changed = bytes.slice()
    view(changed).setUint32(at, value, true)
    return changed
  }
  const outside = () => dice.between(bytes.length, 0xffffffff)
  return dice.pick([
    () => bytes.slice(0, dice.below(bytes.length)),
    () => put(0, outside()) as Uint8Array | undefined,
    () => put(0, view(bytes).getUint32(0, true) ^ dice.between(1, 3)),
    () => put(field(plan, dice.pick(vectors)), outside()),
    () =>
      put(field(plan.instructions(dice.below(plan.instructionsLength()))!, dice.pick([8, 10, 12, 14, 22])), outside()),
    () => {
      const at = field(plan, dice.pick(vectors))
      return at ? put(plan.bb!.__vector(at) - 4, outside()) : undefined
    },
    () => put(dice.pick([plan, plan.memory()!, plan.registers(0)!]).bb_pos, outside()),
  ])()
}

/** A field of a table, overwritten. */
function poked(bytes: Uint8Array, table: (plan: fb.Plan) => Table, slot: number, bits: 8 | 16 | 32, value: number) {
  const at = field(table(root(bytes)), slot)
  if (!at) return undefined
  const changed = bytes.slice()
  if (bits === 8) view(changed).setUint8(at, value)
  else if (bits === 16) view(changed).setUint16(at, value, true)
  else view(changed).setUint32(at, value, true)
  return changed
}

const instructionOf = (dice: Dice) => (plan: fb.Plan) => plan.instructions(dice.below(plan.instructionsLength()))!

/** A word of a random ParamBlock, overwritten: 0 its size, 4 its version. */
function pokedBlock(bytes: Uint8Array, dice: Dice, word: number, value: (old: number) => number) {
  const plan = root(bytes)
  const block = instructionOf(dice)(plan).paramsOffset()
  const start = plan.bb!.__vector(field(plan, 28)) + block + word
  const changed = bytes.slice()
  view(changed).setUint32(start, value(view(bytes).getUint32(start, true)), true)
  return changed
}

/** A plan of nothing, as the smallest file that has the root's vtable. */
function empty(format: number): Uint8Array {
  const b = new Builder()
  fb.Plan.startPlan(b)
  fb.Plan.addFormat(b, format)
  fb.Plan.addMinRuntime(b, 1)
  fb.Plan.finishPlanBuffer(b, fb.Plan.endPlan(b))
  return b.asUint8Array().slice()
}

export type ByteMutator = (bytes: Uint8Array, dice: Dice) => Uint8Array | undefined

/** By rule of native/core/verify.cc. */
export const byteMutators: Readonly<Record<string, readonly ByteMutator[]>> = {
  identifier: [(bytes, dice) => bytes.with(4 + dice.below(4), dice.between(1, 31))],
  structure: [withBrokenStructure, withBrokenStructure, withBrokenStructure, () => empty(1)],
  'unknown-field': [withUnknownField],
  string: [withoutText],
  'register-type': [
    (bytes, dice) => poked(bytes, (plan) => plan.registers(plan.registersLength() - 1)!, 6, 8, dice.between(3, 255)),
    (bytes, dice) => poked(bytes, (plan) => plan.registers(0)!, 8, 8, dice.pick([0, 2, 3, 4, 6, 7, 255])),
  ],
  'register-extent': [(bytes, dice) => poked(bytes, (plan) => plan.registers(0)!, 12, 32, dice.between(1, 63))],
  'tensor-type': [
    (bytes, dice) => poked(bytes, (plan) => plan.tensors(0)!, 6, 8, dice.between(7, 255)),
    (bytes, dice) => poked(bytes, (plan) => plan.tensors(0)!, 8, 8, dice.between(5, 255)),
  ],
  'state-type': [
    (bytes, dice) =>
      root(bytes).statesLength() ? poked(bytes, (p) => p.states(0)!, 6, 8, dice.between(4, 255)) : undefined,
  ],
  'opcode-unknown': [
    (bytes, dice) => poked(bytes, instructionOf(dice), 4, 16, dice.between(19, 0xffff)),
    (bytes, dice) => poked(bytes, instructionOf(dice), 4, 16, 0),
  ],
  'params-range': [
    (bytes, dice) => poked(bytes, instructionOf(dice), 16, 32, 8 * dice.below(2000) + dice.between(1, 7)),
    (bytes, dice) => poked(bytes, instructionOf(dice), 16, 32, 0xfffffff8 - 8 * dice.below(100)),
    (bytes, dice) => poked(bytes, instructionOf(dice), 18, 32, dice.below(8)),
    (bytes, dice) => poked(bytes, instructionOf(dice), 18, 32, dice.between(2 ** 20, 0xffffffff)),
  ],
  'params-version': [
    (bytes, dice) => pokedBlock(bytes, dice, 4, (old) => old + dice.between(2, 0xfff0) * 0x10000),
    (bytes, dice) => pokedBlock(bytes, dice, 4, (old) => (old & 0xffff0000) + dice.pick([0, 2, 3, 255, 0xffff])),
  ],
  'params-size': [
    (bytes, dice) => pokedBlock(bytes, dice, 0, (old) => old + 4 * dice.between(1, 9)),
    (bytes, dice) => pokedBlock(bytes, dice, 0, (old) => old - dice.between(1, old)),
  ],
}
