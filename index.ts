/**
 * Ingot: compile a checkpoint once, run its plan inside Node.js.
 *
 *     await compile('checkpoint-dir', { out: 'name.ingot' })
 *     await using model = await open('name.ingot')
 *     for await (const { text } of model.generate('Once upon a time')) process.stdout.write(text)
 */
import type { KeyObject } from 'node:crypto'
import { z } from 'zod'
import { backendNames, backendOf } from './compute/backends.ts'
import type { Backend, DeviceInfo, Runner } from './compute/device.ts'
import { deviceClass, kernelDigest } from './compute/kernels.ts'
import { type RecordOptions, recordSteps } from './compute/recorder.ts'
import { fail, IngotError } from './errors.ts'
import { type Capacity, capacity, draftCapacity, type ModelOptions, modelShape } from './inference/capacity.ts'
import { type DraftParts, Model } from './inference/model.ts'
import { parseOptions } from './inference/options.ts'
import type { GenerationDefaults } from './inference/sampling.ts'
import type { ShadowParts } from './inference/shadow.ts'
import {
  assertCompares,
  assertShadow,
  type ParsedShadow,
  type ShadowOptions,
  shadowCapacity,
  shadowSchema,
  shadowTolerance,
} from './inference/shadow-options.ts'
import type { TokenizerFiles } from './inference/text/tokenizer.ts'
import {
  type Candidate,
  type Certificate,
  findCertificate,
  kernelSubject,
  packageSubjects,
  precisionOf,
} from './models/certificate.ts'
import type { CompileOptions, CompileResult } from './models/compile.ts'
import { publicKey } from './models/dsse.ts'
import { type Package, readPackage, TOKENIZER_FILE, weightsHash } from './models/package.ts'
import { findTuning } from './models/tuning.ts'

export type { StepTally, Tally } from './abi/native.ts'
export type { DeviceInfo, MemoryUse, TuningInfo } from './compute/device.ts'
export type { ErrorCode } from './errors.ts'
export { CancelledError, ConfigError, DeviceError, IngotError, PlanError } from './errors.ts'
export type { ModelOptions } from './inference/capacity.ts'
export type { EngineStats } from './inference/counters.ts'
export type { ChatOptions, ModelInfo, Prompt, RequestOptions } from './inference/model.ts'
export { Model } from './inference/model.ts'
export type { GenerateOptions } from './inference/sampling.ts'
export type {
  ShadowDivergence,
  ShadowEnd,
  ShadowEvent,
  ShadowOptions,
  ShadowStats,
} from './inference/shadow-options.ts'
export type { SpeculationStats, SpeculativeOptions } from './inference/speculate.ts'
export type { FinishReason, Generation, GenerationEvent, GenerationResult, TokenLogprob } from './inference/stream.ts'
export type { ChatMessage } from './inference/text/chat-template.ts'
export type { Certificate } from './models/certificate.ts'
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
  /**
   * Hand a step over before the tokens of the last one are read, so that the backend never waits for JavaScript; a request
   * that arrives meanwhile waits a step longer. Default: on CUDA, without `record`. Steps whose tokens the host must see first
   * wait for them: with penalties, `speculative` or a shadow.
   */
  pipelined?: boolean | undefined
  /** Accept kernels that a backend launches once a slot instead of once a step. Default: refuse with LINK_GAPS. */
  allowPerSlot?: boolean | undefined
  /** The dual path: compare some live steps with a backend or package that is trusted. Default: don't. */
  shadow?: ShadowOptions | undefined
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
  /**
   * Whether somebody trusted must have certified that this backend computes this package as the reference does. allow
   * (default) does not ask. warn opens without, and says why in `model.warnings` and as a warning of the process. require
   * refuses, with the code and the reason of the certificate that came nearest, and hashes every byte. A draft needs none:
   * it decides no output.
   */
  certificates?: 'allow' | 'warn' | 'require' | undefined
  /**
   * Take the kernels that `ingot tune` found to be fastest on this device, where the package holds such measurements
   * (default). They decide speed; in the deterministic mode, not a bit. `device.tuning` says what was found. Where a
   * certificate is required, they count in the deterministic mode only.
   */
  tuning?: boolean | undefined
  /** Whose certificates count: Ed25519 public keys as PEM. Needed unless `certificates` is allow. */
  trustedKeys?: readonly string[] | undefined
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
  pipelined: z.boolean().optional().describe('a boolean'),
  allowPerSlot: z.boolean().optional().describe('a boolean'),
  shadow: shadowSchema,
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
  certificates: z.enum(['allow', 'warn', 'require']).optional().describe('"allow", "warn" or "require"'),
  tuning: z.boolean().optional().describe('a boolean'),
  // Read by keysOf.
  trustedKeys: z.unknown().optional(),
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

