/** Small plans for tests, made by hand from the opcode definitions; weights exist by name and shape only. */
import { byteSize, type DType } from '../abi/dtypes.ts'
import { type Layout, paddedShape } from '../abi/layouts.ts'
import { evaluate, type Space, type StateKind, spaceNames } from '../abi/ops/define.ts'
import { type OpName, opDef } from '../abi/ops/index.ts'
import { fillParams } from '../abi/param-block.ts'
import { BLOCK_TOKENS, capabilities, STATE_ALIGN_BYTES, type StateDescriptor } from '../abi/state.ts'
import { deriveLiveness, lowerBound } from './liveness.ts'
import type { ExecutionPlan, Instruction, Operand, OutputName, Register, Tensor } from './plan.ts'

/** A plan that a test may change before it is written. */
export type Mutable<T> = T extends (infer E)[] | readonly (infer E)[]
  ? Mutable<E>[]
  : T extends object
    ? { -readonly [K in keyof T]: Mutable<T[K]> }
    : T
export type MutablePlan = Mutable<ExecutionPlan>

type Use = number | [register: number, column: number, width: number]
interface Emit {
  readonly inputs?: Readonly<Record<string, Use>>
  readonly weights?: Readonly<Record<string, readonly [name: string, dtype: DType]>>
  readonly states?: Readonly<Record<string, readonly [name: string, dtype: DType]>>
  readonly params: Readonly<Record<string, number>>
}

const tiles: Partial<Record<DType, Layout>> = {
  f32: 'tile16',
  f16: 'tile16',
  bf16: 'tile16x2',
  i8: 'tile16x4',
  i4: 'tile16x8',
  e4m3: 'tile16x4',
}

export class Sketch {
  readonly registers: Mutable<Register>[] = []
  readonly tensors: Tensor[] = []
  readonly states: StateDescriptor[] = []
  readonly instructions: Mutable<Instruction>[] = []

  register(name: string, space: Space, width: number, dtype: DType): number {
    const stride = Math.ceil(byteSize(dtype, width) / 64) * 64
    return this.registers.push({ name, space, dtype, width, stride, offset: 0, first: 0, last: 0 }) - 1
  }

  tensor(name: string, dtype: DType, layout: Layout, rows: number, cols: number): number {
    const known = this.tensors.findIndex((tensor) => tensor.name === name)
    if (known >= 0) return known
    const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
    const bytes = byteSize(dtype, paddedRows * paddedCols)
    return this.tensors.push({ name, dtype, layout, rows, cols, bytes }) - 1
  }

  state(name: string, kind: StateKind, dtype: DType, elements: number): number {
    const blockTokens = kind === 'fixed' ? 1 : BLOCK_TOKENS
    const bytes = byteSize(dtype, elements * blockTokens)
    const sizeBytes = Math.ceil(bytes / STATE_ALIGN_BYTES) * STATE_ALIGN_BYTES
    const id = this.states.length
    this.states.push({
      id,
      name,
      kind,
      dtype,
      sizeBytes,
      alignBytes: STATE_ALIGN_BYTES,
      blockTokens,
      ...capabilities[kind],
    })
    return id
  }

  /** Appends an instruction and answers its first output; the others follow it. */
  emit(op: OpName, label: string, { inputs = {}, weights = {}, states = {}, params: given }: Emit): number {
    const definition = opDef(op)
    const params = fillParams(definition, given) as Readonly<Record<string, number>>
    const operand = (use: Use | undefined): Operand | undefined => {
      if (use === undefined) return undefined
      if (typeof use === 'number') return { register: use, column: 0, width: this.registers[use]!.width }
      return { register: use[0], column: use[1], width: use[2] }
    }
    const operands = Object.keys(definition.inputs).map((name) => operand(inputs[name]))
    const any = this.registers[operands.find((o) => o)?.register ?? 0]?.space ?? 'tokens'
    const outputs = Object.entries(definition.outputs).map(([name, out]) =>
      this.register(
        `${label}.${name}`,
        out.space === 'any' ? any : out.space,
        evaluate(out.width, params),
        out.dtype ?? 'f32',
      ),
    )
    this.instructions.push({
      op,
      version: 1,
      inputs: operands,
      outputs,
      weights: Object.entries(definition.weights).map(([slot, w]) => {
        const [name, dtype] = weights[slot] ?? []
        if (!name || !dtype) return undefined
        const [rows, cols] = [evaluate(w.shape[0], params), evaluate(w.shape[1], params)]
        const tiled = slot.endsWith('sub_scales') ? 'tile16' : tiles[dtype]!
        return this.tensor(name, dtype, w.form === 'row' ? 'row' : tiled, rows, cols)
      }),
      states: Object.entries(definition.states).map(([slot, s]) => {
        const [name, dtype] = states[slot] ?? []
        if (!name || !dtype) return undefined
        return { state: this.state(name, s.kind, dtype, evaluate(s.elements, params)), access: s.access }
      }),
      params,
      lastUse: 0,
      label,
    })
    return outputs[0]!
  }

