/**
 * Fusion: rewrites of the graph that compute the same function in fewer instructions. Each can be switched off; the
 * unfused form always compiles and runs too.
 */
import { BRANCH_RUN } from '../../abi/ops/define.ts'
import type { Graph, Node, Value, Weight } from '../graph.ts'

interface Fusion {
  /** What a step no longer does. */
  readonly saves: string
  readonly apply: (graph: Graph) => Graph
}

/** In the order of application. */
export const fusions = {
  qkv: {
    saves: 'two of three products over the same input: x is read, and quantised where the kernel does, once',
    apply: (graph) => mergeProjections(graph, 'attention', ['q', 'k', 'v']),
  },
  gate_up: {
    saves: 'one of two products over the same input',
    apply: (graph) => mergeProjections(graph, 'glu', ['gate', 'up']),
  },
  glu: {
    saves: 'a write and a read of gate and up: the linear that computes both multiplies them as it goes',
    apply: (graph) => rewriteEach(graph, 'glu', foldGlu),
  },
  residual: {
    saves: 'one write and two reads of the residual stream a linear',
    apply: (graph) => rewriteEach(graph, 'residual', foldResidual),
  },
  rope: {
    saves:
      'a write and a read of q and k for rope, and for the norm of their heads: attention does both as it loads them',
    apply: (graph) => rewriteEach(rewriteEach(graph, 'attention', foldRope), 'attention', foldHeadNorms),
  },
  norm: {
    saves: 'a write and a read of the normalised stream: a linear normalises its rows as it packs them',
    apply: (graph) => rewriteEach(graph, 'rms_norm', foldNorm),
  },
} as const satisfies Record<string, Fusion>

export type FusionName = keyof typeof fusions
export const fusionNames = Object.keys(fusions) as FusionName[]
/** Fusions to switch off (false); all are on otherwise. */
export type FusionChoice = Readonly<Partial<Record<FusionName, boolean>>>

export function fuse(graph: Graph, choice: FusionChoice = {}): Graph {
  return fusionNames.reduce((g, name) => (choice[name] === false ? g : fusions[name].apply(g)), graph)
}

/** Who defines and who reads each register. */
class Uses {
  readonly #producers = new Map<number, number>()
  /** Once for each read; undefined: the plan's output, which is read after the last instruction. */
  readonly #readers = new Map<number, (Node | undefined)[]>()
  readonly #graph: Graph
  constructor(graph: Graph) {
    this.#graph = graph
    for (const [index, node] of graph.nodes.entries()) {
      for (const register of Object.values(node.outputs)) this.#producers.set(register, index)
      for (const { register } of Object.values(node.inputs)) this.#addReader(register, node)
    }
    for (const register of Object.values(graph.outputs)) this.#addReader(register, undefined)
  }

  #addReader(register: number, node: Node | undefined): void {
    const readers = this.#readers.get(register)
    if (readers) readers.push(node)
    else this.#readers.set(register, [node])
  }

  /** Nodes that read a register, once for each read; undefined: the plan's output. */
  readers(register: number): readonly (Node | undefined)[] {
    return this.#readers.get(register) ?? []
  }

  /** Index of the node that defines a value. */
  producer(value: Value): number {
    return this.#producers.get(value.register)!
  }

  /** The node that defines a value. */
  node(value: Value): Node {
    return this.#graph.nodes[this.producer(value)]!
  }

  /** The node of opcode `op` that defines all of `value`, when nothing else reads it. */
  sole(value: Value | undefined, op: Node['op']): Node | undefined {
    if (value?.column !== 0 || this.readers(value.register).length !== 1) return undefined
    const node = this.node(value)
    return node.op === op && value.width === this.#graph.registers[value.register]!.width ? node : undefined
  }
}

/** Names that differ in one dotted segment, as one: a.q.w, a.k.w -> a.q+k.w. */
export function joinNames(names: readonly string[]): string {
  const rows = names.map((name) => name.split('.'))
  const differing = rows[0]!.flatMap((_, i) => (rows.some((row) => row[i] !== rows[0]![i]) ? [i] : []))
  if (differing.length !== 1 || rows.some((row) => row.length !== rows[0]!.length)) return names.join('+')
  const [at] = differing
  return rows[0]!.map((segment, i) => (i === at ? rows.map((row) => row[i]).join('+') : segment)).join('.')
}

/** Weights one below the other; vectors one after the other. */
function concatenate(weights: readonly Weight[], vectors: boolean): Weight {
  const [first] = weights as [Weight]
  const sum = (size: 'rows' | 'cols') => weights.reduce((total, weight) => total + weight[size], 0)
  return Object.freeze({
    ...first,
    name: joinNames(weights.map(({ name }) => name)),
    rows: vectors ? 1 : sum('rows'),
    cols: vectors ? sum('cols') : first.cols,
    parts: weights.flatMap(({ parts }) => parts),
  })
}

