/** The compiler: a checkpoint folder in, a frozen plan and the source of every stored byte out. Writes nothing. */
import { join } from 'node:path'
import { digestOf } from '../../plans/hash.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { writePlan } from '../../plans/write.ts'
import { type Checkpoint, openCheckpoint } from '../checkpoint.ts'
import { type GenerationSettings, invalid, readArchitectures, readGeneration } from '../config.ts'
import { isObject, type MapFile, readJson, readOptional } from '../files.ts'
import { findTopology } from '../index.ts'
import { type FusionChoice, fuse } from './fuse.ts'
import { lower, type StoredWeight } from './lower.ts'
import { Pacer } from './pacer.ts'
import { type Quantization, quantize, quantizeStates, type StateFormat } from './quantize.ts'
import { checkShapes } from './shapes.ts'
import { trace } from './trace.ts'

export interface CompileCheckpointOptions {
  readonly quantize?: Quantization
  readonly state?: StateFormat
  readonly fusions?: FusionChoice
  readonly signal?: AbortSignal | undefined
  /** How files are mapped; the native addon does it unless a test says otherwise. */
  readonly mapFile?: MapFile
}

export interface CompiledCheckpoint {
  readonly checkpoint: Checkpoint
  readonly architecture: string
  readonly plan: ExecutionPlan
  readonly planBytes: Uint8Array
  readonly planHash: string
  /** In the order of the plan's tensors. */
  readonly weights: readonly StoredWeight[]
  readonly quantize: Quantization
  readonly generation: GenerationSettings
}

export const CONFIG_FILE = 'config.json'
const GENERATION_FILE = 'generation_config.json'
const TOKENIZER_FILES = ['tokenizer.json', 'tokenizer_config.json']

/** A package copies these unread: what is not even a JSON object fails here, not when the package is opened. */
async function checkTokenizer(path: string): Promise<void> {
  for (const file of TOKENIZER_FILES.map((name) => join(path, name))) {
    const json = await readOptional(file)
    if (json !== undefined && !isObject(json)) throw invalid(file, 'the document', 'an object', json)
  }
}

/**
 * Compiles the checkpoint in folder `path`; weights are named, not read. Throws FILE_MISSING, FILE_TRUNCATED,
 * JSON_INVALID, CONFIG_INVALID, ARCHITECTURE_UNSUPPORTED, ROPE_UNSUPPORTED, DTYPE_UNSUPPORTED, SAFETENSORS_HEADER,
 * SAFETENSORS_INDEX, TENSOR_MISSING, TENSOR_EXTRA, TENSOR_SHAPE, ABORTED.
 */
export async function compileCheckpoint(
  path: string,
  {
    quantize: quantization = 'none',
    state = 'checkpoint',
    fusions = {},
    signal,
    mapFile,
  }: CompileCheckpointOptions = {},
): Promise<CompiledCheckpoint> {
  const pacer = new Pacer(signal)
  const configPath = join(path, CONFIG_FILE)
  const config = await readJson(configPath, 'the config of a checkpoint')
  const [architecture] = readArchitectures(config, configPath) as [string]
  const topology = findTopology([architecture], configPath)
  const parsed = topology.parse(config, configPath)
  const generationPath = join(path, GENERATION_FILE)
  const generation = readGeneration(config, configPath, await readOptional(generationPath), generationPath)
  await checkTokenizer(path)
  const checkpoint = await openCheckpoint(path, mapFile)

  const unfused = await trace(topology, parsed, checkpoint, pacer)
  await pacer.rest()
  const fused = fuse(unfused, fusions)
  await pacer.rest()
  const graph = checkShapes(quantizeStates(quantize(fused, quantization), state))
  await pacer.rest()
  const { plan, weights } = lower(graph, topology.name, topology.shape(parsed))
  await pacer.rest()
  const planBytes = writePlan(plan)
  const hash = digestOf(planBytes)
  return { checkpoint, architecture, plan, planBytes, planHash: hash, weights, quantize: quantization, generation }
}
