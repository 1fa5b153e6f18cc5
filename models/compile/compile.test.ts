import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { packageRoot } from '../../abi/native.ts'
import { activations } from '../../abi/ops/define.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { printPlan } from '../../plans/print.ts'
import { verifyPlan } from '../../plans/verify.ts'
import { writePlan } from '../../plans/write.ts'
import {
  decoderTensors,
  readWhole,
  type Tensors,
  tensor,
  tinyCheckpoint,
  tinyConfig,
  values,
  writeCheckpoint,
} from '../example.test-checkpoint.ts'
import { fusionNames, fusions, joinNames } from './fuse.ts'
import { type CompileCheckpointOptions, compileCheckpoint } from './index.ts'

const compile = (folder: string, options: CompileCheckpointOptions = {}) =>
  compileCheckpoint(folder, { mapFile: readWhole, ...options })
const golden = (name: string) => join(packageRoot(), 'parity/goldens', name)
const count = (plan: ExecutionPlan) => {
  const counts: Record<string, number> = {}
  for (const { op } of plan.instructions) counts[op] = (counts[op] ?? 0) + 1
  return counts
}
const off = (...names: readonly string[]) => Object.fromEntries(names.map((name) => [name, false]))

describe('plan texts', () => {
  test.each([
    ['llama', golden('llama')],
    ['llama_untied_bias', golden('llama_untied_bias')],
    ['qwen3', golden('qwen3')],
    ['mistral', golden('mistral')],
    ['storyteller-7m', join(packageRoot(), 'checkpoints/storyteller-7m')],
  ])('%s', async (name, folder) => {
    const { plan } = await compile(folder)
    for (const [space, peak] of plan.memory.peak.entries())
      expect(peak).toBeLessThanOrEqual(1.05 * plan.memory.lowerBound[space]!)
    // vitest -u writes them again
    await expect(printPlan(plan)).toMatchFileSnapshot(join(packageRoot(), `plans/golden/${name}.plan.txt`))
  })
})

describe('fusion', () => {
  test('of nothing keeps every operation of the topology', async () => {
    const { plan } = await compile(golden('qwen3'), { fusions: off(...fusionNames) })
    expect(count(plan)).toEqual({
      embed: 1,
      gather_rows: 1,
      rms_norm: 3 * 4 + 1,
      linear: 3 * 7,
      rope: 3 * 2,
      attention: 3,
      glu: 3,
      residual: 3 * 2,
      logits: 1,
      sample: 1,
    })
  })

  test('of everything leaves five instructions a layer', async () => {
    const { plan } = await compile(golden('qwen3'))
    expect(count(plan)).toEqual({
      embed: 1,
      gather_rows: 1,
      rms_norm: 1,
      linear: 3 * 4,
      attention: 3,
      logits: 1,
      sample: 1,
    })
  })

  test.each(fusionNames)('%s alone can be switched off, and says what it saves', async (name) => {
    expect(fusions[name].saves).toMatch(/\w/)
    const [all, without] = await Promise.all([{}, off(name)].map((fusions) => compile(golden('qwen3'), { fusions })))
    expect(without!.plan.instructions.length).toBeGreaterThan(all!.plan.instructions.length)
  })

  test('reads the same checkpoint tensors, stacked in order', async () => {
    const sources = async (fusions: Record<string, boolean>) => {
      const { weights } = await compile(golden('llama_untied_bias'), { fusions })
      const parts = weights.flatMap(({ weight }) => weight.parts.map((part) => ('tensor' in part ? part.tensor : '')))
      return parts.sort()
    }
    expect(await sources({})).toEqual(await sources(off(...fusionNames)))
    const { plan, weights } = await compile(golden('llama_untied_bias'))
    const qkv = plan.instructions.find(({ label }) => label === 'layers.1.q+k+v')!
    const bias = weights[qkv.weights[2]!]!
    expect(bias.weight.parts).toMatchObject(
      ['q', 'k', 'v'].map((x) => ({ tensor: expect.stringContaining(`${x}_proj.bias`) })),
    )
    const attention = plan.instructions.find(({ label }) => label === 'layers.1.attention')!
    expect(attention.inputs).toMatchObject([
      { column: 0, width: 96 },
      { column: 96, width: 32 },
      { column: 128, width: 32 },
    ])
  })

  test('leaves projections of different dtypes apart', async () => {
    const folder = tinyCheckpoint({}, (name) => (name.includes('layers.1.self_attn.k') ? 'F32' : 'BF16'))
    const { plan } = await compile(folder)
    const labels = plan.instructions.map(({ label }) => label)
    expect(labels).toContain('layers.0.q+k+v')
    expect(labels).toEqual(expect.arrayContaining(['layers.1.q', 'layers.1.k', 'layers.1.v', 'layers.1.gate+up']))
    expect(plan.tensors.find(({ name }) => name.includes('1.self_attn.k_proj'))).toMatchObject({ dtype: 'f32' })
  })

  test('keeps glu where the branches do not fill whole runs of rows', async () => {
    const [ragged, whole] = await Promise.all(
      [40, 48].map((width) => compile(tinyCheckpoint({ intermediate_size: width }))),
    )
    expect(count(ragged!.plan)).toMatchObject({ glu: 2 })
    expect(ragged!.plan.instructions.find(({ label }) => label === 'layers.0.gate+up')!.params).toMatchObject({
      n: 80,
      branches: 1,
    })
    expect(count(whole!.plan)).not.toHaveProperty('glu')
    expect(whole!.plan.instructions.find(({ label }) => label === 'layers.0.gate+up+glu')!.params).toMatchObject({
      n: 48,
      branches: 2,
      activation: activations.silu,
    })
  })

  test('keeps a norm that more than linears read, and gives it to every linear otherwise', async () => {
    const { plan } = await compile(golden('qwen3'))
    // the hidden output is what the head reads
    expect(plan.instructions.filter(({ op }) => op === 'rms_norm').map(({ label }) => label)).toEqual(['norm'])
    const apart = await compile(golden('qwen3'), { fusions: { qkv: false } })
    const norms = apart.plan.instructions.filter(({ label }) => /^layers\.0\.[qkv]$/.test(label))
    expect(norms.map(({ weights }) => apart.plan.tensors[weights[4]!]!.name)).toEqual(
      new Array(3).fill('model.layers.0.input_layernorm.weight'),
    )
  })

  test('joins names at the segment where they differ', () => {
    expect(joinNames(['a.q.w', 'a.k.w'])).toBe('a.q+k.w')
    expect(joinNames(['a.q', 'b.k'])).toBe('a.q+b.k')
  })
})