  /** Derives liveness, then places each register at the lowest offset that is free while it lives. */
  finish(model: string, vocab: number, hidden: number, outputs: Partial<Record<OutputName, number>>): MutablePlan {
    const { registers, tensors, states, instructions } = this
    const live = deriveLiveness(instructions, registers.length, Object.values(outputs))
    for (const [i, instruction] of instructions.entries()) instruction.lastUse = live.lastUse[i]!
    const placed: Mutable<Register>[] = []
    for (const [i, r] of registers.entries()) {
      Object.assign(r, { first: live.first[i], last: live.last[i] })
      const alive = placed.filter((other) => other.space === r.space && other.last >= r.first)
      for (const other of alive.toSorted((a, b) => a.offset - b.offset))
        if (other.offset < r.offset + r.stride) r.offset = Math.max(r.offset, other.offset + other.stride)
      placed.push(r)
    }
    const ends = (space: Space) => registers.filter((r) => r.space === space).map((r) => r.offset + r.stride)
    return {
      format: 1,
      minRuntime: 1,
      model,
      vocab,
      hidden,
      maxContext: 128,
      registers,
      tensors: tensors as Mutable<Tensor>[],
      states: states as Mutable<StateDescriptor>[],
      instructions: instructions as Mutable<Instruction>[],
      outputs,
      memory: {
        peak: spaceNames.map((space) => Math.max(0, ...ends(space))),
        lowerBound: lowerBound(registers, instructions.length),
      },
    }
  }
}

/** Of the embedding, which is the head too: int8 beside formats that embeddings do not have. */
const tableOf = (main: DType): DType => (main === 'i4' || main === 'e4m3' ? 'i8' : main)

/**
 * A decoder of `layers` layers, hidden 16, heads 2 of 8, one key head, vocabulary 40, with matrices of `main` and an
 * embedding of `table`; integer weights have scales.
 */
export function decoderPlan(main: DType = 'bf16', layers = 2, table = tableOf(main)): MutablePlan {
  const s = new Sketch()
  const [vocab, hidden, ff] = [40, 16, 24]
  const matrix = (name: string, slot = 'weight', dtype = main) => ({
    [slot]: [name, dtype] as const,
    ...((dtype === 'i8' || dtype === 'i4') && { scales: [`${name}.scales`, 'f16'] as const }),
    ...(dtype === 'e4m3' && { scales: [`${name}.scales`, 'f32'] as const }),
    ...(dtype === 'i4' && { sub_scales: [`${name}.sub_scales`, 'i8'] as const }),
  })
  const norm = (x: number, label: string) =>
    s.emit('rms_norm', label, {
      inputs: { x },
      weights: { weight: [label, 'f32'] },
      params: { width: hidden, eps: 1e-5 },
    })
  const linear = (x: number, n: number, k: number, label: string, residual?: number) =>
    s.emit('linear', label, {
      inputs: residual === undefined ? { x } : { x, residual },
      weights: matrix(label),
      params: { n, k },
    })
  let x = s.emit('embed', 'embed', { weights: matrix('embed', 'table', table), params: { vocab, width: hidden } })
  for (let layer = 0; layer < layers; layer++) {
    const at = `layers.${layer}`
    const qkv = linear(norm(x, `${at}.norm1`), 32, hidden, `${at}.qkv`)
    const mixed = s.emit('attention', `${at}.attention`, {
      inputs: { q: [qkv, 0, 16], k: [qkv, 16, 8], v: [qkv, 24, 8] },
      weights: { inv_freq: ['inv_freq', 'f32'] },
      states: { kv: [`${at}.kv`, 'bf16'] },
      params: { heads: 2, kv_heads: 1, head_dim: 8, scale: 8 ** -0.5, rope_dim: 8 },
    })
    x = linear(mixed, hidden, 16, `${at}.o`, x)
    const gates = linear(norm(x, `${at}.norm2`), 2 * ff, hidden, `${at}.gate_up`)
    const gated = s.emit('glu', `${at}.glu`, {
      inputs: { gate: [gates, 0, ff], up: [gates, ff, ff] },
      params: { width: ff, activation: 1 },
    })
    x = linear(gated, hidden, ff, `${at}.down`, x)
  }
  const rows = s.emit('gather_rows', 'rows', { inputs: { x }, params: { width: hidden } })
  const final = norm(rows, 'norm')
  const logits = s.emit('logits', 'head', {
    inputs: { x: final },
    weights: matrix('embed', 'weight', table),
    params: { vocab, k: hidden },
  })
  const tokens = s.emit('sample', 'sample', { inputs: { logits }, params: { vocab } })
  const outputs = { tokens, logprobs: tokens + 1, top_tokens: tokens + 2, logits, hidden: final }
  return s.finish('decoder', vocab, hidden, outputs)
}

