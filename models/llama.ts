/** Llama (Touvron et al., 2023; Grattafiori et al., 2024) and Mistral (Jiang et al., 2023), as transformers stores them. */
import { z } from 'zod'
import { contextLength, decoderFields, flag, integer, orElse, parseConfig } from './config.ts'
import { type Decoder, decoderTopology, readDecoder } from './decoder.ts'
import { topology } from './topology.ts'

const llamaSchema = z.object(
  {
    ...decoderFields,
    max_position_embeddings: orElse(contextLength, 2048),
    attention_bias: orElse(flag, false),
    mlp_bias: orElse(flag, false),
  },
  'an object',
)

export const llama = topology<Decoder>({
  ...decoderTopology,
  name: 'llama',
  architectures: ['LlamaForCausalLM'],
  parse(document, path) {
    const config = parseConfig(llamaSchema, document, path)
    return {
      ...readDecoder(config, document, path),
      attentionBias: config.attention_bias,
      mlpBias: config.mlp_bias,
      headNorm: false,
      window: () => 0,
    }
  },
})

/** Absent fields take the values of the first release; a null window is none. */
const mistralSchema = z.object(
  {
    ...decoderFields,
    num_key_value_heads: integer(1, 4096).nullable().default(8),
    max_position_embeddings: orElse(contextLength, 131_072),
    sliding_window: integer(1, 2 ** 31 - 1)
      .nullable()
      .default(4096),
  },
  'an object',
)

export const mistral = topology<Decoder>({
  ...decoderTopology,
  name: 'mistral',
  architectures: ['MistralForCausalLM'],
  parse(document, path) {
    const config = parseConfig(mistralSchema, document, path)
    return {
      ...readDecoder(config, document, path),
      attentionBias: false,
      mlpBias: false,
      headNorm: false,
      window: () => config.sliding_window ?? 0,
    }
  },
})
