/**
 * The graph of macro-ops that a topology builds and the passes rewrite: frozen nodes over registers, weights and states.
 * The types of `add` come from the opcode definitions, so a misnamed operand or parameter does not compile.
 */
import { type DType, dtypes } from '../abi/dtypes.ts'
import type { OpDef, ParamsInput, Space } from '../abi/ops/define.ts'
import { type OpName, type Ops, opDef } from '../abi/ops/index.ts'
import { fillParams } from '../abi/param-block.ts'
import { fail } from '../errors.ts'
import type { OutputName } from '../plans/plan.ts'
import { inferNode } from './compile/shapes.ts'
import type { SafetensorsDType, TensorEntry } from './safetensors.ts'

/** An activation: one row of `width` elements a token, row or sequence. */
export interface GraphRegister {
  readonly space: Space
  readonly dtype: DType
  readonly width: number
}

/** Columns [column, column + width) of a register. */
export interface Value {
  readonly register: number
  readonly column: number
  readonly width: number
}

/** Where elements of a weight come from: a tensor of the checkpoint, or values computed when compiling. */
export type Part =
  | { readonly tensor: string; readonly dtype: DType; readonly elements: number }
  | { readonly values: Float32Array; readonly dtype: 'f32'; readonly elements: number }

/** How the stored bytes follow from the parts: as they are, as the numbers of q8, q4 or fp8, or as what scales those. */
export type Encoding = 'plain' | 'q8' | 'q4' | 'fp8' | 'scales' | 'sub_scales' | 'row_scales'

/**
 * A weight of logical (rows, cols): its parts one after the other, row-major. Of two branches, the first half of what
 * the parts hold and the second alternate in the weight, BRANCH_RUN rows (of a vector: elements) at a time.
 */
export interface Weight {
  readonly name: string
  readonly rows: number
  readonly cols: number
  /** dtype of the parts. */
  readonly dtype: DType
  readonly parts: readonly Part[]
  readonly encoding: Encoding
  readonly branches?: 2
}

/** A state of one node. */
export interface GraphState {
  readonly name: string
  readonly dtype: DType
}

/** One macro-op, operands by the names of its definition. */
export interface Node {
  readonly op: OpName
  readonly label: string
  readonly inputs: Readonly<Record<string, Value>>
  readonly outputs: Readonly<Record<string, number>>
  readonly weights: Readonly<Record<string, Weight>>
  readonly states: Readonly<Record<string, GraphState>>
  /** All fields, defaults filled in. */
  readonly params: Readonly<Record<string, number>>
}

export interface Graph {
  readonly registers: readonly GraphRegister[]
  readonly nodes: readonly Node[]
  readonly outputs: Readonly<Partial<Record<OutputName, number>>>
}

/** Values by slot name: optional slots may be left out. */
type Slots<D, V> = {
  readonly [K in keyof D as D[K] extends { optional: true } ? never : K]: V
} & { readonly [K in keyof D as D[K] extends { optional: true } ? K : never]?: V | undefined }
type Field<K extends string, T> = Record<never, never> extends T ? { readonly [P in K]?: T } : { readonly [P in K]: T }
/** What `add` takes for one opcode. */
export type NodeSpec<N extends OpName> = Field<'inputs', Slots<Ops[N]['inputs'], Value>> &
  Field<'weights', Slots<Ops[N]['weights'], Weight>> &
  Field<'states', Slots<Ops[N]['states'], GraphState>> &
  Field<'params', ParamsInput<Ops[N]>>

function present<T>(slots: Readonly<Record<string, T | undefined>> | undefined): Readonly<Record<string, T>> {
  const given = Object.entries(slots ?? {}).filter((entry): entry is [string, T & {}] => entry[1] !== undefined)
  return Object.freeze(Object.fromEntries(given))
}

/** What the weights of a checkpoint may be. */
const floatDtypes = ['f32', 'f16', 'bf16'] as const
const dtypeOfEntry = (dtype: SafetensorsDType) => floatDtypes.find((name) => dtypes[name].safetensors === dtype)