const sameValue = (a: Value, b: Value) => a.register === b.register && a.column === b.column && a.width === b.width

/** Whether linears can be one: same input, epilogue and weight dtype, and all or none with a bias. */
function mergeable(linears: readonly Node[]): boolean {
  const [first] = linears as [Node]
  return (
    new Set(linears).size > 1 &&
    linears.every(
      (node) =>
        sameValue(node.inputs.x!, first.inputs.x!) &&
        !node.inputs.residual &&
        node.params.activation === first.params.activation &&
        node.weights.weight!.dtype === first.weights.weight!.dtype &&
        !node.weights.bias === !first.weights.bias,
    )
  )
}

/** The linear at the start of a value's chain of per-head norm and rope, each link read only by the next. */
function projection(uses: Uses, value: Value | undefined): Node | undefined {
  const link = uses.sole(value, 'rope') ?? uses.sole(value, 'rms_norm')
  return link ? projection(uses, link.inputs.x) : uses.sole(value, 'linear')
}

/** Merges the linears that feed the `slots` of each `op` node into one, whose columns they become views of. */
function mergeProjections(graph: Graph, op: Node['op'], slots: readonly string[]): Graph {
  const uses = new Uses(graph)
  const registers = [...graph.registers]
  const merged = new Map<Node, Node | undefined>()
  const views = new Map<number, Value>()
  for (const consumer of graph.nodes.filter((node) => node.op === op)) {
    const linears = slots.map((slot) => projection(uses, consumer.inputs[slot]))
    if (!linears.every((node) => node !== undefined) || !mergeable(linears)) continue
    const width = linears.reduce((sum, node) => sum + node.params.n!, 0)
    const out = registers.push(Object.freeze({ ...registers[linears[0]!.outputs.out!]!, width })) - 1
    let column = 0
    for (const node of linears) {
      merged.set(node, undefined)
      views.set(node.outputs.out!, Object.freeze({ register: out, column, width: node.params.n! }))
      column += node.params.n!
    }
    const first = linears.toSorted((a, b) => graph.nodes.indexOf(a) - graph.nodes.indexOf(b))[0]!
    merged.set(first, mergedLinear(linears, width, out))
  }
  const nodes = graph.nodes.flatMap((node) => (merged.has(node) ? (merged.get(node) ?? []) : node))
  return { ...graph, registers, nodes: nodes.map((node) => substitute(node, views)) }
}

function mergedLinear(linears: readonly Node[], n: number, out: number): Node {
  const weights = (slot: string) => linears.flatMap((node) => node.weights[slot] ?? [])
  const bias = weights('bias')
  return Object.freeze({
    ...linears[0]!,
    label: joinNames(linears.map(({ label }) => label)),
    outputs: { out },
    weights: {
      weight: concatenate(weights('weight'), false),
      ...(bias.length ? { bias: concatenate(bias, true) } : {}),
    },
    params: { ...linears[0]!.params, n },
  })
}

/** The node with every read of a register in `views` redirected to the view. */
function substitute(node: Node, views: ReadonlyMap<number, Value>): Node {
  const redirect = (value: Value): Value => {
    const view = views.get(value.register)
    return view ? { register: view.register, column: view.column + value.column, width: value.width } : value
  }
  const inputs = Object.entries(node.inputs).map(([name, value]) => [name, redirect(value)] as const)
  return Object.freeze({ ...node, inputs: Object.fromEntries(inputs) })
}

/** What a local rewrite does: nodes to put in the place of others; an empty place is dropped. */
type Rewrite = ReadonlyMap<Node, Node | undefined>

/** Applies `rewrite` at every node of opcode `op`. */
function rewriteEach(graph: Graph, op: Node['op'], rewrite: (node: Node, uses: Uses) => Rewrite | undefined): Graph {
  const uses = new Uses(graph)
  const changes = new Map<Node, Node | undefined>()
  for (const node of graph.nodes)
    if (node.op === op) for (const [from, to] of rewrite(node, uses) ?? []) changes.set(from, to)
  return { ...graph, nodes: graph.nodes.flatMap((node) => (changes.has(node) ? (changes.get(node) ?? []) : node)) }
}

/** x + linear(y) -> linear(y, residual: x). */
function foldResidual(node: Node, uses: Uses): Rewrite | undefined {
  const linear = uses.sole(node.inputs.y, 'linear')
  const x = node.inputs.x!
  if (!linear || linear.inputs.residual || node.params.scale !== 1) return undefined
  // The linear stays where it is, so the stream must be there already.
  if (uses.producer(x) >= uses.producer(node.inputs.y!)) return undefined
  const label = joinNames([linear.label, node.label])
  const folded = { ...linear, label, inputs: { ...linear.inputs, residual: x }, outputs: node.outputs }
  return new Map([
    [linear, Object.freeze(folded)],
    [node, undefined],
  ])
}