describe('storage', () => {
  test.each([
    ['F32', 'f32', 'tile16'],
    ['F16', 'f16', 'tile16'],
    ['BF16', 'bf16', 'tile16x2'],
  ] as const)('%s matrices and state keep their dtype; vectors are f32', async (source, dtype, layout) => {
    const { plan } = await compile(tinyCheckpoint({}, () => source))
    for (const tensor of plan.tensors)
      expect([tensor.dtype, tensor.layout]).toEqual(tensor.rows === 1 ? ['f32', 'row'] : [dtype, layout])
    expect(plan.states).toHaveLength(2)
    expect(plan.states[0]).toMatchObject({ name: 'layers.0.kv', kind: 'paged', dtype, blockTokens: 32 })
    expect(plan.states[0]!.sizeBytes).toBe(2 * 1 * 16 * 32 * (dtype === 'f32' ? 4 : 2))
  })

  test('state q8 keeps keys and values in int8, an f32 scale beside each', async () => {
    const { plan } = await compile(tinyCheckpoint({}), { state: 'q8' })
    for (const state of plan.states)
      expect(state).toMatchObject({ kind: 'paged', dtype: 'i8', sizeBytes: 2 * 1 * (16 + 4) * 32 })
    verifyPlan(writePlan(plan), 'tiny')
  })

  test('q8 takes every matrix of at least 32 columns, and leaves the state alone', async () => {
    const { plan } = await compile(tinyCheckpoint({}), { quantize: 'q8' })
    const byName = new Map(plan.tensors.map((tensor) => [tensor.name, tensor]))
    expect(byName.get('model.embed_tokens.weight')).toMatchObject({ dtype: 'i8', layout: 'tile16x4' })
    expect(byName.get('model.embed_tokens.weight.scales')).toMatchObject({ dtype: 'f16', cols: 1 })
    // o_proj has 30 columns
    expect(byName.get('model.layers.0.self_attn.o_proj.weight')).toMatchObject({ dtype: 'bf16' })
    expect(byName.get('model.layers.0.self_attn.o_proj.weight.scales')).toBeUndefined()
    expect(plan.states[0]).toMatchObject({ dtype: 'bf16' })
  })

  test.each([
    ['q4', { dtype: 'i4', layout: 'tile16x8' }, { dtype: 'f16' }],
    ['fp8', { dtype: 'e4m3', layout: 'tile16x4' }, { dtype: 'f32', cols: 1 }],
  ] as const)('%s takes products; embedding and head are q8, tied or not', async (quantize, matrix, scales) => {
    for (const checkpoint of ['llama', 'llama_untied_bias']) {
      const { plan } = await compile(golden(checkpoint), { quantize })
      verifyPlan(writePlan(plan), quantize)
      const stored = (op: string) =>
        plan.instructions
          .filter((each) => each.op === op)
          .map(({ weights }) => weights.slice(0, 2).map((index) => plan.tensors[index ?? -1]!))
      for (const [weight, scale] of stored('linear')) {
        expect(weight).toMatchObject(matrix)
        expect(scale).toMatchObject({ ...scales, layout: 'tile16', rows: weight!.rows })
      }
      const tables = [...stored('embed'), ...stored('logits')]
      expect(tables).toHaveLength(2)
      for (const [weight, scale] of tables) {
        expect(weight).toMatchObject({ dtype: 'i8', layout: 'tile16x4' })
        expect(scale).toMatchObject({ dtype: 'f16', rows: weight!.rows, cols: 1 })
      }
      expect(new Set(tables.map(([weight]) => weight)).size).toBe(checkpoint === 'llama' ? 1 : 2)
    }
  })

  test('a tied head is the embedding', async () => {
    const { plan } = await compile(golden('llama'))
    const weightsOf = (op: string) => plan.instructions.find((each) => each.op === op)!.weights[0]
    expect(weightsOf('logits')).toBe(weightsOf('embed'))
  })
})

