/** Prefill and decode speed of one package on one backend, through the public interface, against the machine's ceilings. */
import { stepBytes, stepShape, work } from '../compute/work.ts'
import { type EngineStats, type MemoryUse, type Model, open } from '../index.ts'
import { type Ceilings, ceilings } from './ceilings.ts'
import { means, quantile, randomPrompts, type Spread, spread } from './measure.ts'

export interface BenchOptions {
  readonly backend: string
  readonly isa?: string
  readonly threads?: number
  /** As that of open(). */
  readonly deterministic?: boolean
  readonly pipelined?: boolean
  readonly tuning?: boolean
  /** Tokens of the prompts that prefill is measured on. */
  readonly prompt: number
  /** Tokens that each sequence has before it decodes; default: the prompt. */
  readonly context?: number
  /** Steps of a decode run. */
  readonly generate: number
  /** Numbers of sequences. */
  readonly batches: readonly number[]
  readonly repeats: number
  /** Token budget of one step; default: the engine's. */
  readonly stepTokens?: number
  readonly onProgress?: (done: number, total: number, what: string) => void
}

export interface PrefillCell {
  readonly tokens: number
  readonly batch: number
  readonly tokensPerSecond: number
  /** Least time of the prompt's multiply-adds over its time; absent without ceilings. */
  readonly peakShare?: number
  readonly spread: Spread
}
export interface DecodeCell {
  readonly batch: number
  readonly context: number
  readonly tokensPerSecond: number
  readonly msPerStep: number
  /** Weights and state. */
  readonly bytesPerStep: number
  readonly gigabytesPerSecond: number
  /** Mean time of a step that the backend waited for the host. */
  readonly idleMicroseconds: number
  /** Of the read bandwidth; absent without ceilings. */
  readonly readShare?: number
  readonly spread: Spread
}
export interface BenchReport {
  readonly backend: string
  readonly device: string
  readonly model: string
  readonly weightsBytes: number
  readonly stateBytesPerToken: number
  readonly peakBytes: number
  readonly launchesPerStep: number
  readonly loadMs: number
  /** Where choices of kernels come from, and the launches that they decided; absent where there are none. */
  readonly tuning?: ReturnType<Model['tuning']>
  /** Steps that were captured; absent where none was. */
  readonly captures?: MemoryUse['captures']
  /** Of the machine, in this run; absent where the backend does not run on it. */
  readonly ceilings?: Ceilings
  readonly prefill: readonly PrefillCell[]
  readonly decode: readonly DecodeCell[]
}

const contextOf = ({ context, prompt }: BenchOptions) => context ?? prompt

/** Opens the package with room for every cell. */
export function openForBench(path: string, options: BenchOptions): Promise<Model> {
  const { backend, isa, threads, deterministic, pipelined, tuning, prompt, generate, batches, stepTokens } = options
  const most = Math.max(...batches)
  const budget = stepTokens ?? Math.max(512, most)
  const longest = Math.max(prompt, contextOf(options))
  // The first to decode goes on while the others' prompts are computed.
  const wait = most === 1 ? 0 : Math.ceil((most * longest) / budget) + most
  return open(path, {
    backend,
    ...(isa && { isa }),
    ...(threads && { threads }),
    ...(deterministic !== undefined && { deterministic }),
    ...(pipelined !== undefined && { pipelined }),
    ...(tuning !== undefined && { tuning }),
    maxSlots: most,
    contextTokens: longest + generate + wait + 2,
    maxTokensPerStep: budget,
    prefixCache: false,
  })
}

/** Those of the machine and options, for the CPU backend; undefined for others. */
export async function ceilingsFor({ backend, isa, threads }: BenchOptions): Promise<Ceilings | undefined> {
  if (backend !== 'cpu') return undefined
  return ceilings({ ...(isa && { isa }), ...(threads && { threads }) })
}

/** Mean microseconds of a step, of those that a model ran between two looks at its counters. */
export function perStep(
  before: EngineStats,
  after: EngineStats,
  field: 'deviceMicrosecondsPerStep' | 'hostMicrosecondsPerStep' | 'idleMicrosecondsPerStep',
): number {
  return (after[field] * after.steps - before[field] * before.steps) / (after.steps - before.steps)
}

/** Milliseconds until every prompt has its first token. */
export async function timePrefill(model: Model, prompts: readonly number[][]): Promise<number> {
  const start = performance.now()
  await Promise.all(
    prompts.map((ids) => model.generate(ids, { maxTokens: 1, temperature: 0, ignoreEos: true }).result()),
  )
  return performance.now() - start
}

/** Steps in a row that a time is the mean of where they are submitted ahead: their tokens are seen early or late. */
const SMOOTHED = 4

/**
 * Milliseconds of each of `steps` steps in which every sequence decodes: none ends before the last to start is done. Means
 * of a few in a row, and fewer by as many, where steps are submitted before the tokens of the last are read.
 */
