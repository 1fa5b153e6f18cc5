import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { f16ToNumber } from '../../abi/dtypes.ts'
import { openCheckpoint } from '../../models/checkpoint.ts'
import { decode } from './blocks.ts'
import { writeCheckpoint } from './checkpoint.ts'
import { convert, ggufName, interleavedRow, vocabulary } from './convert.ts'
import { layoutGguf, readGguf } from './gguf.ts'
import { type ModelConfig, shape, tensorShapes } from './shapes.ts'

const config: ModelConfig = {
  ...shape('Llama-3.2-1B', 2),
  hidden_size: 64,
  intermediate_size: 96,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 300,
}

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-peers-'))
  await writeCheckpoint(config, join(folder, 'tiny'))
})
afterAll(() => rm(folder, { recursive: true }))

/** A tensor of the checkpoint as numbers. */
async function weightsOf(name: string): Promise<Float32Array> {
  const data = (await openCheckpoint(join(folder, 'tiny'))).data(name).slice()
  return new Float32Array(Uint32Array.from(new Uint16Array(data.buffer), (bits) => bits << 16).buffer)
}

describe('a random checkpoint', () => {
  it('has weights of mean 0 and deviation 0.02, and norms about 1', async () => {
    const deviation = (x: Float32Array, mean: number) =>
      Math.sqrt(x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length)
    expect(deviation(await weightsOf('model.embed_tokens.weight'), 0)).toBeCloseTo(0.02, 3)
    expect(deviation(await weightsOf('model.norm.weight'), 1)).toBeCloseTo(0.02, 2)
  })

  it('depends on names alone: fewer layers are a prefix of more', async () => {
    await writeCheckpoint({ ...config, num_hidden_layers: 1 }, join(folder, 'shorter'))
    const [long, short] = [await openCheckpoint(join(folder, 'tiny')), await openCheckpoint(join(folder, 'shorter'))]
    for (const { name } of tensorShapes({ ...config, num_hidden_layers: 1 }))
      expect(Buffer.compare(long.data(name), short.data(name))).toBe(0)
    const other = long.data('model.layers.1.mlp.up_proj.weight')
    expect(Buffer.compare(long.data('model.layers.0.mlp.up_proj.weight'), other)).not.toBe(0)
  })
})

describe('a GGUF', () => {
  it('reads back as it was laid out', () => {
    const metadata = {
      text: { string: 'päth' },
      count: { u32: 7 },
      eps: { f32: 0.5 },
      yes: { bool: true },
      names: { strings: ['a', '', 'c'] },
      kinds: { i32s: [1, -1] },
    }
    const tensors = [
      { name: 'x', type: 'Q4_0', shape: [3, 32] },
      { name: 'y', type: 'F32', shape: [5] },
    ] as const
    const layout = layoutGguf(metadata, tensors)
    const back = readGguf(layout.header)
    expect(back.metadata).toEqual(metadata)
    expect(back.dataStart).toBe(layout.header.length)
    expect(back.tensors).toEqual(layout.tensors.map(({ name, type, shape, offset }) => ({ name, type, shape, offset })))
    expect(layout.tensors.map(({ offset }) => offset % 32)).toEqual([0, 0])
  })

  it('holds the weights of the checkpoint, q and k interleaved for llama.cpp', async () => {
    const path = join(folder, 'tiny-q8.gguf')
    await convert(join(folder, 'tiny'), path, 'q8')
    const bytes = await readFile(path)
    const { tensors, dataStart } = readGguf(bytes)
    expect(tensors.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['blk.1.attn_q.weight', 'output_norm.weight']),
    )
    for (const [name, source, rowOf] of [
      ['blk.1.attn_k.weight', 'model.layers.1.self_attn.k_proj.weight', (row: number) => interleavedRow(row, 16)],
      ['blk.0.ffn_down.weight', 'model.layers.0.mlp.down_proj.weight', (row: number) => row],
    ] as const) {
      const { offset, shape } = tensors.find((tensor) => tensor.name === name)!
      const [rows, cols] = shape as [number, number]
      const start = dataStart + offset
      const got = decode('Q8_0', bytes.subarray(start, start + ((rows * cols) / 32) * 34), f16ToNumber)
      const expected = await weightsOf(source)
      for (let row = 0; row < rows; row++)
        for (let col = 0; col < cols; col++)
          expect(Math.abs(got[row * cols + col]! - expected[rowOf(row) * cols + col]!)).toBeLessThan(0.001)
    }
  })

  it('interleaves the halves of each head', () => {
    expect(Array.from({ length: 8 }, (_, row) => interleavedRow(row, 4))).toEqual([0, 2, 1, 3, 4, 6, 5, 7])
  })

  it('names every tensor, and refuses one it does not know', () => {
    for (const { name } of tensorShapes(shape('Qwen3-0.6B', 1))) expect(ggufName(name)).toMatch(/\.weight$/)
    expect(() => ggufName('model.layers.0.mlp.experts.weight')).toThrow('no GGUF name')
  })

  it('has as many different tokens as the model', () => {
    const tokens = (vocabulary(1000)['tokenizer.ggml.tokens'] as { strings: string[] }).strings
    expect(new Set(tokens).size).toBe(1000)
  })
})