describe('accounting for tensors', () => {
  const tensors = (edit: (tensors: Tensors) => void, config: Record<string, unknown> = {}) => {
    const whole = { ...tinyConfig, ...config }
    const all = decoderTensors(whole, () => 'BF16')
    edit(all)
    return writeCheckpoint(whole, all)
  }
  const head = 'lm_head.weight'
  const embed = 'model.embed_tokens.weight'
  const q = 'model.layers.1.self_attn.q_proj.weight'

  test.each([
    ['a missing tensor', tensors((all) => void delete all[q]), 'TENSOR_MISSING', [q, '[30, 33]']],
    ['a missing head', tensors((all) => void delete all[head]), 'TENSOR_MISSING', [head]],
    [
      'an extra tensor',
      tensors((all) => void (all['model.layers.2.mlp.up_proj.weight'] = all[q]!)),
      'TENSOR_EXTRA',
      ['model.layers.2.mlp.up_proj.weight', 'LlamaForCausalLM'],
    ],
    [
      'a wrong shape',
      tensors((all) => void (all[q] = tensor('BF16', [33, 30], values(990)))),
      'TENSOR_SHAPE',
      [q, '[30, 33]', '[33, 30]'],
    ],
    [
      'a vector for a matrix',
      tensors((all) => void (all[q] = tensor('BF16', [990], values(990)))),
      'TENSOR_SHAPE',
      [q],
    ],
    [
      'a dtype that is no weight',
      tensors((all) => void (all[q] = { dtype: 'I64', shape: [30, 33], bytes: new Uint8Array(30 * 33 * 8) })),
      'DTYPE_UNSUPPORTED',
      [q, 'I64'],
    ],
    [
      'a tied head that differs',
      tensors((all) => void (all[head] = tensor('BF16', [37, 33], values(37 * 33, 99))), { tie_word_embeddings: true }),
      'TENSOR_EXTRA',
      [head],
    ],
  ])('%s', async (_, folder, code, named) => {
    const error = await compile(folder).catch((error: Error) => error)
    expect(error).toMatchObject({ code })
    for (const text of [folder, ...named]) expect((error as Error).message).toContain(text)
  })

  test('a tied head that repeats the embedding, and stored rope tables, are ignored', async () => {
    const folder = tensors(
      (all) => {
        all[head] = all[embed]!
        all['model.layers.0.self_attn.rotary_emb.inv_freq'] = tensor('F32', [5], values(5))
      },
      { tie_word_embeddings: true },
    )
    const { plan } = await compile(folder)
    expect(plan.tensors.map(({ name }) => name)).not.toContain(head)
  })

  test('a checkpoint without config, or with one that is not JSON', async () => {
    const folder = tinyCheckpoint()
    writeFileSync(join(folder, 'config.json'), '{')
    await expect(compile(folder)).rejects.toMatchObject({ code: 'JSON_INVALID' })
    await expect(compile(join(folder, 'nothing'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
  })
})
