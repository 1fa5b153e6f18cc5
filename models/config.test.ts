import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { IngotError } from '../errors.ts'
import { readArchitectures, readGeneration } from './config.ts'
import type { Decoder } from './decoder.ts'
import { tinyConfig } from './example.test-checkpoint.ts'
import { findTopology } from './index.ts'

const parse = (config: unknown): Decoder =>
  findTopology(readArchitectures(config, 'config.json'), 'config.json').parse(config, 'config.json') as Decoder
const qwen3 = { ...tinyConfig, architectures: ['Qwen3ForCausalLM'] }
const mistral = { ...tinyConfig, architectures: ['MistralForCausalLM'] }

describe('what is absent takes the value that transformers gives it', () => {
  const { head_dim, num_key_value_heads, ...bare } = tinyConfig
  test('llama', () => {
    expect(parse({ ...bare, hidden_size: 32 })).toMatchObject({ headDim: 10, kvHeads: 3 })
    expect(parse({ ...bare, hidden_size: 36, head_dim: null, num_key_value_heads: null })).toMatchObject({
      headDim: 12,
    })
  })
  test('qwen3', () => {
    expect(parse({ ...qwen3, head_dim: undefined })).toMatchObject({ headDim: 128, headNorm: true })
  })
  test('mistral', () => {
    expect(parse(mistral).window(0)).toBe(4096)
    expect(parse({ ...mistral, sliding_window: null }).window(0)).toBe(0)
    expect(parse({ ...mistral, sliding_window: 7 }).window(1)).toBe(7)
  })
})

describe('sliding layers of qwen3', () => {
  const windows = (config: object) => [0, 1].map(parse({ ...qwen3, ...config }).window)
  const use_sliding_window = true
  test('need use_sliding_window', () => {
    expect(windows({ sliding_window: 8, max_window_layers: 0 })).toEqual([0, 0])
    expect(windows({ sliding_window: 8, max_window_layers: 1, use_sliding_window })).toEqual([0, 8])
  })
  test('follow layer_types where given', () => {
    const layer_types = ['sliding_attention', 'full_attention']
    expect(windows({ sliding_window: 8, use_sliding_window, layer_types })).toEqual([8, 0])
    expect(() => windows({ layer_types })).toThrow(/layer_types\.0/)
    expect(() => windows({ layer_types: ['full_attention'] })).toThrow(/one entry for each of 2 layers/)
  })
})

test('every checkpoint that ships with the project has a config that is read', () => {
  for (const folder of ['goldens/llama', 'goldens/llama_untied_bias', 'goldens/mistral', 'goldens/qwen3']) {
    const config = JSON.parse(readFileSync(join(packageRoot(), 'parity', folder, 'config.json'), 'utf8'))
    expect(parse(config)).toMatchObject({ hidden: 96, heads: 6, kvHeads: 2 })
  }
})