/** glu(columns of one linear) -> the linear with two branches. Their rows must fill whole runs. */
function foldGlu(node: Node, uses: Uses): Rewrite | undefined {
  const { gate, up } = node.inputs as { gate: Value; up: Value }
  const n = node.params.width!
  const halves = gate.register === up.register && gate.column === 0 && up.column === n
  const linear = uses.readers(gate.register).length === 2 ? uses.node(gate) : undefined
  if (!halves || linear?.op !== 'linear' || linear.params.n !== 2 * n || n % BRANCH_RUN !== 0) return undefined
  if (linear.inputs.residual || linear.params.activation !== 0 || linear.params.branches !== 1) return undefined
  const { norm, ...products } = linear.weights
  const branches = Object.entries(products).map(([slot, weight]) => [slot, Object.freeze({ ...weight, branches: 2 })])
  const folded = {
    ...linear,
    label: joinNames([linear.label, node.label]),
    outputs: node.outputs,
    weights: { ...Object.fromEntries(branches), ...(norm && { norm }) },
    params: { ...linear.params, n, branches: 2, activation: node.params.activation! },
  }
  return new Map([
    [linear, Object.freeze(folded)],
    [node, undefined],
  ])
}

/** linear(rms_norm(x)) -> linear(x) that normalises; for all the norm's readers or none, or it would be kept as well. */
function foldNorm(node: Node, uses: Uses): Rewrite | undefined {
  const { eps, weight_offset, count } = node.params
  const { weight: norm } = node.weights
  const readers = uses.readers(node.outputs.out!)
  if (!norm || count !== 1 || readers.length === 0) return undefined
  const folds = new Map<Node, Node | undefined>([[node, undefined]])
  for (const linear of readers) {
    if (linear?.op !== 'linear' || linear.weights.norm || folds.has(linear)) return undefined
    const { register, width } = linear.inputs.x!
    if (register !== node.outputs.out || width !== node.params.width) return undefined
    const folded = {
      ...linear,
      inputs: { ...linear.inputs, x: node.inputs.x! },
      weights: { ...linear.weights, norm },
      params: { ...linear.params, norm_eps: eps!, norm_offset: weight_offset! },
    }
    folds.set(linear, Object.freeze(folded))
  }
  return folds
}

/** attention(rope(q), rope(k), v) -> attention(q, k, v) that rotates. */
function foldRope(node: Node, uses: Uses): Rewrite | undefined {
  const [q, k] = [uses.sole(node.inputs.q, 'rope'), uses.sole(node.inputs.k, 'rope')]
  if (!q || !k || node.weights.inv_freq) return undefined
  const alike = ['dim', 'style', 'attention_factor'].every((name) => q.params[name] === k.params[name])
  if (!alike || q.weights.inv_freq!.name !== k.weights.inv_freq!.name) return undefined
  const folded = {
    ...node,
    inputs: { ...node.inputs, q: q.inputs.x!, k: k.inputs.x! },
    weights: { ...node.weights, inv_freq: q.weights.inv_freq! },
    params: {
      ...node.params,
      rope_dim: q.params.dim!,
      rope_style: q.params.style!,
      attention_factor: q.params.attention_factor!,
    },
  }
  return new Map<Node, Node | undefined>([
    [q, undefined],
    [k, undefined],
    [node, Object.freeze(folded)],
  ])
}

/** attention(rms_norm(q), rms_norm(k), v) -> attention(q, k, v) that normalises each head of q and k. */
function foldHeadNorms(node: Node, uses: Uses): Rewrite | undefined {
  const [q, k] = [uses.sole(node.inputs.q, 'rms_norm'), uses.sole(node.inputs.k, 'rms_norm')]
  if (!q || !k || node.weights.q_norm || node.weights.k_norm) return undefined
  const perHead = (norm: Node) => norm.params.width === node.params.head_dim && norm.weights.weight
  const alike = ['eps', 'weight_offset'].every((name) => q.params[name] === k.params[name])
  if (!perHead(q) || !perHead(k) || !alike) return undefined
  const folded = {
    ...node,
    inputs: { ...node.inputs, q: q.inputs.x!, k: k.inputs.x! },
    weights: { ...node.weights, q_norm: q.weights.weight!, k_norm: k.weights.weight! },
    params: { ...node.params, norm_eps: q.params.eps!, norm_offset: q.params.weight_offset! },
  }
  return new Map<Node, Node | undefined>([
    [q, undefined],
    [k, undefined],
    [node, Object.freeze(folded)],
  ])
}
