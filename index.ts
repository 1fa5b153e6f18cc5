/**
 * Ingot: compile a checkpoint once, run its plan inside Node.js.
 *
 *     await compile('checkpoint-dir', { out: 'name.ingot' })
 *     await using model = await open('name.ingot')
 *     for await (const { text } of model.generate('Once upon a time')) process.stdout.write(text)
 */
import { z } from 'zod'
import { backendNames, backendOf } from './compute/backends.ts'
import type { Runner } from './compute/device.ts'
import { type RecordOptions, recordSteps } from './compute/recorder.ts'
import { fail } from './errors.ts'
import { type Capacity, capacity, draftCapacity, type ModelOptions, modelShape } from './inference/capacity.ts'
import { type DraftParts, Model } from './inference/model.ts'
import { parseOptions } from './inference/options.ts'
import type { GenerationDefaults } from './inference/sampling.ts'
import type { TokenizerFiles } from './inference/text/tokenizer.ts'
import type { CompileOptions, CompileResult } from './models/compile.ts'
import { type Package, readPackage, TOKENIZER_FILE, weightsHash } from './models/package.ts'

export type { StepTally, Tally } from './abi/native.ts'
export type { DeviceInfo, MemoryUse } from './compute/device.ts'
export type { ErrorCode } from './errors.ts'
export { CancelledError, ConfigError, DeviceError, IngotError, PlanError } from './errors.ts'
export type { ModelOptions } from './inference/capacity.ts'
export type { EngineStats } from './inference/engine.ts'
export type { ChatOptions, ModelInfo, Prompt, RequestOptions } from './inference/model.ts'
export { Model } from './inference/model.ts'
export type { GenerateOptions } from './inference/sampling.ts'
export type { SpeculationStats, SpeculativeOptions } from './inference/speculate.ts'
export type { FinishReason, Generation, GenerationEvent, GenerationResult, TokenLogprob } from './inference/stream.ts'
export type { ChatMessage } from './inference/text/chat-template.ts'
export type { CompileOptions, CompileResult } from './models/compile.ts'
export type { ExecutionPlan } from './plans/plan.ts'

export interface OpenOptions extends ModelOptions {
  /** Where to run. Default cpu; nothing else is tried when it cannot. */
  backend?: string | undefined
  /** Threads, the model's own included. Default: physical cores that the process may use. */
  threads?: number | undefined
  /**
   * Hold each thread to a core of its own. auto (default): when the threads fill all cores that the process may use.
   * `device.pinning` says whether, and why not.
   */
  pin?: boolean | 'auto' | undefined
  /** Instruction set, of those that `ingot doctor` lists. Default: the best. */
  isa?: string | undefined
  /**
   * True: no bit of a request's output depends on the batch, and a backend that cannot is refused. The CPU's never do; a
   * CUDA device's may, where that is faster. `device.deterministic` says so.
   */
  deterministic?: boolean | undefined
  /** Accept kernels that a backend launches once a slot instead of once a step. Default: refuse with LINK_GAPS. */
  allowPerSlot?: boolean | undefined
  /**
   * full hashes every byte of the package. auto (default) skips large files that were hashed before and have not changed
   * since, by their receipts in the cache folder of the user. structure trusts the bytes of large files. `info.integrity`
   * says what was done.
   */
  integrity?: 'auto' | 'full' | 'structure' | undefined
  /**
   * Writes every step to a folder, to be run again by `ingot replay`: inputs, digests of results and of state. Costs a
   * file a step; the newest `keep` stay (default 64).
   */
  record?: string | { directory: string; keep?: number | undefined } | undefined
}

/** Compiles a checkpoint folder into a package; see CompileOptions. The compiler is loaded when it is first needed. */
export async function compile(checkpoint: string, options?: CompileOptions): Promise<CompileResult> {
  return (await import('./models/compile.ts')).compile(checkpoint, options)
}

const openSchema = z.strictObject({
  ...modelShape,
  backend: z
    .string()
    .optional()
    .describe(`one of ${backendNames.join(', ')}`),
  threads: z.int().min(1).max(1024).optional().describe('an integer from 1 to 1024'),
  pin: z
    .union([z.boolean(), z.literal('auto')])
    .optional()
    .describe('a boolean or "auto"'),
  isa: z.string().optional().describe('the name of an instruction set'),
  deterministic: z.boolean().optional().describe('a boolean'),
  allowPerSlot: z.boolean().optional().describe('a boolean'),
  integrity: z.enum(['auto', 'full', 'structure']).optional().describe('"auto", "full" or "structure"'),
  record: z
    .union([
      z
        .string()
        .min(1)
        .transform((directory) => ({ directory, keep: 64 })),
      z.strictObject({ directory: z.string().min(1), keep: z.int().min(1).default(64) }),
    ])
    .optional()
    .describe('a folder, or { directory, keep }'),
})

