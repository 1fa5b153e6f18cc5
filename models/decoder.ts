/**
 * The parts that pre-norm decoders of the Llama line share (Touvron et al., 2023): RMS norm, grouped-query attention with
 * rotary positions, gated MLP. A topology composes them. All is built unfused; models/compile/fuse.ts merges.
 */
import type { z } from 'zod'
import { type decoderFields, headShape, invalid, readRope } from './config.ts'
import type { GraphBuilder, GraphState, Value, Weight } from './graph.ts'
import { computeRope, type Rope } from './rope.ts'

export interface Decoder {
  readonly vocab: number
  readonly hidden: number
  readonly intermediate: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly eps: number
  /** Id of abi/ops/define.ts activations. */
  readonly activation: number
  readonly rope: Rope
  readonly maxContext: number
  readonly tied: boolean
  readonly attentionBias: boolean
  readonly mlpBias: boolean
  /** Whether each head of q and k takes an RMS norm before rope. */
  readonly headNorm: boolean
  /** Positions that a token of the layer attends to, itself included; 0: all. */
  readonly window: (layer: number) => number
}

type DecoderFields = z.output<z.ZodObject<typeof decoderFields>> & { readonly max_position_embeddings: number }

/** The part of a decoder that every family reads alike; rope is read from the whole `document`. */
export function readDecoder(config: DecoderFields, document: unknown, path: string) {
  const shape = headShape(config, path)
  const maxContext = config.max_position_embeddings
  const rope = computeRope(readRope(document, maxContext, shape.headDim, path), shape.headDim, maxContext)
  const overflow = [rope.attentionFactor, ...rope.invFreq].find((value) => !Number.isFinite(Math.fround(value)))
  if (overflow !== undefined) throw invalid(path, 'rope', 'parameters whose angles float32 holds', overflow)
  return {
    ...shape,
    vocab: config.vocab_size,
    hidden: config.hidden_size,
    intermediate: config.intermediate_size,
    layers: config.num_hidden_layers,
    eps: config.rms_norm_eps,
    activation: config.hidden_act,
    rope,
    maxContext,
    tied: config.tie_word_embeddings,
  }
}

/** y = x W^T (+ b) with the checkpoint's `${name}.weight`, (n, width of x). */
function linear(graph: GraphBuilder, label: string, name: string, x: Value, n: number, bias: boolean): Value {
  return graph.add('linear', label, {
    inputs: { x },
    weights: {
      weight: graph.weight(`${name}.weight`, [n, x.width]),
      bias: bias ? graph.weight(`${name}.bias`, [n]) : undefined,
    },
    params: { n, k: x.width },
  }).out
}

/** RMS norm over each of `count` equal groups of x. */
function rmsNorm(graph: GraphBuilder, label: string, name: string, x: Value, eps: number, count = 1): Value {
  const width = x.width / count
  const weight = graph.weight(`${name}.weight`, [width])
  return graph.add('rms_norm', label, { inputs: { x }, weights: { weight }, params: { width, count, eps } }).out
}

interface Shared {
  readonly invFreq: Weight
  readonly kvDtype: GraphState['dtype']
}

function attention(graph: GraphBuilder, config: Decoder, layer: number, x: Value, { invFreq, kvDtype }: Shared): Value {
  const { heads, kvHeads, headDim, rope } = config
  const [at, name] = [`layers.${layer}`, `model.layers.${layer}.self_attn`]
  const project = (which: string, count: number) =>
    linear(graph, `${at}.${which}`, `${name}.${which}_proj`, x, count * headDim, config.attentionBias)
  const rotate = (which: string, projected: Value, count: number) => {
    const normed = config.headNorm
      ? rmsNorm(graph, `${at}.${which}_norm`, `${name}.${which}_norm`, projected, config.eps, count)
      : projected
    return graph.add('rope', `${at}.${which}_rope`, {
      inputs: { x: normed },
      weights: { inv_freq: invFreq },
      params: { heads: count, head_dim: headDim, dim: rope.dim, attention_factor: rope.attentionFactor },
    }).out
  }
  const [q, k, v] = [project('q', heads), project('k', kvHeads), project('v', kvHeads)]
  const mixed = graph.add('attention', `${at}.attention`, {
    inputs: { q: rotate('q', q, heads), k: rotate('k', k, kvHeads), v },
    states: { kv: { name: `${at}.kv`, dtype: kvDtype } },
    params: { heads, kv_heads: kvHeads, head_dim: headDim, scale: headDim ** -0.5, window: config.window(layer) },
  }).out
  return linear(graph, `${at}.o`, `${name}.o_proj`, mixed, config.hidden, config.attentionBias)
}

