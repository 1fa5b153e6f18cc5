/** Valid plans in any number: random graphs over every opcode, and the topologies at small sizes, through the passes. */
import fc from 'fast-check'
import { dtypes } from '../../abi/dtypes.ts'
import { activations } from '../../abi/ops/define.ts'
import { type FusionName, fuse, fusionNames } from '../../models/compile/fuse.ts'
import { lower } from '../../models/compile/lower.ts'
import {
  type Quantization,
  quantizations,
  quantize,
  quantizeStates,
  stateFormats,
} from '../../models/compile/quantize.ts'
import { checkShapes } from '../../models/compile/shapes.ts'
import { type Graph, GraphBuilder, type Value, type Weight } from '../../models/graph.ts'
import { findTopology } from '../../models/index.ts'
import type { TensorEntry } from '../../models/safetensors.ts'
import type { ModelShape } from '../../models/topology.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'

type FloatDType = 'f32' | 'f16' | 'bf16'

/** A builder over a checkpoint that has whatever tensor is asked of it. */
class Inventing extends GraphBuilder {
  readonly #entries: Map<string, TensorEntry>
  readonly #dtype: FloatDType
  #count = 0

  constructor(dtype: FloatDType) {
    const entries = new Map<string, TensorEntry>()
    super(entries, 'invented')
    this.#entries = entries
    this.#dtype = dtype
  }
  override weight(name: string, shape: readonly [number] | readonly [number, number]): Weight {
    const dtype = dtypes[this.#dtype].safetensors
    this.#entries.set(name, { name, shape, dtype, file: 'invented', offset: 0, bytes: 0 } as TensorEntry)
    return super.weight(name, shape)
  }
  /** A weight of its own. */
  fresh(...shape: [number] | [number, number]): Weight {
    return this.weight(`w${this.#count++}`, shape)
  }
  label(op: string): string {
    return `${op}.${this.#count++}`
  }
}

interface Passes {
  readonly quantization: Quantization
  readonly state: (typeof stateFormats)[number]
  readonly fusions: Readonly<Partial<Record<FusionName, boolean>>>
}

function compiled(graph: Graph, name: string, shape: ModelShape, { quantization, state, fusions }: Passes) {
  return lower(checkShapes(quantizeStates(quantize(fuse(graph, fusions), quantization), state)), name, shape).plan
}

// --- topologies

const config = {
  vocab_size: 37,
  hidden_size: 33,
  intermediate_size: 35,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  num_key_value_heads: 1,
  head_dim: 10,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 64,
  rope_theta: 10_000,
  hidden_act: 'silu',
  torch_dtype: 'bfloat16',
  eos_token_id: 2,
}

/** A config each that turns on what the family has. */
const families = {
  llama: { architectures: ['LlamaForCausalLM'], tie_word_embeddings: false, attention_bias: true },
  mistral: { architectures: ['MistralForCausalLM'], tie_word_embeddings: true, sliding_window: 16 },
  qwen3: { architectures: ['Qwen3ForCausalLM'], tie_word_embeddings: false },
} as const

export interface NamedPlan {
  readonly name: string
  readonly plan: ExecutionPlan
}

/** Every topology in every precision, fused and, in bf16, as traced. */
export function topologyPlans(): NamedPlan[] {
  const off = Object.fromEntries(fusionNames.map((name) => [name, false]))
  const forms: readonly (Passes & { readonly dtype: FloatDType })[] = [
    { dtype: 'bf16', quantization: 'none', state: 'checkpoint', fusions: {} },
    { dtype: 'bf16', quantization: 'none', state: 'checkpoint', fusions: off },
    { dtype: 'f32', quantization: 'none', state: 'q8', fusions: {} },
    { dtype: 'f16', quantization: 'q8', state: 'checkpoint', fusions: {} },
    { dtype: 'bf16', quantization: 'q4', state: 'q8', fusions: {} },
    { dtype: 'bf16', quantization: 'fp8', state: 'checkpoint', fusions: {} },
  ]
  return Object.entries(families).flatMap(([family, special]) =>
    forms.map(({ dtype, ...passes }) => {
      const topology = findTopology(special.architectures, family)
      const parsed = topology.parse({ ...config, ...special }, family)
      const builder = new Inventing(dtype)
      topology.build(builder, parsed)
      const plan = compiled(builder.finish().graph, family, topology.shape(parsed), passes)
      const { quantization, state, fusions } = passes
      const name = `${family} ${dtype} ${quantization}, state ${state}${fusions === off ? ', unfused' : ''}`
      return { name, plan }
    }),
  )
}

// --- random graphs

/** One instruction of a random graph: which values it reads, and three numbers for its sizes. */
interface Choice {
  readonly kind: (typeof kinds)[number]
  readonly a: number
  readonly b: number
  readonly n: number
  readonly m: number
  readonly flag: boolean
}

/** Builds onto a graph of token values. */
class Sketch {
  readonly graph: Inventing
  readonly values: Value[] = []
  readonly dtype: FloatDType
  constructor(dtype: FloatDType) {
    this.graph = new Inventing(dtype)
    this.dtype = dtype
  }

