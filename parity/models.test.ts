import { copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { bf16ToNumber, dtypes, numberToF16 } from '../abi/dtypes.ts'
import { addon, packageRoot } from '../abi/native.ts'
import { referenceBackend } from '../compute/reference.ts'
import { compile, open } from '../index.ts'
import { openCheckpoint } from '../models/checkpoint.ts'
import { fuse } from '../models/compile/fuse.ts'
import { Pacer } from '../models/compile/pacer.ts'
import { trace } from '../models/compile/trace.ts'
import { readJson } from '../models/files.ts'
import type { Graph } from '../models/graph.ts'
import { findTopology } from '../models/index.ts'
import { printParity, runGolden } from './golden.ts'
import { openGolden, readGolden } from './golden-file.ts'
import { compareLogits } from './measures.ts'
import { runSteps } from './ops/compare.ts'
import { packageGraph } from './ops/open.ts'
import { sameWeights } from './tolerances.ts'
import { writeTensors } from './write-tensors.ts'

const goldens = ['llama', 'llama_untied_bias', 'mistral', 'qwen3'] as const
/** One unusual feature each: dtypes, shards, rope scalings, spellings of the config, head counts, windows (goldens/make.py). */
const variants = [
  'llama_bf16_llama3_old_config',
  'llama_f16_linear_one_kv_head',
  'llama_f32_yarn_sharded',
  'llama_mixed_norms_f32',
  'mistral_f16_full',
  'qwen3_bf16_sliding_yarn',
  'qwen3_f32_bias_multi_head',
] as const
const goldenOf = (name: string) => join(packageRoot(), 'parity', 'goldens', name)
const storyteller = (name: string) => join(packageRoot(), 'checkpoints', `storyteller-${name}`)

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-models-'))
})
afterAll(() => rm(folder, { recursive: true }))

type Quantize = 'none' | 'q8' | 'q4' | 'fp8'
const packages = new Map<string, Promise<string>>()
/** Compiles a checkpoint once. */
function compiled(checkpoint: string, quantize: Quantize = 'none'): Promise<string> {
  const key = `${checkpoint} ${quantize}`
  const out = join(folder, `${packages.size}.ingot`)
  const known = packages.get(key) ?? compile(checkpoint, { out, quantize }).then(({ path }) => path)
  packages.set(key, known)
  return known
}

async function check(checkpoint: string, backend: string, quantize: Quantize = 'none', isa = ''): Promise<void> {
  const path = await compiled(checkpoint, quantize)
  await using model = await open(path, { backend, maxSlots: 2, ...(isa && { isa }) })
  const report = await runGolden(model, join(checkpoint, 'golden.safetensors'))
  expect(report.pass, printParity(report)).toBe(true)
}

describe('the reference is what other implementations compute', () => {
  it.each([...goldens, ...variants])('%s', (name) => check(goldenOf(name), 'reference'))
  it('storyteller-1m', () => check(storyteller('1m'), 'reference'))
  it.each(goldens)('%s, as far as fp8 keeps it', (name) => check(goldenOf(name), 'reference', 'fp8'))
})

/** q4 errs more than a broken kernel might, so the golden file is not enough: the reference reads the same weights. */
async function checkSameWeights(checkpoint: string): Promise<void> {
  const path = await compiled(checkpoint, 'q4')
  await using cpu = await open(path, { backend: 'cpu', maxSlots: 2 })
  await using reference = await open(path, { backend: 'reference', maxSlots: 2 })
  const { prompts } = await readGolden(join(checkpoint, 'golden.safetensors'), cpu.plan.vocab)
  for (const { name, ids } of prompts) {
    const { rms, deviation } = compareLogits(await cpu.logits(ids), await reference.logits(ids), cpu.plan.vocab)
    expect(rms, name).toBeLessThan(sameWeights * Math.max(1, deviation))
  }
}

