/**
 * A small whole language model for every kind of state, and a hand that drives its runner: what the laws of states
 * (states.test.ts), the invariance of recurrent states and injected faults are shown on.
 */
import { createHash } from 'node:crypto'
import { activations } from '../abi/ops/define.ts'
import { createResult, createStep, type StepLimits, stepHeader } from '../abi/step.ts'
import { type BackendName, backendOf, backends } from '../compute/backends.ts'
import type { LinkedPackage, Runner } from '../compute/device.ts'
import { Model, type OpenOptions } from '../index.ts'
import { capacity } from '../inference/capacity.ts'
import type { GraphBuilder, Value } from '../models/graph.ts'
import { type BatchInput, packStep } from './batch.ts'
import { type CaseTensor, inputTensor, matrixTensor, rowTensor } from './ops/case.ts'
import { packageCase } from './ops/open.ts'

const WIDTH = 16
export const VOCAB = 67
const EPS = 1e-5

/** One layer that carries state: x (WIDTH) -> (WIDTH). */
interface Mixer {
  readonly tensors: readonly CaseTensor[]
  readonly build: (graph: GraphBuilder, label: string, x: Value) => Value
}

export interface StateModel {
  readonly name: string
  /** Whether state can be taken back to any position, and a sequence forked there. */
  readonly rewinds: boolean
  /** That run it; the reference, to which states of any dtype are one, not of each. */
  readonly backends: readonly BackendName[]
  readonly mixers: readonly Mixer[]
}

/** Consecutive columns of `x`. */
function columns(x: Value, ...widths: readonly number[]): Value[] {
  let end = x.column
  return widths.map((width) => {
    end += width
    return { register: x.register, column: end - width, width }
  })
}

const project = (graph: GraphBuilder, label: string, x: Value, n: number): Value => {
  const weight = graph.weight(`in${n}`, [n, WIDTH])
  return graph.add('linear', `${label}.in`, { inputs: { x }, weights: { weight }, params: { n, k: WIDTH } }).out
}

/** Two query heads over one of keys and values, with rope. */
const attention = (dtype: 'f32' | 'bf16' | 'i8', window = 0): Mixer => ({
  tensors: [rowTensor('inv_freq', WIDTH / 4), matrixTensor('in32', 2 * WIDTH, WIDTH, 'f32')],
  build: (graph, label, x) => {
    const [q, k, v] = columns(project(graph, label, x, 2 * WIDTH), WIDTH, WIDTH / 2, WIDTH / 2)
    return graph.add('attention', label, {
      inputs: { q: q!, k: k!, v: v! },
      weights: { inv_freq: graph.weight('inv_freq', [WIDTH / 4]) },
      states: { kv: { name: `${label}.kv`, dtype } },
      params: { heads: 2, kv_heads: 1, head_dim: WIDTH / 2, scale: 0.5, window, rope_dim: WIDTH / 2 },
    }).out
  },
})

const convolution: Mixer = {
  tensors: [{ name: 'taps', shape: [WIDTH, 4], dtype: 'f32' }],
  build: (graph, label, x) =>
    graph.add('conv_state', label, {
      inputs: { x },
      weights: { weight: graph.weight('taps', [WIDTH, 4]) },
      states: { window: { name: `${label}.window`, dtype: 'f32' } },
      params: { channels: WIDTH, kernel: 4, history: 3, activation: activations.silu },
    }).out,
}

const ssm: Mixer = {
  tensors: [matrixTensor('in26', 26, WIDTH, 'f32'), ...['a_log', 'd', 'dt_bias'].map((name) => rowTensor(name, 2))],
  build: (graph, label, x) => {
    const [inner, dt, b, c] = columns(project(graph, label, x, 26), WIDTH, 2, 4, 4)
    const [a_log, d, dt_bias] = ['a_log', 'd', 'dt_bias'].map((name) => graph.weight(name, [2]))
    return graph.add('ssm_scan', label, {
      inputs: { x: inner!, dt: dt!, b: b!, c: c! },
      weights: { a_log: a_log!, d: d!, dt_bias: dt_bias! },
      states: { scan: { name: `${label}.scan`, dtype: 'f32' } },
      params: { heads: 2, head_dim: WIDTH / 2, groups: 1, state: 4 },
    }).out
  },
}

