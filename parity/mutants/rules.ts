/**
 * Mutants of plans, by the verifier's rule that they break. An edit makes the rest of the plan agree with it where that
 * can be (liveness derived again, registers placed again, totals counted again), so that the one rule stands alone
 * between the mutant and a run: the defect that a wrong compiler would make, not only one of a damaged file.
 */
import { byteSize, dtypes } from '../../abi/dtypes.ts'
import { evaluate, spaceNames } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { REWIND_ANY } from '../../abi/state.ts'
import { place } from '../../models/compile/place.ts'
import { deriveLiveness, lowerBound } from '../../plans/liveness.ts'
import type { ExecutionPlan, Instruction, OutputName, Register } from '../../plans/plan.ts'
import { writePlan } from '../../plans/write.ts'
import { byteMutators, type Dice } from './bytes.ts'

type Mutable<T> = T extends readonly (infer E)[]
  ? Mutable<E>[]
  : T extends object
    ? { -readonly [K in keyof T]: Mutable<T[K]> }
    : T
/** A plan that an edit may change. */
export type Plan = Mutable<ExecutionPlan>

/** Bytes of the mutant; undefined: this plan has no place for it. */
export type Mutator = (plan: ExecutionPlan, dice: Dice) => Uint8Array | undefined
/** Changes a copy of the plan; false: no place for it. */
type Edit = (plan: Plan, dice: Dice) => unknown

const edit =
  (change: Edit): Mutator =>
  (plan, dice) => {
    const copy = structuredClone(plan) as Plan
    if (change(copy, dice) === false) return undefined
    try {
      return writePlan(copy)
    } catch {
      return undefined
    }
  }

const outputsOf = (plan: Plan) => Object.values(plan.outputs) as number[]

/** Totals of the placement as it stands. */
function recount(plan: Plan): void {
  const ends = (space: string) => plan.registers.filter((r) => r.space === space).map((r) => r.offset + r.stride)
  plan.memory.peak = spaceNames.map((space) => Math.max(0, ...ends(space)))
  plan.memory.lowerBound = lowerBound(plan.registers, plan.instructions.length)
}

/** Places registers by the lifetimes that the plan states. */
function replace(plan: Plan): void {
  const { offsets } = place(plan.registers, lowerBound(plan.registers, plan.instructions.length))
  for (const [i, r] of plan.registers.entries()) r.offset = offsets[i]!
  recount(plan)
}

/** Lifetimes, placement and totals as a compiler would derive them from the instructions. */
export function settle(plan: Plan): void {
  const live = deriveLiveness(plan.instructions, plan.registers.length, outputsOf(plan))
  for (const [i, r] of plan.registers.entries()) Object.assign(r, { first: live.first[i]!, last: live.last[i]! })
  for (const [i, instruction] of plan.instructions.entries()) instruction.lastUse = live.lastUse[i]!
  replace(plan)
}

/** Positions of what `of` finds in the instructions. */
function sites<T>(plan: Plan, of: (instruction: Mutable<Instruction>, index: number) => readonly T[]): T[] {
  return plan.instructions.flatMap((instruction, index) => [...of(instruction, index)])
}

interface InputSite {
  readonly instruction: Mutable<Instruction>
  readonly index: number
  readonly slot: number
  readonly operand: { register: number; column: number; width: number }
}

const inputSites = (plan: Plan): InputSite[] =>
  sites(plan, (instruction, index) =>
    instruction.inputs.flatMap((operand, slot) => (operand ? [{ instruction, index, slot, operand }] : [])),
  )

/** An edit at one of the sites, if there is one. */
const at =
  <T>(find: (plan: Plan) => readonly T[], change: (site: T, plan: Plan, dice: Dice) => unknown): Edit =>
  (plan, dice) => {
    const found = find(plan)
    return found.length ? change(dice.pick(found), plan, dice) : false
  }

const registers = (plan: Plan) => plan.registers
const tensors = (plan: Plan) => plan.tensors
const states = (plan: Plan) => plan.states
const instructions = (plan: Plan) => plan.instructions

/** Reads another register at an input, and settles the rest. */
function reroute({ operand }: InputSite, plan: Plan, register: number): void {
  operand.register = register
  operand.column = Math.min(operand.column, plan.registers[register]!.width - operand.width)
  settle(plan)
}

