/** A plan as text for people and for goldens: the same plan gives the same text, and nothing in it is truncated. */
import { byteSize } from '../abi/dtypes.ts'
import { ropeStyles } from '../abi/ops/attention.ts'
import { activations, spaceNames } from '../abi/ops/define.ts'
import { type OpName, opDef } from '../abi/ops/index.ts'
import { routers } from '../abi/ops/moe.ts'
import { pools } from '../abi/ops/tokens.ts'
import { lifecycles, REWIND_ANY, type StateDescriptor } from '../abi/state.ts'
import {
  type ExecutionPlan,
  type Instruction,
  type Operand,
  outputNames,
  type Register,
  type StateUse,
  type Tensor,
} from './plan.ts'

/** Parameters whose numbers are ids of a table. */
const enums: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  activation: activations,
  style: ropeStyles,
  rope_style: ropeStyles,
  router: routers,
  mode: pools,
}

/** Shortest decimal that reads back as the same float32. */
function float32Text(value: number): string {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits))
    if (Math.fround(short) === value) return String(short)
  }
  return String(Number(value.toPrecision(9)))
}

/** Text of one parameter, ids by name. */
export function paramText(op: OpName, name: string, value: number): string {
  const known = Object.entries(enums[name] ?? {}).find(([, id]) => id === value)
  if (known) return known[0]
  return opDef(op).params[name]?.type === 'f32' ? float32Text(value) : String(value)
}

/** Rows of cells as lines, columns aligned; numbers to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const pad = (cell: string, column: number) =>
    /^[\d.]+$/.test(cell) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)
  return rows.map((row) => `  ${row.map(pad).join('  ')}`.trimEnd())
}

const ratio = (peak: number, bound: number) => (bound ? (peak / bound).toFixed(3) : '-')

function memoryLines({ peak, lowerBound }: ExecutionPlan['memory']): string[] {
  const rows = spaceNames.map((space, i) => {
    const [most, least] = [peak[i] ?? 0, lowerBound[i] ?? 0]
    return `  ${space.padEnd(9)}  ${String(most).padStart(10)}  ${String(least).padStart(11)}  ${ratio(most, least).padStart(5)}`
  })
  return [`  ${'space'.padEnd(9)}  ${'peak'.padStart(10)}  lower bound  ratio`, ...rows]
}

/** Operations that a state allows, as words. */
export function lifecycleText(bits: number): string {
  const names = Object.entries(lifecycles).flatMap(([name, bit]) => (bits & bit ? [name] : []))
  return names.join('+') || 'none'
}

export const rewindText = (rewind: number) => (rewind === REWIND_ANY ? 'any' : String(rewind))

const stateRow = (s: StateDescriptor): string[] => [
  `#${s.name}`,
  s.kind,
  s.dtype,
  `${s.sizeBytes} bytes a ${s.kind === 'fixed' ? 'slot' : `block of ${s.blockTokens}`}`,
  `align ${s.alignBytes}`,
  s.zeroInit ? 'zeroed' : 'not zeroed',
  lifecycleText(s.lifecycle),
  `rewind ${rewindText(s.rewind)}`,
  `fork ${s.fork}`,
]

const tensorRow = (t: Tensor): string[] => [`@${t.name}`, t.dtype, t.layout, `${t.rows} x ${t.cols}`, String(t.bytes)]

/** "%3 tokens f32[128] +256 live 2..4": space, elements, arena offset, first and last instruction. */
const registerText = (index: number, r: Register) =>
  `%${index} ${r.space} ${r.dtype}[${r.width}] +${r.offset} live ${r.first}..${r.last}` +
  (r.stride === Math.ceil(byteSize(r.dtype, r.width) / 64) * 64 ? '' : ` stride ${r.stride}`)

const operandText = ({ register, column, width }: Operand, dies: boolean) =>
  `%${register}[${column}:${column + width}]${dies ? '!' : ''}`

/** `name=text` of the operands that are present, by position of the definition. */
function named<T>(
  names: Readonly<Record<string, unknown>>,
  given: readonly (T | undefined)[],
  text: (value: T, index: number) => string,
): string[] {
  return Object.keys(names).flatMap((name, i) => (given[i] === undefined ? [] : [`${name}=${text(given[i], i)}`]))
}

/** Parameters that differ from their defaults, in the order of the definition. */
function paramsText({ op, params }: Pick<Instruction, 'op' | 'params'>): string[] {
  return Object.entries(opDef(op).params).flatMap(([name, field]) =>
    params[name] === undefined || params[name] === field.default
      ? []
      : [`${name}=${paramText(op, name, params[name])}`],
  )
}

function instructionLine(plan: ExecutionPlan, instruction: Instruction): string {
  const definition = opDef(instruction.op)
  const results = instruction.outputs.map((r) => registerText(r, plan.registers[r]!))
  const state = ({ state, access }: StateUse) => `#${plan.states[state]!.name}:${access}`
  const operands = [
    ...named(definition.inputs, instruction.inputs, (o, i) => operandText(o, (instruction.lastUse & (1 << i)) !== 0)),
    ...named(definition.weights, instruction.weights, (weight) => `@${plan.tensors[weight]!.name}`),
    ...named(definition.states, instruction.states, state),
  ]
  const version = instruction.version === 1 ? '' : `.v${instruction.version}`
  const call = `${instruction.op}${version}(${operands.join(', ')})`
  return `${[results.join(', '), '=', call, ...paramsText(instruction)].join(' ')}  ; ${instruction.label}`
}

const outputRows = (outputs: ExecutionPlan['outputs']): string[][] =>
  outputNames.flatMap((name) => (outputs[name] === undefined ? [] : [[name, `%${outputs[name]}`]]))

const section = (title: string, lines: readonly string[]) => (lines.length ? ['', title, ...lines] : [])

/** The whole plan: header, memory, states, tensors, outputs, then one line an instruction. Ends with a newline. */
export function printPlan(plan: ExecutionPlan): string {
  const bytes = plan.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)
  const digits = String(plan.instructions.length).length
  return [
    `plan ${plan.model}, format ${plan.format}, minimum runtime ${plan.minRuntime}`,
    `vocabulary ${plan.vocab}, hidden ${plan.hidden}, context ${plan.maxContext}`,
    `instructions ${plan.instructions.length}, registers ${plan.registers.length}, ` +
      `states ${plan.states.length}, tensors ${plan.tensors.length} (${bytes} bytes)`,
    ...section('memory, bytes per row of capacity', memoryLines(plan.memory)),
    ...section('states', table(plan.states.map(stateRow))),
    ...section('tensors, rows x columns and stored bytes', table(plan.tensors.map(tensorRow))),
    ...section('outputs', table(outputRows(plan.outputs))),
    ...section(
      'instructions (%r[a:b]: columns a to b of register r; !: its last read)',
      plan.instructions.map((each, i) => `  ${String(i).padStart(digits)}  ${instructionLine(plan, each)}`),
    ),
    '',
  ].join('\n')
}