function mlp(graph: GraphBuilder, config: Decoder, layer: number, x: Value): Value {
  const [at, name, width] = [`layers.${layer}`, `model.layers.${layer}.mlp`, config.intermediate]
  const gate = linear(graph, `${at}.gate`, `${name}.gate_proj`, x, width, config.mlpBias)
  const up = linear(graph, `${at}.up`, `${name}.up_proj`, x, width, config.mlpBias)
  const { activation } = config
  const gated = graph.add('glu', `${at}.glu`, { inputs: { gate, up }, params: { width, activation } }).out
  return linear(graph, `${at}.down`, `${name}.down_proj`, gated, config.hidden, config.mlpBias)
}

/** The whole decoder, from token ids to samples. The keys and values take the dtype of the embedding. */
function buildDecoder(graph: GraphBuilder, config: Decoder): void {
  const { vocab, hidden, eps } = config
  const table = graph.weight('model.embed_tokens.weight', [vocab, hidden])
  const shared = { invFreq: graph.constant('rope.inv_freq', config.rope.invFreq), kvDtype: table.dtype }
  const add = (label: string, x: Value, y: Value) =>
    graph.add('residual', label, { inputs: { x, y }, params: { width: hidden } }).out

  let x = graph.add('embed', 'embed', { weights: { table }, params: { vocab, width: hidden } }).out
  for (let layer = 0; layer < config.layers; layer++) {
    const [at, name] = [`layers.${layer}`, `model.layers.${layer}`]
    const mixed = rmsNorm(graph, `${at}.attention_norm`, `${name}.input_layernorm`, x, eps)
    x = add(`${at}.attention_residual`, x, attention(graph, config, layer, mixed, shared))
    const normed = rmsNorm(graph, `${at}.mlp_norm`, `${name}.post_attention_layernorm`, x, eps)
    x = add(`${at}.mlp_residual`, x, mlp(graph, config, layer, normed))
  }
  const rows = graph.add('gather_rows', 'gather_rows', { inputs: { x }, params: { width: hidden } }).out
  const final = rmsNorm(graph, 'norm', 'model.norm', rows, eps)
  const weight = config.tied ? table : graph.weight('lm_head.weight', [vocab, hidden])
  const logits = graph.add('logits', 'logits', {
    inputs: { x: final },
    weights: { weight },
    params: { vocab, k: hidden },
  }).out
  const sampled = graph.add('sample', 'sample', { inputs: { logits }, params: { vocab } })
  for (const [output, value] of Object.entries({ ...sampled, logits, hidden: final }))
    graph.output(output as 'tokens', value)
}

/** What every decoder topology has in common. */
export const decoderTopology = {
  shape: ({ vocab, hidden, maxContext }: Decoder) => ({ vocab, hidden, maxContext }),
  build: buildDecoder,
  /** Old checkpoints store the rope table, which follows from the config. */
  ignored: [/\.rotary_emb\.inv_freq$/],
  /** With tied embeddings some checkpoints store the head as well. */
  aliases: ({ tied }: Decoder) => (tied ? ([['lm_head.weight', 'model.embed_tokens.weight']] as const) : []),
}
