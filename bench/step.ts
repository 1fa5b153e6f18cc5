/** Prefill and decode speed of one package on one backend, through the public interface. */
import { type Model, open } from '../index.ts'
import { quantile, randomPrompts, type Spread, spread } from './measure.ts'

export interface BenchOptions {
  readonly backend: string
  readonly isa?: string
  readonly threads?: number
  readonly prompt: number
  readonly generate: number
  readonly batches: readonly number[]
  readonly repeats: number
  readonly onProgress?: (done: number, total: number, what: string) => void
}

export interface PrefillCell {
  readonly tokens: number
  readonly batch: number
  readonly tokensPerSecond: number
  readonly spread: Spread
}
export interface DecodeCell {
  readonly batch: number
  readonly context: number
  readonly tokensPerSecond: number
  readonly msPerStep: number
  readonly bytesPerStep: number
  readonly gigabytesPerSecond: number
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
  readonly prefill: readonly PrefillCell[]
  readonly decode: readonly DecodeCell[]
}

/** Milliseconds until every prompt has its first token. */
async function timePrefill(model: Model, prompts: readonly number[][]): Promise<number> {
  const start = performance.now()
  await Promise.all(
    prompts.map((ids) => model.generate(ids, { maxTokens: 1, temperature: 0, ignoreEos: true }).result()),
  )
  return performance.now() - start
}

/** Milliseconds a step once every request decodes: from the last first token to the end. */
async function timeDecode(model: Model, prompts: readonly number[][], tokens: number): Promise<number> {
  let allStarted = 0
  let stepsLeft = 0
  await Promise.all(
    prompts.map(async (ids) => {
      let seen = 0
      for await (const _ of model.generate(ids, { maxTokens: tokens + 1, temperature: 0, ignoreEos: true }))
        if (seen++ === 0) {
          allStarted = performance.now()
          stepsLeft = tokens
        }
    }),
  )
  return (performance.now() - allStarted) / stepsLeft
}

/** Measures every batch size; each cell is the median of `repeats` runs after one warm-up. */
export async function bench(path: string, options: BenchOptions): Promise<BenchReport> {
  const { prompt, generate, batches, repeats } = options
  const start = performance.now()
  await using model = await open(path, {
    backend: options.backend,
    ...(options.isa && { isa: options.isa }),
    ...(options.threads && { threads: options.threads }),
    maxSlots: Math.max(...batches),
    contextTokens: prompt + generate + 1,
    maxTokensPerStep: Math.max(256, ...batches),
    prefixCache: false,
  })
  const loadMs = performance.now() - start
  const { weightsBytes } = model.memory()
  const { stateBytesPerToken } = model.info
  const prefill: PrefillCell[] = []
  const decode: DecodeCell[] = []
  const total = batches.length * (repeats + 1)
  let done = 0
  for (const batch of batches) {
    const rates: number[] = []
    const steps: number[] = []
    for (let repeat = 0; repeat <= repeats; repeat++) {
      options.onProgress?.(done++, total, `batch ${batch}`)
      const prompts = randomPrompts(batch, prompt, model.info.vocab, 1 + repeat)
      const prefillMs = await timePrefill(model, prompts)
      const stepMs = await timeDecode(model, prompts, generate)
      if (repeat === 0) continue
      rates.push((batch * prompt * 1000) / prefillMs)
      steps.push(stepMs)
    }
    const msPerStep = quantile(steps, 0.5)
    const context = prompt + Math.floor(generate / 2)
    const bytesPerStep = weightsBytes + batch * context * stateBytesPerToken
    prefill.push({ tokens: prompt, batch, tokensPerSecond: quantile(rates, 0.5), spread: spread(rates) })
    decode.push({
      batch,
      context,
      tokensPerSecond: (batch * 1000) / msPerStep,
      msPerStep,
      bytesPerStep,
      gigabytesPerSecond: bytesPerStep / msPerStep / 1e6,
      spread: spread(steps.map((ms) => (batch * 1000) / ms)),
    })
  }
  options.onProgress?.(total, total, 'done')
  return {
    backend: options.backend,
    device: model.device.description,
    model: model.info.model,
    weightsBytes,
    stateBytesPerToken,
    peakBytes: process.resourceUsage().maxRSS * 1024,
    launchesPerStep: model.stats().launchesPerStep,
    loadMs,
    prefill,
    decode,
  }
}