const delta: Mixer = {
  tensors: [matrixTensor('in28', 28, WIDTH, 'f32')],
  build: (graph, label, x) => {
    const [q, k, v, gates] = columns(project(graph, label, x, 28), 4, 4, WIDTH, 4)
    const sigmoid = graph.add('activation', `${label}.sigmoid`, {
      inputs: { x: gates! },
      params: { width: 4, activation: activations.sigmoid },
    }).out
    // (1 - 1.1) x: a decay below 0
    const small = graph.add('residual', `${label}.decay`, {
      inputs: { x: sigmoid, y: sigmoid },
      params: { width: 4, scale: -1.1 },
    }).out
    return graph.add('delta_rule', label, {
      inputs: { q: q!, k: k!, v: v!, beta: columns(sigmoid, 2)[0]!, decay: columns(small, 2, 2)[1]! },
      states: { memory: { name: `${label}.memory`, dtype: 'f32' } },
      params: { heads: 2, key_heads: 1, key_dim: 4, value_dim: WIDTH / 2, scale: 0.5, normalize: 1 },
    }).out
  },
}

const paged = { rewinds: true, backends: ['cpu'] } as const
/** The CPU has no kernels for recurrences. */
const recurrent = { rewinds: false, backends: ['reference'] } as const
export const stateModels: readonly StateModel[] = [
  { ...paged, name: 'paged bf16', mixers: [attention('bf16'), attention('bf16')] },
  { ...paged, name: 'paged f32', backends: ['cpu', 'reference'], mixers: [attention('f32')] },
  { ...paged, name: 'paged q8', mixers: [attention('i8')] },
  { ...paged, name: 'window of 20', backends: ['cpu', 'reference'], mixers: [attention('bf16', 20), attention('f32')] },
  { ...recurrent, name: 'convolution', mixers: [convolution] },
  { ...recurrent, name: 'ssm', mixers: [ssm] },
  { ...recurrent, name: 'delta rule', mixers: [delta] },
  { ...recurrent, name: 'attention and recurrences', mixers: [attention('f32', 20), convolution, ssm, delta] },
]

/** Each model on each of its backends that is here. */
export const stateCases = stateModels.flatMap((model) =>
  model.backends.filter((name) => !backends[name].unavailable()).map((backend) => ({ ...model, backend })),
)

/** The package of a model: embedding, a normed mixer on the residual stream for each layer, head and sampler. */
export function packageStates({ name, mixers }: StateModel, folder: string): Promise<LinkedPackage> {
  const unique = new Map(mixers.flatMap(({ tensors }) => tensors).map((tensor) => [tensor.name, tensor]))
  return packageCase(
    {
      op: 'sample',
      name: `states, ${name}`,
      vocab: VOCAB,
      tensors: [inputTensor(WIDTH), rowTensor('norm', WIDTH), ...unique.values()],
      build: (graph) => {
        const table = graph.weight('input', [VOCAB, WIDTH])
        const norm = (label: string, x: Value) =>
          graph.add('rms_norm', label, {
            inputs: { x },
            weights: { weight: graph.weight('norm', [WIDTH]) },
            params: { width: WIDTH, count: 1, eps: EPS, weight_offset: 1 },
          }).out
        let x = graph.add('embed', 'embed', { weights: { table }, params: { vocab: VOCAB, width: WIDTH } }).out
        for (const [i, mixer] of mixers.entries()) {
          const y = mixer.build(graph, `layers.${i}.mixer`, norm(`layers.${i}.norm`, x))
          x = graph.add('residual', `layers.${i}.residual`, { inputs: { x, y }, params: { width: WIDTH } }).out
        }
        const rows = graph.add('gather_rows', 'gather_rows', { inputs: { x }, params: { width: WIDTH } }).out
        const hidden = norm('norm', rows)
        const head = { inputs: { x: hidden }, weights: { weight: table }, params: { vocab: VOCAB, k: WIDTH } }
        const { out: logits } = graph.add('logits', 'logits', head)
        const sampled = graph.add('sample', 'sample', { inputs: { logits }, params: { vocab: VOCAB } })
        for (const [output, value] of Object.entries({ ...sampled, logits, hidden }))
          graph.output(output as 'tokens', value)
      },
      steps: [],
      tolerance: 0,
    },
    folder,
  )
}

