/** Real model shapes, as config.json spells them. Weights are random: speed depends on shapes alone. */

/** The fields that the checkpoint writer and the GGUF converter read. */
export interface ModelConfig {
  readonly architectures: readonly string[]
  readonly hidden_size: number
  readonly intermediate_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
  readonly head_dim: number
  readonly vocab_size: number
  readonly max_position_embeddings: number
  readonly rms_norm_eps: number
  readonly tie_word_embeddings: boolean
  /** transformers 4 keeps theta here, transformers 5 in rope_parameters. */
  readonly rope_theta?: number
  readonly rope_parameters?: { readonly rope_theta: number; readonly rope_type: string }
}

const common = { max_position_embeddings: 16_384, dtype: 'bfloat16', hidden_act: 'silu', attention_bias: false }

/** The scaled frequencies of Llama 3 are left out: they change a table, no work. */
export const shapes = {
  'Llama-3.2-1B': {
    ...common,
    architectures: ['LlamaForCausalLM'],
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 64,
    vocab_size: 128_256,
    rms_norm_eps: 1e-5,
    rope_theta: 500_000,
    tie_word_embeddings: true,
  },
  'Qwen3-0.6B': {
    ...common,
    architectures: ['Qwen3ForCausalLM'],
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 128,
    vocab_size: 151_936,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000,
    tie_word_embeddings: true,
  },
  'Llama-3.1-8B': {
    ...common,
    architectures: ['LlamaForCausalLM'],
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    vocab_size: 128_256,
    rms_norm_eps: 1e-5,
    rope_theta: 500_000,
    tie_word_embeddings: false,
  },
} as const satisfies Record<string, ModelConfig>

export type ShapeName = keyof typeof shapes
export const shapeNames = Object.keys(shapes) as ShapeName[]

/** A shape with its first `layers` layers and `vocab` tokens only; 0: all of them. */
export function shape(name: ShapeName, layers = 0, vocab = 0): ModelConfig {
  const full = shapes[name]
  const most = (given: number, all: number) => (given === 0 ? all : Math.min(given, all))
  return {
    ...full,
    num_hidden_layers: most(layers, full.num_hidden_layers),
    vocab_size: most(vocab, full.vocab_size),
  }
}

export interface TensorShape {
  readonly name: string
  readonly shape: readonly number[]
}

/** Every tensor of a checkpoint of this configuration, in the order of the model. */
export function tensorShapes(config: ModelConfig): readonly TensorShape[] {
  const { hidden_size: hidden, intermediate_size: ffn, head_dim: head, vocab_size: vocab } = config
  const [q, kv] = [config.num_attention_heads * head, config.num_key_value_heads * head]
  const headNorm = config.architectures[0] === 'Qwen3ForCausalLM'
  const layer = (index: number): TensorShape[] => {
    const at = `model.layers.${index}`
    return [
      { name: `${at}.input_layernorm.weight`, shape: [hidden] },
      { name: `${at}.self_attn.q_proj.weight`, shape: [q, hidden] },
      { name: `${at}.self_attn.k_proj.weight`, shape: [kv, hidden] },
      { name: `${at}.self_attn.v_proj.weight`, shape: [kv, hidden] },
      { name: `${at}.self_attn.o_proj.weight`, shape: [hidden, q] },
      ...(headNorm
        ? [
            { name: `${at}.self_attn.q_norm.weight`, shape: [head] },
            { name: `${at}.self_attn.k_norm.weight`, shape: [head] },
          ]
        : []),
      { name: `${at}.post_attention_layernorm.weight`, shape: [hidden] },
      { name: `${at}.mlp.gate_proj.weight`, shape: [ffn, hidden] },
      { name: `${at}.mlp.up_proj.weight`, shape: [ffn, hidden] },
      { name: `${at}.mlp.down_proj.weight`, shape: [hidden, ffn] },
    ]
  }
  return [
    { name: 'model.embed_tokens.weight', shape: [vocab, hidden] },
    ...Array.from({ length: config.num_hidden_layers }, (_, index) => layer(index)).flat(),
    { name: 'model.norm.weight', shape: [hidden] },
    ...(config.tie_word_embeddings ? [] : [{ name: 'lm_head.weight', shape: [vocab, hidden] }]),
  ]
}

/** Operations (a multiply-add is two) of one token's matrix products in the layers; the head runs once a prompt. */
export const operationsPerToken = (config: ModelConfig) =>
  2 *
  tensorShapes(config)
    .filter(({ name, shape }) => name.startsWith('model.layers.') && shape.length === 2)
    .reduce((sum, { shape: [rows, cols] }) => sum + rows! * cols!, 0)

/** Bytes of keys and values of one token at 16 bits, what both sides store. */
export const stateBytesPerToken = (config: ModelConfig) =>
  2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