type Mismatch = (thing: string, expected: unknown, got: unknown) => Error

/** Throws what `refuse` makes unless a token id means the same to both. */
function assertSameVocabulary(model: Package, other: Package, refuse: Mismatch): void {
  if (other.plan.vocab !== model.plan.vocab) throw refuse('vocabulary', model.plan.vocab, other.plan.vocab)
  const [expected, got] = [tokenizerHash(model), tokenizerHash(other)]
  if (expected !== got) throw refuse(TOKENIZER_FILE, expected ?? 'none', got ?? 'none')
}

type CertificatePolicy = NonNullable<OpenOptions['certificates']>

/** The keys of `trustedKeys`; a message never shows what stood there, which may be a private key. */
function keysOf(pems: unknown): KeyObject[] {
  const refuse = (got: string) =>
    fail('OPTION_INVALID', { option: 'trustedKeys', expected: 'a list of Ed25519 public keys as PEM', got })
  if (pems === undefined) return []
  if (!Array.isArray(pems)) throw refuse('no list')
  return pems.map((pem, index) => {
    const key = typeof pem === 'string' && publicKey(pem)
    if (key) return key
    throw refuse(`something else at index ${index}`)
  })
}

/** Throws OPTION_INVALID where a policy is asked for that the other options cannot hold. */
function assertPolicy(policy: CertificatePolicy, trusted: readonly KeyObject[], integrity: string): void {
  const refuse = (option: string, expected: string, got: string) => fail('OPTION_INVALID', { option, expected, got })
  if (policy !== 'allow' && trusted.length === 0)
    throw refuse('trustedKeys', `at least one key, with certificates: "${policy}"`, 'none')
  if (policy === 'require' && integrity !== 'full')
    throw refuse('integrity', '"full", with certificates: "require"', `"${integrity}"`)
}

async function candidateOf(pkg: Package, backend: Backend, info: DeviceInfo): Promise<Candidate> {
  const kernels = { name: kernelSubject(info.backend), sha256: await kernelDigest(backend) }
  return {
    subjects: [...packageSubjects(pkg), kernels],
    backend: info.backend,
    deviceClass: deviceClass(info),
    deterministic: info.deterministic,
    precision: precisionOf(pkg.plan),
  }
}

/** The certificate that counts for an opened package, or why none does. Throws that reason where one is required. */
async function certified(
  pkg: Package,
  backend: Backend,
  info: DeviceInfo,
  policy: CertificatePolicy,
  trusted: readonly KeyObject[],
): Promise<{ readonly certificate?: Certificate; readonly warnings: readonly IngotError[] }> {
  if (policy === 'allow') return { warnings: [] }
  try {
    return {
      certificate: await findCertificate(pkg.path, trusted, await candidateOf(pkg, backend, info)),
      warnings: [],
    }
  } catch (error) {
    if (policy === 'require' || !(error instanceof IngotError)) throw error
    process.emitWarning(error.message, { type: 'IngotWarning', code: error.code })
    return { warnings: [error] }
  }
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
  const refuse: Mismatch = (thing, expected, got) => fail('DRAFT_MISMATCH', { draft: pkg.path, thing, expected, got })
  assertSameVocabulary(model, pkg, refuse)
  const own = draftCapacity(pkg.plan, target, pkg.path)
  return { runner: await openRunner(pkg, own), plan: pkg.plan, capacity: own }
}

/** The path that a shadow is to be compared with, as it was opened. */
interface LivePath {
  readonly pkg: Package
  readonly runner: Runner
  readonly capacity: Capacity
  readonly deterministic: boolean | undefined
  readonly allowPerSlot: boolean | undefined
}