/** Opens a linked package as index.ts opens one from disk; `wrap` may stand between engine and runner. */
export async function openLinked(
  pkg: LinkedPackage,
  { backend = 'cpu', threads = 1, isa = '', pipelined, ...sizes }: OpenOptions,
  wrap: (runner: Runner) => Runner = (runner) => runner,
): Promise<Model> {
  const fixed = capacity(pkg.plan, sizes, pkg.path)
  const { limits, blocks, slots } = fixed
  const runner = wrap(await backendOf(backend).open(pkg, { limits, blocks, slots, threads, isa, pipelined }))
  const { plan, path } = pkg
  const generation = { eosTokens: [], options: {} }
  return new Model({ runner, plan, hash: '', integrity: 'structure', path, capacity: fixed, generation })
}

const limits: StepLimits = {
  tokens: 128,
  rows: 128,
  sequences: 4,
  blocksPerSequence: 4,
  history: 8,
  biases: 4,
  copies: 16,
}
/** Positions that a sequence of the hand can have: blocksPerSequence blocks of 32. */
export const MOST = 128

/** Where a sequence keeps its state. */
export interface Place {
  readonly slot: number
  readonly blocks: readonly number[]
}
/** Four places that share nothing; blocks out of order. */
export const places: readonly Place[] = [
  { slot: 1, blocks: [3, 9, 5, 1] },
  { slot: 4, blocks: [2, 4, 16, 8] },
  { slot: 2, blocks: [15, 7, 13, 6] },
  { slot: 3, blocks: [10, 11, 12, 14] },
]

/** Every byte of a sequence's state: its units, by state of the plan. */
export type Snapshot = readonly (readonly Uint8Array[])[]

export function digest(...arrays: readonly (Float32Array | Uint8Array)[]): string {
  const hash = createHash('sha256')
  for (const array of arrays) hash.update(array)
  return hash.digest('hex').slice(0, 16)
}

/** Steps a runner by hand: no scheduler, no engine. */
export class Hand {
  readonly runner: Runner
  readonly #pkg: LinkedPackage

  private constructor(runner: Runner, pkg: LinkedPackage) {
    this.runner = runner
    this.#pkg = pkg
  }

  static async open(pkg: LinkedPackage, backend: string): Promise<Hand> {
    const options = { limits, blocks: 17, slots: 5, threads: 2, isa: '' }
    return new Hand(await backendOf(backend).open(pkg, options), pkg)
  }

  /** Runs one step. Returns a digest of the bits of hidden state and logits of each row. */
  async step(batch: BatchInput): Promise<string[]> {
    const { vocab, hidden } = this.#pkg.plan
    const { view, offsets } = createResult(limits.rows, { vocab, hidden })
    const step = packStep(createStep(limits), batch, offsets)
    await this.runner.step(step, view)
    return Array.from({ length: step.header[stepHeader.word.rows]! }, (_, r) =>
      digest(view.hidden.subarray(r * hidden, (r + 1) * hidden), view.logits.subarray(r * vocab, (r + 1) * vocab)),
    )
  }

  /** Computes tokens [from, to) of a sequence, `chunk` a step; from 0 its slot is reset. Returns their rows. */
  async run(place: Place, tokens: readonly number[], from = 0, to = tokens.length, chunk = MOST) {
    const rows: string[] = []
    for (let position = from; position < to; position += chunk) {
      const sequences = [{ ...place, position, tokens: tokens.slice(position, Math.min(to, position + chunk)) }]
      rows.push(...(await this.step({ sequences, resets: position === 0 ? [place.slot] : [] })))
    }
    return rows
  }

  snapshot({ slot, blocks }: Place): Snapshot {
    return this.#pkg.plan.states.map(({ kind }, state) =>
      (kind === 'fixed' ? [slot] : blocks).map((unit) => this.runner.readState!(state, unit)),
    )
  }

  restore(snapshot: Snapshot, { slot, blocks }: Place): void {
    for (const [state, { kind }] of this.#pkg.plan.states.entries())
      for (const [i, unit] of (kind === 'fixed' ? [slot] : blocks).entries())
        this.runner.writeState!(state, unit, snapshot[state]![i]!)
  }

  /** Copies the state of a sequence as the engine does: blocks by the next step, which runs now and computes nothing else. */
  async clone(from: Place, to: Place): Promise<void> {
    await this.step({ sequences: [], copies: from.blocks.map((block, i) => [block, to.blocks[i]!] as const) })
    for (const [state, { kind }] of this.#pkg.plan.states.entries())
      if (kind === 'fixed') this.runner.writeState!(state, to.slot, this.runner.readState!(state, from.slot))
  }

  [Symbol.dispose](): void {
    this.runner.dispose()
  }
}