describe('the CPU is within its tolerance', () => {
  it.each([...goldens, ...variants])('%s', async (name) => {
    for (const isa of addon().machine().available) await check(goldenOf(name), 'cpu', 'none', isa)
  })
  it.each([...goldens, ...variants])('%s, q8', (name) => check(goldenOf(name), 'cpu', 'q8'))
  it.each([...goldens, ...variants])('%s, q4', (name) => check(goldenOf(name), 'cpu', 'q4'))
  it.each([...goldens, ...variants])('%s, q4, of the reference on the same weights', (name) =>
    checkSameWeights(goldenOf(name)),
  )
  it.each(['7m', '1m'])('storyteller-%s', (name) => check(storyteller(name), 'cpu'))
  it.each(['7m', '1m'])('storyteller-%s, q8', (name) => check(storyteller(name), 'cpu', 'q8'))
  it.each(['7m', '1m'])('storyteller-%s, q4', (name) => check(storyteller(name), 'cpu', 'q4'))
})

/** A golden's checkpoint in another dtype. bf16 has fewer bits than either, so the values, and the golden file, stay. */
async function converted(name: string, dtype: 'f32' | 'f16'): Promise<string> {
  const target = join(folder, `${name}-${dtype}`)
  await mkdir(target, { recursive: true })
  const { tensors, data } = await openCheckpoint(goldenOf(name))
  const convert = (bytes: Uint8Array) => {
    const values = Float32Array.from(new Uint16Array(bytes.slice().buffer), bf16ToNumber)
    return dtype === 'f32' ? values : Uint16Array.from(values, numberToF16)
  }
  const written = [...tensors.values()].map(({ name: tensor, shape }) => {
    return { name: tensor, shape, dtype: dtypes[dtype].safetensors, data: convert(data(tensor)) }
  })
  await writeTensors(join(target, 'model.safetensors'), written)
  for (const file of ['config.json', 'generation_config.json', 'golden.safetensors'])
    await copyFile(join(goldenOf(name), file), join(target, file))
  return target
}

describe('other dtypes', () => {
  it.each(['f32', 'f16'] as const)('%s', async (dtype) => {
    const checkpoint = await converted('qwen3', dtype)
    await check(checkpoint, 'reference')
    for (const isa of addon().machine().available) await check(checkpoint, 'cpu', 'none', isa)
  })
})

/** The graph of a checkpoint whose hidden output is the residual stream before layer `layer`. */
async function streamBefore(path: string, layer: number) {
  const config = (await readJson(join(path, 'config.json'), 'a config')) as { architectures: string[] }
  const topology = findTopology(config.architectures, path)
  const parsed = topology.parse(config, path)
  const checkpoint = await openCheckpoint(path)
  const graph = await trace(topology, parsed, checkpoint, new Pacer())
  const label = layer ? `layers.${layer - 1}.mlp_residual` : 'embed'
  const register = graph.nodes.find((node) => node.label === label)!.outputs.out!
  return { graph: gathering(graph, register), shape: topology.shape(parsed), checkpoint }
}

function gathering(graph: Graph, register: number): Graph {
  const gather = graph.nodes.find(({ op }) => op === 'gather_rows')!
  const out = graph.registers.length
  const inputs = { x: { ...gather.inputs.x!, register } }
  return {
    registers: [...graph.registers, graph.registers[gather.outputs.out!]!],
    nodes: [...graph.nodes, { ...gather, label: 'stream', inputs, outputs: { out } }],
    outputs: { ...graph.outputs, hidden: out },
  }
}

describe('the residual stream', () => {
  it.each(goldens)('%s', async (name) => {
    const path = goldenOf(name)
    const { tensors } = await openGolden(join(path, 'golden.safetensors'))
    const { prompts } = await readGolden(join(path, 'golden.safetensors'), 515)
    const ids = prompts[1]!.ids
    for (let layer = 0; layer < 3; layer++) {
      const { graph, shape, checkpoint } = await streamBefore(path, layer)
      const golden = tensors.floats(`prompt1.hidden${layer}`, [ids.length, shape.hidden])
      // residual folds keep the stream as an output, because something reads it
      for (const each of [graph, fuse(graph)]) {
        const pkg = await packageGraph(each, checkpoint.data, shape, folder, `${name}.${layer}`)
        const steps = [{ sequences: [{ slot: 1, blocks: [1], position: 0, tokens: ids }] }]
        const [result] = await runSteps(referenceBackend, pkg, steps)
        for (const [i, value] of golden.entries()) expect(Math.abs(result!.hidden[i]! - value)).toBeLessThan(1e-5)
      }
    }
  })
})