/** The one way to build a graph. A weight is looked up in the checkpoint when it is named. */
export class GraphBuilder {
  readonly #registers: GraphRegister[] = []
  readonly #nodes: Node[] = []
  readonly #outputs: Partial<Record<OutputName, number>> = {}
  readonly #used = new Set<string>()
  readonly #tensors: ReadonlyMap<string, TensorEntry>
  readonly #path: string

  /** `tensors`: the checkpoint's directory; `path` names it in errors. */
  constructor(tensors: ReadonlyMap<string, TensorEntry>, path: string) {
    this.#tensors = tensors
    this.#path = path
  }

  /**
   * A tensor of the checkpoint, a matrix (rows, cols) or a vector (n), which becomes (1, n).
   * Throws TENSOR_MISSING, TENSOR_SHAPE, DTYPE_UNSUPPORTED.
   */
  weight(name: string, shape: readonly [number] | readonly [rows: number, cols: number]): Weight {
    const [path, expected] = [this.#path, `[${shape.join(', ')}]`]
    const entry = this.#tensors.get(name)
    if (!entry) throw fail('TENSOR_MISSING', { path, tensor: name, expected })
    if (entry.shape.length !== shape.length || entry.shape.some((size, i) => size !== shape[i]))
      throw fail('TENSOR_SHAPE', { path: entry.file, tensor: name, expected, got: `[${entry.shape.join(', ')}]` })
    const dtype = dtypeOfEntry(entry.dtype)
    if (!dtype)
      throw fail('DTYPE_UNSUPPORTED', {
        path: entry.file,
        thing: `tensor ${name}`,
        got: entry.dtype,
        expected: ['F32', 'F16', 'BF16'],
      })
    this.#used.add(name)
    const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape
    const parts = [Object.freeze({ tensor: name, dtype, elements: rows * cols })]
    return Object.freeze({ name, rows, cols, dtype, parts, encoding: 'plain' })
  }

  /** A vector computed when compiling. */
  constant(name: string, values: Float32Array): Weight {
    const cols = values.length
    const parts = [Object.freeze({ values, dtype: 'f32' as const, elements: cols })]
    return Object.freeze({ name, rows: 1, cols, dtype: 'f32', parts, encoding: 'plain' })
  }

  /** Appends a node; its outputs are values of the widths that the definition computes. Throws PLAN_INVALID. */
  add<N extends OpName>(op: N, label: string, spec: NodeSpec<N>): { readonly [K in keyof Ops[N]['outputs']]: Value } {
    const definition: OpDef = opDef(op)
    const given = spec as Partial<Record<'inputs' | 'weights' | 'states' | 'params', Record<string, never>>>
    const operands = {
      op,
      label,
      inputs: present<Value>(given.inputs),
      weights: present<Weight>(given.weights),
      states: present<GraphState>(given.states),
      params: Object.freeze(fillParams(definition, (given.params ?? {}) as ParamsInput<OpDef>)),
    }
    const inferred = inferNode(operands, this.#registers)
    const outputs: Record<string, number> = {}
    const values: Record<string, Value> = {}
    for (const [name, register] of Object.entries(inferred)) {
      outputs[name] = this.#registers.push(Object.freeze(register)) - 1
      values[name] = Object.freeze({ register: outputs[name], column: 0, width: register.width })
    }
    this.#nodes.push(Object.freeze({ ...operands, outputs: Object.freeze(outputs) }))
    return values as { readonly [K in keyof Ops[N]['outputs']]: Value }
  }

  /** Names a value as an output of the plan. */
  output(name: OutputName, value: Value): void {
    this.#outputs[name] = value.register
  }

  /** The graph so far, and the names of the tensors that it reads. */
  finish(): { readonly graph: Graph; readonly used: ReadonlySet<string> } {
    const graph = Object.freeze({
      registers: Object.freeze([...this.#registers]),
      nodes: Object.freeze([...this.#nodes]),
      outputs: Object.freeze({ ...this.#outputs }),
    })
    return { graph, used: this.#used }
  }
}