describe('a wrong field', () => {
  test.each([
    ['vocab_size', 0, 'an integer from 1'],
    ['vocab_size', '37', 'an integer from 1'],
    ['hidden_size', undefined, 'an integer from 1'],
    ['hidden_size', 33.5, 'an integer from 1'],
    ['num_hidden_layers', -1, 'an integer from 1'],
    ['num_hidden_layers', 1e9, 'an integer from 1 to 4096'],
    ['num_attention_heads', null, 'an integer from 1'],
    ['num_key_value_heads', 2, 'a divisor of num_attention_heads'],
    ['head_dim', 9, 'an even number'],
    ['head_dim', 0, 'an integer from 2'],
    ['rms_norm_eps', 0, 'a float32 number above 0'],
    ['rms_norm_eps', 1e308, 'a float32 number above 0'],
    ['rms_norm_eps', 1e-60, 'a float32 number above 0'],
    ['rms_norm_eps', Number.POSITIVE_INFINITY, 'got Infinity'],
    ['rope_theta', 1e308, 'a float32 number above 1'],
    ['hidden_act', 'mish', 'one of silu'],
    ['hidden_act', 'constructor', 'one of silu'],
    ['tie_word_embeddings', 'yes', 'true or false'],
    ['max_position_embeddings', 0, 'an integer from 1'],
    ['quantization_config', { quant_method: 'gptq' }, 'no quantization_config'],
    ['architectures', [], 'a list of one'],
    ['architectures', ['LlamaForCausalLM', 'LlamaForCausalLM'], 'a list of one'],
    ['architectures', 'LlamaForCausalLM', 'a list of one'],
  ])('%s = %j names file, field and what was expected', (field, value, expected) => {
    const call = () => parse({ ...tinyConfig, [field]: value })
    expect(call).toThrow(expect.objectContaining({ code: 'CONFIG_INVALID' }))
    expect(call).toThrow(`config.json: ${field}`)
    expect(call).toThrow(expected)
  })

  test('rope parameters that are sound alone must give finite angles together', () => {
    const rope_scaling = { type: 'yarn', factor: 8, mscale: 1e308, mscale_all_dim: 1e-308 }
    expect(() => parse({ ...tinyConfig, rope_scaling })).toThrow(
      /^config\.json: rope: expected parameters whose angles float32 holds/,
    )
  })

  test('an unknown architecture or dtype has its own code', () => {
    const code = (code: string) => expect.objectContaining({ code })
    expect(() => parse({ ...tinyConfig, architectures: ['GPT2LMHeadModel'] })).toThrow(code('ARCHITECTURE_UNSUPPORTED'))
    expect(() => parse({ ...tinyConfig, torch_dtype: 'float8_e4m3fn' })).toThrow(code('DTYPE_UNSUPPORTED'))
    expect(() => parse({ ...tinyConfig, torch_dtype: undefined, dtype: 'int4' })).toThrow(code('DTYPE_UNSUPPORTED'))
  })

  test('whatever the value, the answer is a config or a typed error', () => {
    const base = { ...qwen3, rope_scaling: { type: 'yarn', factor: 4 }, layer_types: null }
    const fields = [...Object.keys(base), 'hidden_act', 'sliding_window', 'use_sliding_window', 'rope_parameters']
    const tree = fc.oneof(
      fc.jsonValue(),
      fc.double(),
      fc.integer(),
      fc.constantFrom(Number.NaN, 1e308, 2 ** 53, [], {}),
    )
    const edits = fc.dictionary(fc.constantFrom(...fields), tree, { minKeys: 1, maxKeys: 3 })
    fc.assert(
      fc.property(fc.oneof(edits, tree), (edit) => {
        const config = typeof edit === 'object' && edit !== null ? { ...base, ...edit } : edit
        try {
          const { rope } = parse(config)
          expect(rope.invFreq.length).toBe(rope.dim / 2)
          expect([rope.attentionFactor, ...rope.invFreq].every(Number.isFinite)).toBe(true)
        } catch (error) {
          expect(error).toBeInstanceOf(IngotError)
        }
      }),
      { numRuns: 2000 },
    )
  })
})

describe('generation settings', () => {
  const read = (config: unknown, generation?: unknown) => readGeneration(config, 'c', generation, 'g')
  test('generation_config.json comes before config.json', () => {
    expect(read({ eos_token_id: 2, bos_token_id: 1 })).toMatchObject({ eos: [2], bos: 1, temperature: null })
    expect(read({ eos_token_id: 2 }, { eos_token_id: [3, 4], temperature: 0.5, top_k: 9, do_sample: true })).toEqual({
      eos: [3, 4],
      bos: null,
      doSample: true,
      temperature: 0.5,
      topK: 9,
      topP: null,
      minP: null,
      repetitionPenalty: null,
    })
    expect(read({})).toMatchObject({ eos: [] })
  })
  test('a wrong one names its file', () => {
    expect(() => read({}, { temperature: 1e300 })).toThrow(/^g: temperature: expected a float32 number/)
    expect(() => read({}, { top_p: 2 })).toThrow(/^g: top_p: expected a number above 0, at most 1, got 2/)
    expect(() => read({}, { top_p: 0 })).toThrow(/^g: top_p/)
    expect(() => read({}, { min_p: -1 })).toThrow(/^g: min_p: expected a number from 0 to 1, got -1/)
    expect(() => read({ eos_token_id: 'x' })).toThrow(/^c: eos_token_id/)
  })
})
