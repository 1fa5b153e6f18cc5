/**
 * What changed from one plan to another. Entries are aligned by what they are (label and opcode, name), not by index, and
 * name each other the same way, so that one inserted instruction is one difference.
 */
import { opDef } from '../abi/ops/index.ts'
import type { StateDescriptor } from '../abi/state.ts'
import type { ExecutionPlan, Instruction, Register, Tensor } from './plan.ts'
import { lifecycleText, paramText, rewindText } from './print.ts'

export interface FieldChange {
  readonly field: string
  /** Empty where the field is absent. */
  readonly before: string
  readonly after: string
}
export interface EntryChange {
  readonly key: string
  readonly fields: readonly FieldChange[]
}
export interface SectionDiff {
  readonly added: readonly string[]
  readonly removed: readonly string[]
  readonly changed: readonly EntryChange[]
  /** Whether the entries that both plans have come in another order. */
  readonly reordered: boolean
}
export interface PlanDiff {
  readonly plan: readonly FieldChange[]
  readonly states: SectionDiff
  readonly tensors: SectionDiff
  readonly registers: SectionDiff
  readonly instructions: SectionDiff
}

type Fields = Readonly<Record<string, string>>

/** Entries by key; a key that comes again is numbered: "norm", "norm (2)". */
function keyed(keys: readonly string[]): string[] {
  const seen = new Map<string, number>()
  return keys.map((key) => {
    const count = (seen.get(key) ?? 0) + 1
    seen.set(key, count)
    return count === 1 ? key : `${key} (${count})`
  })
}

/** Fields of every entry of a plan, each named as a person would. */
class Described {
  readonly plan: Fields
  readonly states: Map<string, Fields>
  readonly tensors: Map<string, Fields>
  readonly registers: Map<string, Fields>
  readonly instructions: Map<string, Fields>
  readonly #registerKeys: string[]
  readonly #instructionKeys: string[]
  readonly #source: ExecutionPlan

  constructor(source: ExecutionPlan) {
    this.#source = source
    this.#registerKeys = keyed(source.registers.map(({ name }) => name))
    this.#instructionKeys = keyed(source.instructions.map(({ label, op }) => `${label} ${op}`))
    this.plan = this.#header()
    this.states = this.#entries(keyed(source.states.map(({ name }) => name)), source.states, this.#state)
    this.tensors = this.#entries(keyed(source.tensors.map(({ name }) => name)), source.tensors, this.#tensor)
    this.registers = this.#entries(this.#registerKeys, source.registers, this.#register)
    this.instructions = this.#entries(this.#instructionKeys, source.instructions, this.#instruction)
  }

  #entries<T>(keys: readonly string[], values: readonly T[], describe: (value: T) => Fields): Map<string, Fields> {
    return new Map(values.map((value, i) => [keys[i]!, describe(value)]))
  }

  #header(): Fields {
    const { format, minRuntime, model, vocab, hidden, maxContext, memory, outputs } = this.#source
    const named = Object.entries(outputs).map(([name, register]) => [`output ${name}`, this.#registerKeys[register]!])
    const totals = { peak: memory.peak.join(' '), 'lower bound': memory.lowerBound.join(' ') }
    const header = { format, minRuntime, model, vocab, hidden, maxContext, ...totals }
    return { ...textOf(header), ...Object.fromEntries(named) }
  }

  #state = ({ id: _, name: __, lifecycle, rewind, ...rest }: StateDescriptor): Fields => ({
    ...textOf(rest),
    lifecycle: lifecycleText(lifecycle),
    rewind: rewindText(rewind),
  })

  #tensor = ({ name: _, ...rest }: Tensor): Fields => textOf(rest)

  #register = ({ name: _, first, last, ...rest }: Register): Fields => ({
    ...textOf(rest),
    first: this.#instructionKeys[first] ?? 'end',
    last: this.#instructionKeys[last] ?? 'end',
  })

  #instruction = ({ op, version, inputs, outputs, weights, states, params, lastUse }: Instruction): Fields => {
    const definition = opDef(op)
    const fields: Record<string, string> = { version: String(version) }
    for (const [i, name] of Object.keys(definition.inputs).entries()) {
      const use = inputs[i]
      const range = use && `${this.#registerKeys[use.register]}[${use.column}:${use.column + use.width}]`
      if (range) fields[name] = `${range}${lastUse & (1 << i) ? ', last read' : ''}`
    }
    for (const [i, name] of Object.keys(definition.outputs).entries())
      fields[name] = this.#registerKeys[outputs[i]!] ?? ''
    for (const [i, name] of Object.keys(definition.weights).entries())
      if (weights[i] !== undefined) fields[name] = `@${this.#source.tensors[weights[i]]!.name}`
    for (const [i, name] of Object.keys(definition.states).entries()) {
      const use = states[i]
      if (use) fields[name] = `#${this.#source.states[use.state]!.name}:${use.access}`
    }
    for (const [name, value] of Object.entries(params)) fields[`param ${name}`] = paramText(op, name, value)
    return fields
  }
}

const textOf = (values: Readonly<Record<string, unknown>>): Fields =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [key, String(value)]))

function compareFields(a: Fields, b: Fields): FieldChange[] {
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].flatMap((field) => {
    const [before, after] = [a[field] ?? '', b[field] ?? '']
    return before === after ? [] : [{ field, before, after }]
  })
}

function compareSection(a: ReadonlyMap<string, Fields>, b: ReadonlyMap<string, Fields>): SectionDiff {
  const common = [...a.keys()].filter((key) => b.has(key))
  const order = [...b.keys()].filter((key) => a.has(key))
  return {
    added: [...b.keys()].filter((key) => !a.has(key)),
    removed: [...a.keys()].filter((key) => !b.has(key)),
    changed: common.flatMap((key) => {
      const fields = compareFields(a.get(key)!, b.get(key)!)
      return fields.length ? [{ key, fields }] : []
    }),
    reordered: common.some((key, i) => order[i] !== key),
  }
}

/** Differences from `a` to `b`. */
export function diffPlans(a: ExecutionPlan, b: ExecutionPlan): PlanDiff {
  const [left, right] = [new Described(a), new Described(b)]
  return {
    plan: compareFields(left.plan, right.plan),
    states: compareSection(left.states, right.states),
    tensors: compareSection(left.tensors, right.tensors),
    registers: compareSection(left.registers, right.registers),
    instructions: compareSection(left.instructions, right.instructions),
  }
}

const fieldLine = ({ field, before, after }: FieldChange) =>
  `    ${field}: ${before || '(absent)'} -> ${after || '(absent)'}`

function sectionLines(title: string, { added, removed, changed, reordered }: SectionDiff): string[] {
  const lines = [
    ...removed.map((key) => `  - ${key}`),
    ...added.map((key) => `  + ${key}`),
    ...changed.flatMap(({ key, fields }) => [`  ~ ${key}`, ...fields.map(fieldLine)]),
    ...(reordered ? ['  in another order'] : []),
  ]
  return lines.length ? [title, ...lines] : []
}

/** The differences as text, a section each; "no difference" where there is none. Ends with a newline. */
export function printDiff(diff: PlanDiff): string {
  const header = diff.plan.length ? ['plan', ...diff.plan.map(fieldLine)] : []
  const sections = (['states', 'tensors', 'registers', 'instructions'] as const).flatMap((name) =>
    sectionLines(name, diff[name]),
  )
  const lines = [...header, ...sections]
  return `${(lines.length ? lines : ['no difference']).join('\n')}\n`
}