  pick(index: number): Value {
    return this.values[index % this.values.length]!
  }
  /** A picked value of `width` columns: part of one that is wide enough, or a projection. */
  wide(index: number, width: number): Value {
    const fitting = this.values.filter((value) => value.width >= width)
    const value = fitting[index % Math.max(1, fitting.length)]
    if (!value) return this.linear(this.pick(index), width)
    const column = value.column + ((index * 7) % (value.width - width + 1))
    return { register: value.register, column, width }
  }
  linear(x: Value, n: number, rest: { bias?: boolean; activation?: number; residual?: Value } = {}): Value {
    const { graph } = this
    const weights = { weight: graph.fresh(n, x.width), bias: rest.bias ? graph.fresh(n) : undefined }
    return graph.add('linear', graph.label('linear'), {
      inputs: { x, residual: rest.residual },
      weights,
      params: { n, k: x.width, activation: rest.activation ?? 0 },
    }).out
  }
}

const functions = Object.values(activations)

/** Appends one instruction (and what projects its inputs); answers its output. */
const builders = {
  linear: (s: Sketch, { a, b, n, flag }: Choice) => {
    const residual = flag ? s.values.find(({ width }) => width === n) : undefined
    return s.linear(s.pick(a), n, {
      bias: b % 2 > 0,
      activation: functions[b % functions.length]!,
      ...(residual && { residual }),
    })
  },
  rms_norm: (s: Sketch, { a, flag }: Choice) => {
    const { graph } = s
    const x = s.pick(a)
    const count = x.width % 2 === 0 && flag ? 2 : 1
    const width = x.width / count
    const weights = flag ? { weight: graph.fresh(width) } : {}
    return graph.add('rms_norm', graph.label('norm'), { inputs: { x }, weights, params: { width, count, eps: 1e-5 } })
      .out
  },
  layer_norm: (s: Sketch, { a, b, flag }: Choice) => {
    const { graph } = s
    const x = s.pick(a)
    const weights = { weight: flag ? graph.fresh(x.width) : undefined, bias: b % 2 ? graph.fresh(x.width) : undefined }
    return graph.add('layer_norm', graph.label('norm'), {
      inputs: { x },
      weights,
      params: { width: x.width, eps: 1e-6 },
    }).out
  },
  rope: (s: Sketch, { a, n, m, flag }: Choice) => {
    const [heads, headDim] = [1 + (m % 3), 2 + (n % 17)]
    const dim = 2 * (1 + (m % Math.floor(headDim / 2)))
    const { graph } = s
    return graph.add('rope', graph.label('rope'), {
      inputs: { x: s.wide(a, heads * headDim) },
      weights: { inv_freq: graph.constant(`inv_freq.${dim}`, new Float32Array(dim / 2).fill(0.5)) },
      params: { heads, head_dim: headDim, dim, style: Number(flag) },
    }).out
  },
  attention: (s: Sketch, { a, b, n, m, flag }: Choice) => {
    const [kvHeads, group, headDim] = [1 + (m % 2), 1 + (n % 3), 2 + (n % 19)]
    const { graph } = s
    const at = graph.label('attention')
    const causal = m % 5 === 0 ? 0 : 1
    const rope = flag ? 2 * (1 + (m % Math.floor(headDim / 2))) : 0
    return graph.add('attention', at, {
      inputs: {
        q: s.wide(a, kvHeads * group * headDim),
        k: s.wide(b, kvHeads * headDim),
        v: s.wide(a + b, kvHeads * headDim),
      },
      weights: {
        inv_freq: rope ? graph.constant(`inv_freq.${rope}`, new Float32Array(rope / 2).fill(0.3)) : undefined,
        q_norm: b % 2 ? graph.fresh(headDim) : undefined,
        k_norm: b % 3 ? graph.fresh(headDim) : undefined,
      },
      states: { kv: causal ? { name: `${at}.kv`, dtype: s.dtype } : undefined },
      params: {
        heads: kvHeads * group,
        kv_heads: kvHeads,
        head_dim: headDim,
        scale: 0.3,
        causal,
        window: m % 3 ? 0 : n,
        softcap: a % 4 ? 0 : 5,
        rope_dim: rope,
        norm_eps: 1e-6,
      },
    }).out
  },
  glu: (s: Sketch, { a, b, n }: Choice) => {
    const both = s.linear(s.pick(a), 2 * n)
    const [gate, up] = [
      { ...both, width: n },
      { ...both, column: n, width: n },
    ]
    const activation = functions[b % functions.length]!
    return s.graph.add('glu', s.graph.label('glu'), { inputs: { gate, up }, params: { width: n, activation } }).out
  },
  activation: (s: Sketch, { a, b }: Choice) => {
    const x = s.pick(a)
    const params = { width: x.width, activation: functions[b % functions.length]! }
    return s.graph.add('activation', s.graph.label('activation'), { inputs: { x }, params }).out
  },
  residual: (s: Sketch, { a, b, flag }: Choice) => {
    const x = s.pick(a)
    const params = { width: x.width, scale: flag ? 1 : 0.5 }
    return s.graph.add('residual', s.graph.label('residual'), { inputs: { x, y: s.wide(b, x.width) }, params }).out
  },
  multiply: (s: Sketch, { a, b }: Choice) => {
    const x = s.pick(a)
    const inputs = { x, y: s.wide(b, x.width) }
    return s.graph.add('multiply', s.graph.label('multiply'), { inputs, params: { width: x.width } }).out
  },
  conv_state: (s: Sketch, { a, n, flag }: Choice) => {
    const [x, kernel] = [s.pick(a), 2 + (n % 3)]
    const at = s.graph.label('conv')
    return s.graph.add('conv_state', at, {
      inputs: { x },
      weights: { weight: s.graph.fresh(x.width, kernel), bias: flag ? s.graph.fresh(x.width) : undefined },
      states: { window: { name: `${at}.window`, dtype: 'f32' } },
      params: { channels: x.width, kernel, history: kernel - 1, activation: 1 },
    }).out
  },
  ssm_scan: (s: Sketch, { a, b, n, m }: Choice) => {
    const [groups, group, headDim, state] = [1 + (m % 2), 1 + (n % 2), 1 + (n % 9), 1 + (m % 7)]
    const heads = groups * group
    const at = s.graph.label('ssm')
    const weights = { a_log: s.graph.fresh(heads), d: s.graph.fresh(heads), dt_bias: s.graph.fresh(heads) }
    return s.graph.add('ssm_scan', at, {
      inputs: {
        x: s.wide(a, heads * headDim),
        dt: s.wide(b, heads),
        b: s.wide(a + 1, groups * state),
        c: s.wide(b + 1, groups * state),
      },
      weights,
      states: { scan: { name: `${at}.scan`, dtype: 'f32' } },
      params: { heads, head_dim: headDim, groups, state },
    }).out
  },
  delta_rule: (s: Sketch, { a, b, n, m, flag }: Choice) => {
    const [keyHeads, group, keyDim, valueDim] = [1 + (m % 2), 1 + (n % 2), 1 + (n % 5), 1 + (m % 6)]
    const heads = keyHeads * group
    const at = s.graph.label('delta')
    return s.graph.add('delta_rule', at, {
      inputs: {
        q: s.wide(a, keyHeads * keyDim),
        k: s.wide(b, keyHeads * keyDim),
        v: s.wide(a + 1, heads * valueDim),
        beta: s.wide(b + 1, heads),
        decay: s.wide(a + b, heads),
      },
      states: { memory: { name: `${at}.memory`, dtype: 'f32' } },
      params: { heads, key_heads: keyHeads, key_dim: keyDim, value_dim: valueDim, scale: 0.5, normalize: Number(flag) },
    }).out
  },
  moe: (s: Sketch, { a, n, m, flag }: Choice) => {
    const [x, ff, experts] = [s.pick(a), 1 + (n % 12), 1 + (m % 4)]
    const { graph } = s
    const { width } = x
    const router = s.linear(x, experts)
    return graph.add('moe', graph.label('moe'), {
      inputs: { x, router_logits: router },
      weights: {
        gate: graph.fresh(experts * ff, width),
        up: graph.fresh(experts * ff, width),
        down: graph.fresh(experts * width, ff),
      },
      params: { width, ff, experts, top_k: 1 + (m % experts), activation: 1, router: m % 2, normalize: Number(flag) },
    }).out
  },
} as const satisfies Record<string, (sketch: Sketch, choice: Choice) => Value>

const kinds = Object.keys(builders) as (keyof typeof builders)[]

interface Script extends Passes {
  readonly dtype: FloatDType
  readonly vocab: number
  readonly width: number
  readonly context: number
  readonly positions: boolean
  readonly choices: readonly Choice[]
  readonly tail: 'decoder' | 'rows' | 'pool'
  readonly pooling: number
}

/** Ends the graph; answers the width of its hidden output, 1 where it has none. */
const tails = {
  decoder: ({ graph, values }: Sketch, { vocab, context, pooling }: Script) => {
    const x = values.at(-1)!
    const rows = graph.add('gather_rows', 'rows', { inputs: { x }, params: { width: x.width } }).out
    const logits = graph.add('logits', 'head', {
      inputs: { x: rows },
      weights: { weight: graph.fresh(vocab, x.width), bias: pooling ? graph.fresh(vocab) : undefined },
      params: { vocab, k: x.width, softcap: context % 2 ? 3 : 0 },
    }).out
    const { tokens, logprobs, top_tokens } = graph.add('sample', 'sample', { inputs: { logits }, params: { vocab } })
    graph.output('tokens', tokens)
    graph.output('logprobs', logprobs)
    graph.output('top_tokens', top_tokens)
    if (pooling) graph.output('logits', logits)
    if (pooling > 1) graph.output('hidden', rows)
    return pooling > 1 ? x.width : 1
  },
  rows: ({ graph, values }: Sketch) => {
    const x = values.at(-1)!
    graph.output('hidden', graph.add('gather_rows', 'rows', { inputs: { x }, params: { width: x.width } }).out)
    return x.width
  },
  pool: ({ graph, values }: Sketch, { pooling }: Script) => {
    const x = values.at(-1)!
    const params = { width: x.width, mode: pooling, normalize: pooling % 2 }
    graph.output('hidden', graph.add('pool', 'pool', { inputs: { x }, params }).out)
    return x.width
  },
} as const

function planOf(script: Script): ExecutionPlan {
  const { vocab, width, context, positions, choices, tail } = script
  const sketch = new Sketch(script.dtype)
  const { graph, values } = sketch
  const extra = positions ? { positions: graph.fresh(context + 2, width), types: graph.fresh(2, width) } : {}
  const more = positions ? { positions: context + 2, position_offset: 2, types: 2 } : {}
  const table = graph.fresh(vocab, width)
  values.push(graph.add('embed', 'embed', { weights: { table, ...extra }, params: { vocab, width, ...more } }).out)
  for (const choice of choices) values.push(builders[choice.kind](sketch, choice))
  const hidden = tails[tail](sketch, script)
  return compiled(graph.finish().graph, 'random', { vocab, hidden, maxContext: context }, script)
}

const choice = fc.record<Choice>({
  kind: fc.constantFrom(...kinds),
  a: fc.nat(50),
  b: fc.nat(50),
  n: fc.integer({ min: 1, max: 40 }),
  m: fc.nat(30),
  flag: fc.boolean(),
})

/** Plans of random graphs through random passes: every opcode, widths from 1, shared values, each kind of output. */
export const randomPlan: fc.Arbitrary<ExecutionPlan> = fc
  .record<Script>({
    dtype: fc.constantFrom<FloatDType>('f32', 'f16', 'bf16'),
    vocab: fc.integer({ min: 1, max: 50 }),
    width: fc.integer({ min: 1, max: 70 }),
    context: fc.integer({ min: 40, max: 90 }),
    positions: fc.boolean(),
    choices: fc.array(choice, { maxLength: 9 }),
    tail: fc.constantFrom('decoder', 'rows', 'pool'),
    pooling: fc.nat(2),
    quantization: fc.constantFrom(...quantizations),
    state: fc.constantFrom(...stateFormats),
    fusions: fc.record(Object.fromEntries(fusionNames.map((name) => [name, fc.boolean()]))),
  })
  .map(planOf)

/** The first `count` plans of a seed. */
export const randomPlans = (count: number, seed: number): ExecutionPlan[] =>
  fc.sample(randomPlan, { numRuns: count, seed })