/** Instructions of one opcode and the values that break its parameters. */
const badParams: readonly (readonly [op: string, param: string, values: readonly number[]])[] = [
  ['embed', 'scale', [Number.POSITIVE_INFINITY, Number.NaN]],
  ['embed', 'position_offset', [2000, 2 ** 31]],
  ['pool', 'mode', [3, 99]],
  ['pool', 'normalize', [2, 255]],
  ['rms_norm', 'eps', [-1, Number.NaN, Number.POSITIVE_INFINITY]],
  ['layer_norm', 'eps', [-1, Number.NaN]],
  ['linear', 'activation', [8, 1000]],
  ['linear', 'branches', [0, 3]],
  ['linear', 'norm_eps', [-1, Number.NaN]],
  ['logits', 'softcap', [-1, Number.NaN]],
  ['logits', 'scale', [Number.NaN]],
  ['rope', 'style', [2, 77]],
  ['rope', 'attention_factor', [Number.NaN]],
  ['attention', 'causal', [2, 9]],
  ['attention', 'scale', [Number.NaN]],
  ['attention', 'softcap', [-2]],
  ['attention', 'rope_style', [2]],
  ['attention', 'norm_eps', [-1]],
  ['glu', 'activation', [8, 99]],
  ['activation', 'activation', [8, 2 ** 31]],
  ['residual', 'scale', [Number.NaN, Number.NEGATIVE_INFINITY]],
  ['moe', 'top_k', [0, 5, 1000]],
  ['moe', 'router', [2, 100]],
  ['moe', 'normalize', [2]],
  ['moe', 'activation', [9]],
  ['conv_state', 'kernel', [1, 9]],
  ['conv_state', 'activation', [8]],
  ['ssm_scan', 'dt_max', [-1]],
  ['ssm_scan', 'dt_min', [Number.NaN]],
  ['delta_rule', 'scale', [Number.NaN]],
  ['delta_rule', 'normalize', [2]],
]

const badParam: Edit = at(
  (plan) =>
    sites(plan, (instruction) =>
      badParams
        // Without a table of positions, their offset means nothing.
        .filter(([op, param]) => op === instruction.op && (param !== 'position_offset' || instruction.params.positions))
        .map((bad) => ({ instruction, bad })),
    ),
  ({ instruction, bad: [, param, values] }, _, dice) => {
    ;(instruction.params as Record<string, number>)[param] = dice.pick(values)
  },
)

/** Slots of a kind that are required and given. */
const required = (plan: Plan, kind: 'inputs' | 'weights' | 'states') =>
  sites(plan, (instruction) =>
    Object.values(opDef(instruction.op)[kind]).flatMap(({ optional }, slot) =>
      !optional && instruction[kind][slot] !== undefined ? [{ list: instruction[kind] as unknown[], slot }] : [],
    ),
  )

const drop = (kind: 'inputs' | 'weights' | 'states'): Edit =>
  at(
    (plan) => required(plan, kind),
    ({ list, slot }, plan) => {
      list[slot] = undefined
      settle(plan)
    },
  )

/** A weight in a slot, and its tensor. */
const weightSites = (plan: Plan) =>
  sites(plan, (instruction) =>
    instruction.weights.flatMap((tensor, slot) => {
      const name = Object.keys(opDef(instruction.op).weights)[slot]!
      return tensor === undefined ? [] : [{ instruction, slot, name, tensor: plan.tensors[tensor]!, index: tensor }]
    }),
  )

const stateSites = (plan: Plan) =>
  sites(plan, (instruction) => instruction.states.flatMap((use) => (use ? [{ instruction, use }] : [])))

const liveTogether = (a: Register, b: Register) => a.space === b.space && a.first <= b.last && b.first <= a.last

/** Takes a register out; those behind it move up. */
function remove(plan: Plan, register: number): void {
  const renumber = (r: number) => (r > register ? r - 1 : r)
  plan.registers.splice(register, 1)
  for (const instruction of plan.instructions) {
    for (const operand of instruction.inputs) if (operand) operand.register = renumber(operand.register)
    instruction.outputs = instruction.outputs.map(renumber)
  }
  for (const [name, r] of Object.entries(plan.outputs)) plan.outputs[name as OutputName] = renumber(r as number)
}

const bigger = 2 ** 31
const some = (dice: Dice, plan: Plan) => plan.registers.length + dice.pick([0, 1, 7, 1000])