export async function timeDecode(model: Model, prompts: readonly number[][], steps: number): Promise<number[]> {
  const done = new AbortController()
  const marks: number[] = []
  const { stepsAhead } = model.stats()
  let started = 0
  const options = { maxTokens: model.info.contextTokens, temperature: 0, ignoreEos: true, signal: done.signal }
  const decode = async (ids: number[]) => {
    let last = false
    let seen = 0
    try {
      for await (const _ of model.generate(ids, options)) {
        if (seen++ === 0) last = ++started === prompts.length
        if (last) marks.push(performance.now())
        if (marks.length > steps) break
      }
    } finally {
      done.abort()
    }
  }
  const outcomes = await Promise.allSettled(prompts.map(decode))
  for (const outcome of outcomes)
    if (outcome.status === 'rejected' && outcome.reason?.code !== 'ABORTED') throw outcome.reason
  const times = marks.slice(1).map((mark, i) => mark - marks[i]!)
  return model.stats().stepsAhead > stepsAhead ? means(times, SMOOTHED) : times
}

/** Least milliseconds that the multiply-adds of a prompt take, each at the peak of its arithmetic. */
function peakMs(model: Model, prompt: number, { peak }: Ceilings): number {
  const shape = stepShape(1, prompt, 0)
  return work(model.plan, shape).reduce((ms, w) => ms + w.operations / peak[w.arithmetic].median / 1e6, 0)
}

function prefillCell(model: Model, batch: number, tokens: number, times: readonly number[], limit?: Ceilings) {
  const rates = times.map((ms) => (batch * tokens * 1000) / ms)
  const tokensPerSecond = quantile(rates, 0.5)
  const peakShare = limit && (peakMs(model, tokens, limit) * batch) / quantile(times, 0.5)
  return { tokens, batch, tokensPerSecond, ...(peakShare && { peakShare }), spread: spread(rates) }
}

function decodeCell(
  model: Model,
  { batch, steps: times, idle }: { readonly batch: number; readonly steps: number[]; readonly idle: number[] },
  context: number,
  limit?: Ceilings,
) {
  const msPerStep = quantile(times, 0.5)
  const bytesPerStep = stepBytes(model.plan, stepShape(batch, 1, context))
  const gigabytesPerSecond = bytesPerStep / msPerStep / 1e6
  return {
    batch,
    context,
    tokensPerSecond: (batch * 1000) / msPerStep,
    msPerStep,
    bytesPerStep,
    gigabytesPerSecond,
    idleMicroseconds: quantile(idle, 0.5),
    ...(limit && { readShare: gigabytesPerSecond / limit.read.median }),
    spread: spread(times.map((ms) => (batch * 1000) / ms)),
  }
}

/**
 * Measures every number of sequences, `repeats` times after one warm-up; a prefill cell is the median of its runs, a
 * decode cell of all its steps. `context` of a decode cell is the mean of the run.
 */
export async function bench(path: string, options: BenchOptions): Promise<BenchReport> {
  const { prompt, generate, batches, repeats } = options
  const start = performance.now()
  await using model = await openForBench(path, options)
  const loadMs = performance.now() - start
  const measured: { batch: number; prefills: number[]; steps: number[]; idle: number[] }[] = []
  const total = batches.length * (repeats + 1)
  let done = 0
  for (const batch of batches) {
    const prefills: number[] = []
    const steps: number[] = []
    const idle: number[] = []
    for (let repeat = 0; repeat <= repeats; repeat++) {
      options.onProgress?.(done++, total, `${batch} sequences`)
      const prompts = (tokens: number) => randomPrompts(batch, tokens, model.info.vocab, 1 + repeat)
      const prefillMs = await timePrefill(model, prompts(prompt))
      const before = model.stats()
      const stepMs = await timeDecode(model, prompts(contextOf(options)), generate)
      if (repeat === 0) continue
      prefills.push(prefillMs)
      steps.push(...stepMs)
      idle.push(perStep(before, model.stats(), 'idleMicrosecondsPerStep'))
    }
    measured.push({ batch, prefills, steps, idle })
  }
  // Before the probe of the ceilings, whose buffer is larger than most models.
  const peakBytes = process.resourceUsage().maxRSS * 1024
  const limit = await ceilingsFor(options)
  const context = contextOf(options) + Math.floor(generate / 2)
  options.onProgress?.(total, total, 'done')
  const tuning = model.tuning()
  const { captures } = model.memory()
  return {
    backend: options.backend,
    device: model.device.description,
    model: model.info.model,
    weightsBytes: model.memory().weightsBytes,
    stateBytesPerToken: model.info.stateBytesPerToken,
    peakBytes,
    launchesPerStep: model.stats().launchesPerStep,
    loadMs,
    ...(tuning && { tuning }),
    ...(captures && { captures }),
    ...(limit && { ceilings: limit }),
    prefill: measured.map(({ batch, prefills }) => prefillCell(model, batch, prompt, prefills, limit)),
    decode: measured.map((cell) => decodeCell(model, cell, context, limit)),
  }
}
