/** Small checkpoints for tests, written to a temporary folder, and a file mapping that needs no addon. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'
import { numberToBf16, numberToF16 } from '../abi/dtypes.ts'
import type { MapFile } from './files.ts'

const root = mkdtempSync(join(tmpdir(), 'ingot-models-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let folders = 0
/** A new, empty folder that is removed after the tests of the file. */
export function newFolder(): string {
  const folder = join(root, String(folders++))
  mkdirSync(folder)
  return folder
}

/** A whole file in memory: what the native mapping gives. */
export const readWhole: MapFile = (path) => {
  const bytes = readFileSync(path)
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer
}

export interface TestTensor {
  readonly dtype: 'F32' | 'F16' | 'BF16' | 'I64'
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

export const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

/** Values in (-1, 1), the same for the same seed. */
export function values(count: number, seed = 1): Float32Array {
  let state = seed * 7919 + 1
  return Float32Array.from({ length: count }, () => {
    state = (state * 48_271) % 2_147_483_647
    return (state / 2_147_483_647) * 2 - 1
  })
}

/** A tensor of `shape` with the given values in `dtype`. */
export function tensor(dtype: 'F32' | 'F16' | 'BF16', shape: readonly number[], numbers: Float32Array): TestTensor {
  if (dtype === 'F32') return { dtype, shape, bytes: new Uint8Array(numbers.slice().buffer) }
  const halves = Uint16Array.from(numbers, dtype === 'F16' ? numberToF16 : numberToBf16)
  return { dtype, shape, bytes: new Uint8Array(halves.buffer) }
}

export type Tensors = Record<string, TestTensor>

/** Bytes of a safetensors file, unpadded, in the order given. */
export function safetensorsBytes(tensors: Tensors): Buffer {
  let end = 0
  const header = Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape, bytes }]) => {
      const range = [end, (end += bytes.length)]
      return [name, { dtype, shape, data_offsets: range }]
    }),
  )
  const json = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  return Buffer.concat([length, json, ...Object.values(tensors).map(({ bytes }) => bytes)])
}

export const tinyConfig = {
  architectures: ['LlamaForCausalLM'],
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
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  eos_token_id: 2,
} as const

type Dtypes = (name: string) => 'F32' | 'F16' | 'BF16'

/** Every tensor of a Llama-style checkpoint of `config`. */
export function decoderTensors(config: typeof tinyConfig | Record<string, unknown>, dtype: Dtypes): Tensors {
  const c = config as typeof tinyConfig & { attention_bias?: boolean; mlp_bias?: boolean }
  const norm = c.architectures[0].startsWith('Qwen3')
  const [q, kv] = [c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim]
  const shapes: Record<string, readonly number[]> = { 'model.embed_tokens.weight': [c.vocab_size, c.hidden_size] }
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const at = `model.layers.${i}`
    const linear = (name: string, n: number, k: number, bias: boolean | undefined) => {
      shapes[`${at}.${name}.weight`] = [n, k]
      if (bias) shapes[`${at}.${name}.bias`] = [n]
    }
    shapes[`${at}.input_layernorm.weight`] = [c.hidden_size]
    linear('self_attn.q_proj', q, c.hidden_size, c.attention_bias)
    linear('self_attn.k_proj', kv, c.hidden_size, c.attention_bias)
    linear('self_attn.v_proj', kv, c.hidden_size, c.attention_bias)
    linear('self_attn.o_proj', c.hidden_size, q, c.attention_bias)
    if (norm) shapes[`${at}.self_attn.q_norm.weight`] = shapes[`${at}.self_attn.k_norm.weight`] = [c.head_dim]
    shapes[`${at}.post_attention_layernorm.weight`] = [c.hidden_size]
    linear('mlp.gate_proj', c.intermediate_size, c.hidden_size, c.mlp_bias)
    linear('mlp.up_proj', c.intermediate_size, c.hidden_size, c.mlp_bias)
    linear('mlp.down_proj', c.hidden_size, c.intermediate_size, c.mlp_bias)
  }
  shapes['model.norm.weight'] = [c.hidden_size]
  if (!c.tie_word_embeddings) shapes['lm_head.weight'] = [c.vocab_size, c.hidden_size]
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape], i) => [name, tensor(dtype(name), shape, values(product(shape), i + 1))]),
  )
}

/** Writes a checkpoint folder; `shards` above 1 spreads the tensors over files with an index. */
export function writeCheckpoint(
  config: unknown,
  tensors: Tensors,
  { shards = 1, files = {} }: { shards?: number; files?: Record<string, string> } = {},
): string {
  const folder = newFolder()
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  if (shards === 1) {
    writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(tensors))
    return folder
  }
  const names = Object.keys(tensors)
  const shardOf = (i: number) => `model-${String((i % shards) + 1).padStart(5, '0')}.safetensors`
  for (let shard = 0; shard < shards; shard++) {
    const part = names.filter((_, i) => i % shards === shard).map((name) => [name, tensors[name]!] as const)
    writeFileSync(join(folder, shardOf(shard)), safetensorsBytes(Object.fromEntries(part)))
  }
  const weight_map = Object.fromEntries(names.map((name, i) => [name, shardOf(i)]))
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }))
  return folder
}

export const tinyCheckpoint = (config: Record<string, unknown> = {}, dtype: Dtypes = () => 'BF16'): string => {
  const whole = { ...tinyConfig, ...config }
  return writeCheckpoint(whole, decoderTensors(whole, dtype))
}