/** The stop tokens and sampling that the checkpoint's authors advise. */
function generationDefaults({ manifest: { generation } }: Package): GenerationDefaults {
  const { eos, doSample, temperature, topK, topP, minP, repetitionPenalty } = generation
  return {
    eosTokens: eos,
    options: {
      repetitionPenalty: repetitionPenalty ?? undefined,
      ...(doSample && {
        temperature: temperature ?? 1,
        topK: topK ?? undefined,
        topP: topP ?? undefined,
        minP: minP ?? undefined,
      }),
    },
  }
}

function tokenizerFiles(pkg: Package): TokenizerFiles | undefined {
  const { tokenizerJson, tokenizerPath, vocabulary, tokenizerConfigJson: config, chatTemplate } = pkg
  if (vocabulary && tokenizerPath !== undefined)
    return { tokenizer: { path: tokenizerPath, vocabulary }, config, chatTemplate }
  return tokenizerJson === undefined ? undefined : { tokenizer: tokenizerJson, config, chatTemplate }
}

/** SHA-256 of the tokenizer; undefined: the package has none. */
const tokenizerHash = ({ manifest }: Package) => manifest.files.find(({ path }) => path === TOKENIZER_FILE)?.sha256

/** Throws DRAFT_MISMATCH unless a token id means the same to both. */
function assertSameVocabulary(model: Package, draft: Package): void {
  const refuse = (thing: string, expected: unknown, got: unknown) =>
    fail('DRAFT_MISMATCH', { draft: draft.path, thing, expected, got })
  if (draft.plan.vocab !== model.plan.vocab) throw refuse('vocabulary', model.plan.vocab, draft.plan.vocab)
  const [expected, got] = [tokenizerHash(model), tokenizerHash(draft)]
  if (expected !== got) throw refuse(TOKENIZER_FILE, expected ?? 'none', got ?? 'none')
}

type OpenRunner = (pkg: Package, sizes: Capacity) => Promise<Runner>

/** Disposes the runner where the folder cannot be made. */
async function recorded(runner: Runner, pkg: Package, options: RecordOptions): Promise<Runner> {
  try {
    return await recordSteps(runner, { ...pkg, weightsHash: weightsHash(pkg) }, options)
  } catch (error) {
    runner.dispose()
    throw error
  }
}

/** Opens the package that drafts for `model`, for the same sequences. */
async function openDraft(pkg: Package, model: Package, target: Capacity, openRunner: OpenRunner): Promise<DraftParts> {
  assertSameVocabulary(model, pkg)
  const own = draftCapacity(pkg.plan, target, pkg.path)
  return { runner: await openRunner(pkg, own), capacity: own }
}

/**
 * Opens a package: checks its bytes, proves its plan, links it with the kernels of the backend and takes the memory for
 * `maxSlots` sequences of `contextTokens`. Throws ConfigError, PlanError or DeviceError; nothing stays open on failure.
 */
export async function open(path: string, options: OpenOptions = {}): Promise<Model> {
  const {
    backend = 'cpu',
    threads = 0,
    pin,
    isa = '',
    deterministic,
    allowPerSlot,
    integrity = 'auto',
    record,
    ...sizes
  } = parseOptions(openSchema, 'open', options)
  if (typeof path !== 'string' || path === '')
    throw fail('OPTION_INVALID', { option: 'package', expected: 'the path of a package', got: String(path) })
  const device = backendOf(backend)
  const pkg = await readPackage(path, { integrity })
  const fixed = capacity(pkg.plan, sizes, path)
  // A guess is accepted when it is what the model would have said without it.
  const exact = deterministic ?? (fixed.speculation ? true : undefined)
  const openRunner: OpenRunner = (pkg, { limits, blocks, slots }) =>
    device.open(pkg, { limits, blocks, slots, threads, pin, isa, deterministic: exact, allowPerSlot })
  const opened = await openRunner(pkg, fixed)
  const runner = record ? await recorded(opened, pkg, record) : opened
  let draft: DraftParts | undefined
  try {
    const { draft: draftPath } = sizes.speculative ?? {}
    if (draftPath !== undefined)
      draft = await openDraft(await readPackage(draftPath, { integrity }), pkg, fixed, openRunner)
    if ((deterministic || fixed.speculation) && !runner.info.deterministic)
      throw fail('OPTION_INVALID', {
        option: deterministic ? 'deterministic' : 'speculative',
        expected: 'a backend whose outputs do not depend on the batch',
        got: backend,
      })
    return new Model({
      runner,
      plan: pkg.plan,
      hash: pkg.planHash,
      path,
      capacity: fixed,
      draft,
      integrity: pkg.integrity,
      tokenizer: tokenizerFiles(pkg),
      generation: generationDefaults(pkg),
    })
  } catch (error) {
    draft?.runner.dispose()
    runner.dispose()
    throw error
  }
}
