/** A Llama or Qwen3 checkpoint as GGUF, as llama.cpp's convert_hf_to_gguf.py and llama-quantize would write it. */
import { existsSync } from 'node:fs'
import { type FileHandle, open, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { type Checkpoint, openCheckpoint } from '../../models/checkpoint.ts'
import { encode, type GgmlType } from './blocks.ts'
import { type GgufTensor, type GgufValue, layoutGguf } from './gguf.ts'
import type { ModelConfig } from './shapes.ts'

export type Format = 'bf16' | 'q8' | 'q4'

/** Matrices by format. Embeddings and heads stay at Q8_0 under q4, as in our packages, so that both read as many bits. */
const matrixType: Readonly<Record<Format, GgmlType>> = { bf16: 'BF16', q8: 'Q8_0', q4: 'Q4_0' }
const tableType: Readonly<Record<Format, GgmlType>> = { bf16: 'BF16', q8: 'Q8_0', q4: 'Q8_0' }
/** llama.cpp's LLAMA_FTYPE_MOSTLY_*. */
const fileType: Readonly<Record<Format, number>> = { bf16: 32, q8: 7, q4: 2 }

const architectures: Readonly<Record<string, string>> = { LlamaForCausalLM: 'llama', Qwen3ForCausalLM: 'qwen3' }

const names: Readonly<Record<string, string>> = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

/** model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight */
export function ggufName(name: string): string {
  const [, layer, rest] = /^(?:model\.layers\.(\d+)\.)?(.+)\.weight$/.exec(name) ?? []
  const known = names[rest ?? '']
  if (!known) throw new Error(`${name}: no GGUF name is known`)
  return `${layer === undefined ? '' : `blk.${layer}.`}${known}.weight`
}

/**
 * llama.cpp rotates neighbouring elements where transformers rotates halves: its Llama files have the rows of q and k of
 * each head interleaved. Row `row` of the file is this row of the checkpoint.
 */
export function interleavedRow(row: number, headDim: number): number {
  const within = row % headDim
  return row - within + (within % 2) * (headDim / 2) + (within >> 1)
}

/** GPT-2's map of bytes to printable characters, the first 256 tokens of any byte-level vocabulary. */
function byteTokens(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
  let extra = 256
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : extra++))
}

/** The least vocabulary that llama.cpp loads: bytes, then names. Both sides are driven by ids, so no text is ever read. */
export function vocabulary(size: number): Record<string, GgufValue> {
  const tokens = [...byteTokens(), ...Array.from({ length: Math.max(0, size - 256) }, (_, i) => `<t${i + 256}>`)]
  return {
    'tokenizer.ggml.model': { string: 'gpt2' },
    'tokenizer.ggml.pre': { string: 'default' },
    'tokenizer.ggml.tokens': { strings: tokens.slice(0, size) },
    'tokenizer.ggml.token_type': { i32s: Array.from({ length: size }, () => 1) },
    'tokenizer.ggml.merges': { strings: ['a b'] },
    'tokenizer.ggml.bos_token_id': { u32: 0 },
    'tokenizer.ggml.eos_token_id': { u32: 1 },
  }
}

function metadataOf(config: ModelConfig, architecture: string, format: Format): Record<string, GgufValue> {
  const own: Record<string, GgufValue> = {
    block_count: { u32: config.num_hidden_layers },
    context_length: { u32: config.max_position_embeddings },
    embedding_length: { u32: config.hidden_size },
    feed_forward_length: { u32: config.intermediate_size },
    'attention.head_count': { u32: config.num_attention_heads },
    'attention.head_count_kv': { u32: config.num_key_value_heads },
    'attention.key_length': { u32: config.head_dim },
    'attention.value_length': { u32: config.head_dim },
    'attention.layer_norm_rms_epsilon': { f32: config.rms_norm_eps },
    'rope.dimension_count': { u32: config.head_dim },
    'rope.freq_base': { f32: config.rope_theta ?? config.rope_parameters?.rope_theta ?? 10_000 },
    vocab_size: { u32: config.vocab_size },
  }
  return {
    'general.architecture': { string: architecture },
    'general.name': { string: 'bench' },
    'general.file_type': { u32: fileType[format] },
    'general.quantization_version': { u32: 2 },
    ...Object.fromEntries(Object.entries(own).map(([key, value]) => [`${architecture}.${key}`, value])),
    ...vocabulary(config.vocab_size),
  }
}

const CHUNK_ELEMENTS = 2 ** 21

/** Rows of a bf16 tensor as float32, `rowOf` choosing which row of the checkpoint stands at each place. */
function* rowChunks(bits: Uint16Array, cols: number, rowOf: (row: number) => number): Generator<Float32Array> {
  const rows = bits.length / cols
  const most = Math.max(1, Math.floor(CHUNK_ELEMENTS / cols))
  for (let start = 0; start < rows; start += most) {
    const count = Math.min(most, rows - start)
    const words = new Uint32Array(count * cols)
    for (let row = 0; row < count; row++) {
      const from = rowOf(start + row) * cols
      const to = row * cols
      for (let col = 0; col < cols; col++) words[to + col] = bits[from + col]! << 16
    }
    yield new Float32Array(words.buffer)
  }
}

function bf16Bits(checkpoint: Checkpoint, name: string): Uint16Array {
  if (checkpoint.tensors.get(name)?.dtype !== 'BF16') throw new Error(`${name}: expected a BF16 tensor`)
  const data = checkpoint.data(name)
  return data.byteOffset % 2 === 0
    ? new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2)
    : new Uint16Array(data.slice().buffer)
}

async function writeData(file: FileHandle, checkpoint: Checkpoint, config: ModelConfig, layout: Layout): Promise<void> {
  const interleave = config.architectures[0] === 'LlamaForCausalLM'
  for (const { source, type, shape, pad } of layout) {
    const permuted = interleave && /\.(q|k)_proj\.weight$/.test(source)
    const rowOf = permuted ? (row: number) => interleavedRow(row, config.head_dim) : (row: number) => row
    for (const chunk of rowChunks(bf16Bits(checkpoint, source), shape.at(-1)!, rowOf))
      await file.write(encode(type, chunk))
    if (pad) await file.write(new Uint8Array(pad))
  }
}
type Layout = readonly (GgufTensor & { readonly source: string; readonly pad: number })[]

/** Writes `out` from the checkpoint folder unless it is there. */
export async function convert(folder: string, out: string, format: Format): Promise<void> {
  if (existsSync(out)) return
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as ModelConfig
  const architecture = architectures[config.architectures[0]!]
  if (!architecture) throw new Error(`${folder}: expected one of ${Object.keys(architectures)}`)
  const checkpoint = await openCheckpoint(folder)
  const sources = [...checkpoint.tensors.values()].filter(
    ({ name }) => !(config.tie_word_embeddings && name === 'lm_head.weight'),
  )
  const tensors = sources.map(({ name, shape }) => {
    const table = name === 'model.embed_tokens.weight' || name === 'lm_head.weight'
    const type = shape.length === 1 ? 'F32' : (table ? tableType : matrixType)[format]
    return { name: ggufName(name), type, shape } satisfies GgufTensor
  })
  const { header, tensors: placed } = layoutGguf(metadataOf(config, architecture, format), tensors)
  const file = await open(`${out}.partial`, 'w')
  try {
    await file.write(header)
    await writeData(
      file,
      checkpoint,
      config,
      placed.map((tensor, i) => ({ ...tensor, source: sources[i]!.name })),
    )
  } finally {
    await file.close()
  }
  await rename(`${out}.partial`, out)
}