const planMutators: Readonly<Record<string, readonly Edit[]>> = {
  format: [
    (plan, dice) => void (plan.format = dice.pick([0, 2, 3, 255, 2 ** 31])),
    (plan) => void (plan.minRuntime = 0),
  ],
  'min-runtime': [(plan, dice) => void (plan.minRuntime = dice.between(2, 2 ** 31))],
  header: [
    (plan, dice) => void (plan.vocab = dice.pick([0, bigger])),
    (plan, dice) => void (plan.hidden = dice.pick([0, bigger])),
    (plan, dice) => void (plan.maxContext = dice.pick([0, bigger, 2 ** 32 - 1])),
  ],
  'register-type': [at(registers, (r, _, dice) => void (r.dtype = dice.pick(['f16', 'bf16', 'i8', 'i4'])))],
  'register-extent': [
    at(registers, (r) => void (r.width = 0)),
    at(registers, (r, plan, dice) => {
      // Neighbours move together, as if the row were as long as it says.
      if (r.stride <= 64) return false
      r.stride -= 64 * dice.between(1, r.stride / 64 - 1)
      replace(plan)
    }),
    at(registers, (r, plan, dice) => {
      r.stride += dice.between(1, 15) * 4
      recount(plan)
    }),
    at(registers, (r, plan, dice) => {
      r.offset += dice.between(1, 63)
      recount(plan)
    }),
  ],
  'tensor-name': [
    at(tensors, (t) => void (t.name = '')),
    at(tensors, (t, plan, dice) => {
      const other = dice.pick(plan.tensors)
      if (other === t) return false
      t.name = other.name
    }),
  ],
  'tensor-type': [
    at(tensors, (t, _, dice) => {
      const layout = dice.pick(['row', 'tile16', 'tile16x2', 'tile16x4', 'tile16x8'] as const)
      if (layout === t.layout || (layout === 'tile16' && t.dtype === 'i8')) return false
      if (layout === 'tile16' && t.dtype === 'f32') return false
      if (layout === 'row' && t.dtype === 'f32') return false
      t.layout = layout
    }),
    at(tensors, (t, _, dice) => {
      const dtype = dice.pick(['bf16', 'i8', 'i4', 'i32'] as const)
      if (t.layout !== 'row') return false
      t.bytes = byteSize(dtype, (t.bytes * 8) / dtypes[t.dtype].bits)
      t.dtype = dtype
    }),
  ],
  'tensor-bytes': [
    at(tensors, (t, _, dice) => void (t.bytes -= Math.min(t.bytes, dice.pick([1, 4, 64, t.bytes / 2])))),
    at(tensors, (t, _, dice) => void (t.bytes += dice.pick([1, 64, 4096]))),
    at(tensors, (t) => void Object.assign(t, { rows: 0, bytes: 0 })),
    at(tensors, (t, _, dice) => {
      const unpadded = byteSize(t.dtype, t.rows * t.cols)
      if (unpadded === t.bytes) return false
      t.bytes = Math.max(1, Math.floor(unpadded) - dice.below(2))
    }),
  ],
  'state-type': [
    at(states, (s, _, dice) => void (s.dtype = dice.pick(['i4', 'i32']))),
    at(states, (s) => {
      if (s.kind !== 'fixed') return false
      s.dtype = 'i8'
    }),
    at(states, (s, _, dice) => {
      if (s.kind !== 'fixed') return false
      s.dtype = dice.pick(['bf16', 'f16'])
      s.sizeBytes = Math.ceil(s.sizeBytes / 2 / 64) * 64
      if (/conv/.test(s.name)) return false
    }),
  ],
  'state-unit': [
    at(states, (s, _, dice) => {
      const blockTokens = dice.pick([0, 1, 8, 16, 31, 33, 64, 1024])
      if (blockTokens === s.blockTokens) return false
      if (s.kind !== 'fixed') s.sizeBytes = Math.ceil(((s.sizeBytes / s.blockTokens) * blockTokens) / 64) * 64
      s.blockTokens = blockTokens
    }),
    at(states, (s, _, dice) => void (s.alignBytes = dice.pick([0, 3, 48, 65, 96, 8192, 2 ** 31]))),
  ],
  'state-capability': [
    at(states, (s) => void (s.zeroInit = !s.zeroInit)),
    at(states, (s, _, dice) => void (s.lifecycle |= dice.pick([16, 32, 2 ** 20]))),
    at(states, (s, _, dice) => {
      if (s.kind === 'paged') return false
      s.rewind = dice.pick([1, 2, 64, REWIND_ANY])
    }),
    at(states, (s) => {
      if (s.kind === 'paged') return false
      s.fork = 'any'
    }),
  ],
  'opcode-version': [at(instructions, (i, _, dice) => void (i.version = dice.pick([0, 2, 3, 0xffff])))],
  'operand-count': [
    at(instructions, (i, _, dice) => {
      const most = Object.keys(opDef(i.op).inputs).length
      i.inputs = [...i.inputs]
      while (i.inputs.length <= most) i.inputs.push({ register: 0, column: 0, width: 1 })
      if (dice.below(2)) i.inputs.push({ register: 0, column: 0, width: 1 })
    }),
    at(instructions, (i) => void i.outputs.push(i.outputs[0]!)),
    at(instructions, (i) => {
      const most = Object.keys(opDef(i.op).weights).length
      while (i.weights.length <= most) i.weights.push(0)
    }),
    at(instructions, (i) => {
      const most = Object.keys(opDef(i.op).states).length
      while (i.states.length <= most) i.states.push({ state: 0, access: 'readwrite' })
    }),
  ],
  'params-value': [badParam],
  'operand-missing': [
    drop('inputs'),
    drop('weights'),
    drop('states'),
    at(instructions, (i, plan) => {
      const taken = i.outputs.pop()!
      if (outputsOf(plan).includes(taken) || inputSites(plan).some(({ operand }) => operand.register === taken))
        return false
      remove(plan, taken)
      settle(plan)
    }),
  ],
  'operand-index': [
    at(inputSites, ({ operand }, plan, dice) => void (operand.register = some(dice, plan))),
    at(instructions, (i, plan, dice) => void (i.outputs[0] = some(dice, plan))),
    at(weightSites, ({ instruction, slot }, plan, dice) => {
      instruction.weights[slot] = plan.tensors.length + dice.pick([0, 1, 9, 2 ** 20])
    }),
    at(stateSites, ({ use }, plan, dice) => void (use.state = plan.states.length + dice.pick([0, 1, 2 ** 20]))),
  ],
  'operand-columns': [
    at(inputSites, ({ operand }, plan, dice) => {
      operand.column = plan.registers[operand.register]!.width - operand.width + dice.pick([1, 2, 16, 1000])
    }),
    at(inputSites, ({ operand }, _, dice) => void (operand.column = 2 ** 32 - dice.between(1, operand.width))),
  ],
  'operand-width': [
    at(inputSites, ({ operand }, _, dice) => {
      if (operand.width < 2) return false
      operand.width -= dice.between(1, operand.width - 1)
    }),
    at(inputSites, ({ operand }, plan, dice) => {
      const room = plan.registers[operand.register]!.width - operand.column - operand.width
      if (room < 1) return false
      operand.width += dice.between(1, room)
    }),
    at(
      (plan) => sites(plan, (i) => (['linear', 'logits'].includes(i.op) ? [i] : [])),
      ({ params }, _, dice) => void ((params as Record<string, number>).k! += dice.pick([-1, 1, 16])),
    ),
    at(registers, (r, plan, dice) => {
      r.width += dice.pick([1, 5, 64])
      r.stride = Math.ceil(byteSize(r.dtype, r.width) / 64) * 64
      replace(plan)
    }),
  ],
  'operand-type': [
    at(inputSites, (site, plan, dice) => {
      const from = plan.registers[site.operand.register]!
      const others = plan.registers.flatMap((r, i) =>
        (r.space !== from.space || r.dtype !== from.dtype) && r.width >= site.operand.width && r.first < site.index
          ? [i]
          : [],
      )
      if (!others.length) return false
      reroute(site, plan, dice.pick(others))
    }),
    at(registers, (r, plan) => {
      r.dtype = r.dtype === 'f32' ? 'i32' : 'f32'
      recount(plan)
    }),
    at(registers, (r, plan, dice) => {
      const space = dice.pick(spaceNames)
      if (space === r.space) return false
      r.space = space
      replace(plan)
    }),
  ],
  'weight-form': [
    at(weightSites, ({ instruction, slot, tensor }, plan, dice) => {
      const others = plan.tensors.flatMap((t, i) =>
        (t.layout === 'row') !== (tensor.layout === 'row') || t.rows !== tensor.rows || t.cols !== tensor.cols
          ? [i]
          : [],
      )
      if (!others.length) return false
      instruction.weights[slot] = dice.pick(others)
    }),
    at(weightSites, ({ tensor }, _, dice) => {
      if (tensor.layout !== 'row') return false
      tensor.cols += dice.pick([1, 4])
      tensor.bytes = byteSize(tensor.dtype, tensor.rows * tensor.cols)
    }),
    at(weightSites, ({ tensor }, _, dice) => {
      if (tensor.layout === 'row' || tensor.rows <= 16) return false
      const row = tensor.bytes / (Math.ceil(tensor.rows / 16) * 16)
      tensor.rows -= dice.between(1, 16)
      tensor.bytes = row * Math.ceil(tensor.rows / 16) * 16
    }),
  ],
  'weight-scales': [
    at(
      (plan) => weightSites(plan).filter(({ name }) => name.endsWith('scales')),
      ({ instruction, slot }) => void (instruction.weights[slot] = undefined),
    ),
    at(
      (plan) => weightSites(plan).filter(({ name }) => name.endsWith('scales') && !name.endsWith('sub_scales')),
      ({ tensor }) =>
        void Object.assign(
          tensor,
          tensor.dtype === 'f16'
            ? { dtype: 'f32', bytes: tensor.bytes * 2 }
            : { dtype: 'f16', bytes: tensor.bytes / 2 },
        ),
    ),
    at(
      (plan) =>
        weightSites(plan).filter(
          ({ instruction, name, tensor }) =>
            name === 'weight' &&
            'scales' in opDef(instruction.op).weights &&
            tensor.dtype !== 'i8' &&
            tensor.dtype !== 'i4' &&
            tensor.dtype !== 'e4m3',
        ),
      ({ instruction, tensor }, plan) => {
        const slot = Object.keys(opDef(instruction.op).weights).indexOf('scales')
        const [rows, cols] = opDef(instruction.op).weights.scales!.shape.map((size) =>
          evaluate(size, instruction.params),
        )
        const bytes = Math.ceil(rows! / 16) * 16 * cols! * 2
        const added = {
          name: `${tensor.name}.made`,
          dtype: 'f16',
          layout: 'tile16',
          rows: rows!,
          cols: cols!,
          bytes,
        } as const
        instruction.weights = [...instruction.weights]
        instruction.weights[slot] = plan.tensors.push(added) - 1
      },
    ),
  ],
  'state-access': [
    at(stateSites, ({ use }, _, dice) => void (use.access = dice.pick(['read', 'write']))),
    at(states, (s, _, dice) => {
      const kind = dice.pick(['paged', 'ring', 'fixed'] as const)
      if (kind === s.kind) return false
      const positions = kind === 'fixed' ? 1 : 32
      const sizeBytes = Math.ceil(((s.sizeBytes / s.blockTokens) * positions) / 64) * 64
      const weaker = kind === 'paged' ? {} : { rewind: 0, fork: 'head' as const }
      Object.assign(s, { kind, sizeBytes, blockTokens: positions, zeroInit: kind === 'fixed', ...weaker })
    }),
  ],
  'state-size': [
    at(states, (s, _, dice) => {
      s.sizeBytes -= s.alignBytes * dice.between(1, Math.max(1, s.sizeBytes / s.alignBytes - 1))
    }),
    at(states, (s, _, dice) => void (s.sizeBytes += s.alignBytes * dice.pick([1, 2, 64]))),
    at(states, (s, _, dice) => void (s.sizeBytes += dice.between(1, s.alignBytes - 1))),
  ],
  definition: [
    at(inputSites, (site, plan, dice) => {
      const from = plan.registers[site.operand.register]!
      const later = plan.registers.flatMap((r, i) =>
        r.space === from.space && r.dtype === from.dtype && r.width >= site.operand.width && r.first >= site.index
          ? [i]
          : [],
      )
      if (!later.length) return false
      reroute(site, plan, dice.pick(later))
    }),
    at(instructions, (i, plan, dice) => {
      const taken = i.outputs[0]!
      const like = plan.registers[taken]!
      const others = plan.registers.flatMap((r, n) =>
        n !== taken && r.space === like.space && r.dtype === like.dtype && r.width === like.width ? [n] : [],
      )
      if (!others.length || outputsOf(plan).includes(taken)) return false
      i.outputs[0] = dice.pick(others)
      for (const { operand } of inputSites(plan)) if (operand.register === taken) operand.register = i.outputs[0]
      remove(plan, taken)
      settle(plan)
    }),
    at(registers, (r, plan) => void plan.registers.push({ ...r, name: 'nobody', first: 0, last: 0 })),
  ],
  liveness: [
    at(registers, (r, plan, dice) => {
      r.last = Math.max(r.first, r.last - dice.between(1, 6))
      replace(plan)
    }),
    at(registers, (r, plan, dice) => {
      r.first += dice.between(1, 4)
      r.last = Math.max(r.first, r.last)
      replace(plan)
    }),
    at(registers, (r, _, dice) => void (r.last += dice.between(1, 5))),
    at(registers, (r, plan, dice) => {
      r.first = Math.max(0, r.first - dice.between(1, 4))
      replace(plan)
    }),
  ],
  'last-use': [
    at(inputSites, ({ instruction, slot }) => void (instruction.lastUse ^= 1 << slot)),
    at(instructions, (i, _, dice) => void (i.lastUse = (i.lastUse | (1 << dice.between(i.inputs.length, 30))) >>> 0)),
  ],
  overlap: [
    at(registers, (r, plan, dice) => {
      const others = plan.registers.filter((other) => other !== r && liveTogether(r, other))
      if (!others.length) return false
      const other = dice.pick(others)
      r.offset = Math.max(0, other.offset + 64 * dice.between(1 - r.stride / 64, other.stride / 64 - 1))
      recount(plan)
      return r.offset < other.offset + other.stride && other.offset < r.offset + r.stride
    }),
  ],
  'memory-totals': [
    at(
      ({ memory }) => memory.peak.flatMap((bytes, i) => (bytes ? [i] : [])),
      (space, { memory }, dice) => void (memory.peak[space]! -= 64 * dice.between(1, memory.peak[space]! / 64)),
    ),
    ({ memory }, dice) => void (memory.peak[dice.below(3)]! += 64 * dice.between(1, 100)),
    ({ memory }, dice) => void (memory.lowerBound[dice.below(3)]! += 64 * dice.between(1, 100)),
    ({ memory }) => void memory.peak.pop(),
    ({ memory }) => void memory.lowerBound.push(0),
  ],
  'state-order': [
    at(stateSites, ({ use }, plan, dice) => {
      const own = plan.states[use.state]!
      const others = plan.states.flatMap((s, i) =>
        i !== use.state && s.kind === own.kind && s.sizeBytes === own.sizeBytes && s.dtype === own.dtype ? [i] : [],
      )
      if (!others.length) return false
      const left = use.state
      use.state = dice.pick(others)
      // The one that is left without a writer goes as well.
      plan.states.splice(left, 1)
      for (const each of stateSites(plan)) if (each.use.state > left) each.use.state--
    }),
    at(states, (s, plan) => void plan.states.push({ ...s, name: `${s.name}.unused` })),
  ],
  output: [
    (plan) => void (plan.outputs = {}),
    (plan, dice) => {
      const names = Object.keys(plan.outputs) as OutputName[]
      plan.outputs[dice.pick(names)] = plan.registers.length + dice.pick([0, 5, 2 ** 20])
    },
    (plan, dice) => {
      const name = dice.pick(Object.keys(plan.outputs) as OutputName[])
      const own = plan.registers[plan.outputs[name]!]!
      const others = plan.registers.flatMap((r, i) =>
        r.width !== own.width || r.dtype !== own.dtype || r.space !== own.space ? [i] : [],
      )
      if (!others.length) return false
      plan.outputs[name] = dice.pick(others)
      settle(plan)
      const kept = plan.registers[plan.outputs[name]!]!
      // Hidden states may be pooled; then this is another plan, and a sound one.
      return !(kept.width === own.width && kept.dtype === own.dtype && kept.space === 'sequences')
    },
    (plan, dice) => void (plan.hidden += plan.outputs.hidden === undefined ? 0 : dice.pick([1, 2, 100])),
  ],
}

/** Mutators by rule: those of bytes and those of plans. */
export const mutators: Readonly<Record<string, readonly Mutator[]>> = Object.fromEntries(
  [...new Set([...Object.keys(byteMutators), ...Object.keys(planMutators)])].map((rule) => [
    rule,
    [
      ...(byteMutators[rule] ?? []).map(
        (mutate): Mutator =>
          (plan, dice) =>
            mutate(writePlan(plan), dice),
      ),
      ...(planMutators[rule] ?? []).map(edit),
    ],
  ]),
)