/** Every opcode that `decoderPlan` has not: an encoder's pooling over a recurrent and a mixture-of-experts body. */
export function menageriePlan(): MutablePlan {
  const s = new Sketch()
  const [vocab, hidden] = [40, 16]
  const tokens = s.emit('embed', 'embed', {
    weights: { table: ['embed', 'f32'], positions: ['positions', 'f32'], types: ['types', 'f32'] },
    params: { vocab, width: hidden, positions: 130, position_offset: 2, types: 2 },
  })
  const normed = s.emit('layer_norm', 'norm', {
    inputs: { x: tokens },
    weights: { weight: ['norm.weight', 'f32'], bias: ['norm.bias', 'f32'] },
    params: { width: hidden, eps: 1e-12 },
  })
  const turned = s.emit('rope', 'rope', {
    inputs: { x: normed },
    weights: { inv_freq: ['inv_freq', 'f32'] },
    params: { heads: 2, head_dim: 8, dim: 4, style: 1 },
  })
  const convolved = s.emit('conv_state', 'conv', {
    inputs: { x: turned },
    weights: { weight: ['conv.weight', 'f32'], bias: ['conv.bias', 'f32'] },
    states: { window: ['conv.window', 'f32'] },
    params: { channels: hidden, kernel: 4, history: 3, activation: 1 },
  })
  const scanned = s.emit('ssm_scan', 'ssm', {
    inputs: { x: convolved, dt: [convolved, 0, 2], b: [convolved, 0, 4], c: [convolved, 4, 4] },
    weights: { a_log: ['ssm.a_log', 'f32'], d: ['ssm.d', 'f32'], dt_bias: ['ssm.dt_bias', 'f32'] },
    states: { scan: ['ssm.scan', 'f32'] },
    params: { heads: 2, head_dim: 8, groups: 1, state: 4 },
  })
  const ruled = s.emit('delta_rule', 'delta', {
    inputs: { q: [scanned, 0, 4], k: [scanned, 4, 4], v: scanned, beta: [scanned, 0, 2], decay: [scanned, 2, 2] },
    states: { memory: ['delta.memory', 'f32'] },
    params: { heads: 2, key_heads: 1, key_dim: 4, value_dim: 8, scale: 0.5, normalize: 1 },
  })
  const around = s.emit('attention', 'attention', {
    inputs: { q: ruled, k: ruled, v: ruled },
    params: { heads: 2, kv_heads: 2, head_dim: 8, scale: 0.25, causal: 0 },
  })
  const router = s.emit('linear', 'router', {
    inputs: { x: around },
    weights: { weight: ['router', 'f32'], bias: ['router.bias', 'f32'] },
    params: { n: 4, k: hidden },
  })
  const experts = ['gate', 'up', 'down'].flatMap((name) => [
    [name, [`experts.${name}`, 'i8']] as const,
    [`${name}_scales`, [`experts.${name}.scales`, 'f16']] as const,
  ])
  const mixed = s.emit('moe', 'moe', {
    inputs: { x: around, router_logits: router },
    weights: Object.fromEntries(experts),
    params: { width: hidden, ff: 8, experts: 4, top_k: 2, activation: 1, normalize: 1 },
  })
  const added = s.emit('residual', 'residual', {
    inputs: { x: mixed, y: tokens },
    params: { width: hidden, scale: 0.5 },
  })
  const curved = s.emit('activation', 'gelu', { inputs: { x: added }, params: { width: hidden, activation: 2 } })
  const scaled = s.emit('multiply', 'multiply', { inputs: { x: curved, y: added }, params: { width: hidden } })
  const pooled = s.emit('pool', 'pool', { inputs: { x: scaled }, params: { width: hidden, mode: 0, normalize: 1 } })
  return s.finish('menagerie', vocab, hidden, { hidden: pooled })
}
