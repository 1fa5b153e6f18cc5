/** Qwen3 dense (Yang et al., 2025), as transformers stores it: Llama's block with an RMS norm on each head of q and k. */
import { z } from 'zod'
import { contextLength, decoderFields, flag, integer, invalid, orElse, parseConfig } from './config.ts'
import { type Decoder, decoderTopology, readDecoder } from './decoder.ts'
import { topology } from './topology.ts'

const layerType = z.enum(['full_attention', 'sliding_attention'], 'full_attention or sliding_attention')
const schema = z.object(
  {
    ...decoderFields,
    num_key_value_heads: integer(1, 4096).nullable().default(32),
    head_dim: integer(2, 4096).nullable().default(128),
    max_position_embeddings: orElse(contextLength, 32_768),
    attention_bias: orElse(flag, false),
    use_sliding_window: orElse(flag, false),
    sliding_window: integer(1, 2 ** 31 - 1)
      .nullable()
      .default(4096),
    max_window_layers: orElse(integer(0, 2 ** 31 - 1), 28),
    layer_types: z.array(layerType, 'a list of layer types').nullish(),
  },
  'an object',
)
type Config = z.output<typeof schema>

/** Window of each layer: layer_types where given, else the layers from max_window_layers on. */
function windows(config: Config, path: string): readonly number[] {
  const window = config.use_sliding_window ? config.sliding_window : null
  const layers = config.num_hidden_layers
  const types = config.layer_types
  if (!types) return Array.from({ length: layers }, (_, i) => (i >= config.max_window_layers ? (window ?? 0) : 0))
  if (types.length !== layers)
    throw invalid(path, 'layer_types', `one entry for each of ${layers} layers`, types.length)
  const sliding = types.indexOf('sliding_attention')
  if (sliding >= 0 && window === null)
    throw invalid(path, `layer_types.${sliding}`, 'full_attention, as no sliding window is in use', types[sliding])
  return types.map((type) => (type === 'sliding_attention' ? window! : 0))
}

export const qwen3 = topology<Decoder>({
  ...decoderTopology,
  name: 'qwen3',
  architectures: ['Qwen3ForCausalLM'],
  parse(document, path) {
    const config = parseConfig(schema, document, path)
    const windowOf = windows(config, path)
    return {
      ...readDecoder(config, document, path),
      attentionBias: config.attention_bias,
      mlpBias: false,
      headNorm: true,
      window: (layer) => windowOf[layer]!,
    }
  },
})