/** Opens what some steps of the live path are compared with. Throws SHADOW_MISMATCH and OPTION_INVALID. */
async function openShadow(options: ParsedShadow, pkg: Package, live: LivePath): Promise<ShadowParts> {
  const { pkg: model, runner, deterministic, allowPerSlot } = live
  const refuse: Mismatch = (thing, expected, got) => fail('SHADOW_MISMATCH', { shadow: pkg.path, thing, expected, got })
  assertSameVocabulary(model, pkg, refuse)
  const own = shadowCapacity(pkg.plan, live.capacity, pkg.path)
  const { backend, isa, threads = runner.info.threads } = options
  const { limits, blocks, slots } = own
  const trusted = await backendOf(backend).open(pkg, { limits, blocks, slots, threads, isa, allowPerSlot })
  try {
    assertCompares(trusted, pkg.plan, deterministic)
  } catch (error) {
    trusted.dispose()
    throw error
  }
  const tolerance = shadowTolerance(options, { runner, plan: model.plan }, { runner: trusted, plan: pkg.plan })
  return { runner: trusted, capacity: own, options, tolerance }
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
    pipelined,
    allowPerSlot,
    record,
    certificates = 'allow',
    trustedKeys,
    tuning: wanted = true,
    shadow: shadowed,
    // Where a certificate is required, a receipt does not do: it is this user's own word, which nobody signed.
    integrity = certificates === 'require' ? 'full' : 'auto',
    ...sizes
  } = parseOptions(openSchema, 'open', options)
  const trusted = keysOf(trustedKeys)
  assertPolicy(certificates, trusted, integrity)
  if (typeof path !== 'string' || path === '')
    throw fail('OPTION_INVALID', { option: 'package', expected: 'the path of a package', got: String(path) })
  const device = backendOf(backend)
  const pkg = await readPackage(path, { integrity })
  if (shadowed) assertShadow(shadowed, pkg.plan, path)
  const fixed = capacity(pkg.plan, sizes, path)
  // A guess is accepted when it is what the model would have said without it.
  const exact = deterministic ?? (fixed.speculation ? true : undefined)
  const ignored: IngotError[] = []
  const openRunner: OpenRunner = async (pkg, { limits, blocks, slots }) => {
    const mode = { deterministic: exact ?? false, wanted, certified: certificates === 'require' }
    const tuning = await findTuning(pkg.path, device.identity?.(), mode)
    for (const { message, code } of tuning.warnings) process.emitWarning(message, { type: 'IngotWarning', code })
    ignored.push(...tuning.warnings)
    const shared = { limits, blocks, slots, threads, pin, isa, deterministic: exact, pipelined, allowPerSlot }
    return device.open(pkg, { ...shared, tuning })
  }
  const opened = await openRunner(pkg, fixed)
  const runner = record ? await recorded(opened, pkg, record) : opened
  let draft: DraftParts | undefined
  let shadow: ShadowParts | undefined
  try {
    const certify = (pkg: Package, backend: Backend, info: DeviceInfo) =>
      certified(pkg, backend, info, certificates, trusted)
    const { certificate, warnings: own } = await certify(pkg, device, runner.info)
    const warnings = [...own, ...ignored]
    const { draft: draftPath } = sizes.speculative ?? {}
    if (draftPath !== undefined)
      draft = await openDraft(await readPackage(draftPath, { integrity }), pkg, fixed, openRunner)
    if ((deterministic || fixed.speculation) && !runner.info.deterministic)
      throw fail('OPTION_INVALID', {
        option: deterministic ? 'deterministic' : 'speculative',
        expected: 'a backend whose outputs do not depend on the batch',
        got: backend,
      })
    if (pipelined && runner.depth !== 2) {
      const expected = 'no record: that needs what each step leaves, before the next'
      throw fail('OPTION_INVALID', { option: 'pipelined', expected, got: 'true, and record' })
    }
    if (shadowed) {
      const other = shadowed.package === undefined ? pkg : await readPackage(shadowed.package, { integrity })
      shadow = await openShadow(shadowed, other, { pkg, runner, capacity: fixed, deterministic, allowPerSlot })
      // The reference is what certificates compare with; any other path that requests may be moved to needs its own.
      if (shadowed.backend !== 'reference')
        warnings.push(...(await certify(other, backendOf(shadowed.backend), shadow.runner.info)).warnings)
    }
    return new Model({
      runner,
      plan: pkg.plan,
      hash: pkg.planHash,
      path,
      capacity: fixed,
      draft,
      shadow,
      integrity: pkg.integrity,
      certificate,
      warnings,
      tokenizer: tokenizerFiles(pkg),
      generation: generationDefaults(pkg),
    })
  } catch (error) {
    shadow?.runner.dispose()
    draft?.runner.dispose()
    runner.dispose()
    throw error
  }
}
