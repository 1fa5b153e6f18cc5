/**
 * Compares a model with a golden file: safetensors written by another implementation (DESIGN.md section 5). Two kinds of
 * prompt: `promptN.logits` (tokens, vocab) with `promptN.greedy` and `promptN.greedy_margin`, or `promptN.logits_last`
 * (vocab) with `promptN.nll` (loss of every token but the first, in nats).
 */
import type { ExecutionPlan } from '../plans/plan.ts'
import { type GoldenPrompt, readGolden } from './golden-file.ts'
import { compareLogits, type Difference, lossOf } from './measures.ts'
import { backendClass, goldenTolerances, type Tolerance, tieMargin, weightsClass } from './tolerances.ts'

/** What a check needs of an opened model. */
export interface ParityModel {
  readonly plan: Pick<ExecutionPlan, 'tensors' | 'vocab'>
  readonly device: { readonly backend: string }
  /** (tokens, vocab) */
  logits(ids: ArrayLike<number>): Promise<Float32Array>
  generate(
    ids: readonly number[],
    options: {
      readonly maxTokens: number
      readonly temperature: 0
      readonly repetitionPenalty: 1
      readonly ignoreEos: true
    },
  ): { result(): Promise<{ readonly tokens: ArrayLike<number> }> }
}

export interface GreedyAgreement {
  /** Tokens equal before the first difference. */
  readonly matched: number
  readonly total: number
  /** Index of the first difference, null without one. Nothing after it is comparable. */
  readonly firstDivergence: number | null
  /** The golden margin there. */
  readonly margin?: number
}

export interface GoldenCase extends Difference {
  readonly name: string
  /** Tokens of the prompt. */
  readonly tokens: number
  readonly greedy: GreedyAgreement
  /** What is allowed of this case: root mean square and largest error of a logit, and the lead of a greedy tie. */
  readonly tolerance: { readonly rms: number; readonly maxAbs: number; readonly tie: number }
  /** Loss per token: mean of both, and largest error of one token. */
  readonly nll?: { readonly mean: number; readonly golden: number; readonly maxAbs: number }
  /** What failed, in sentences; empty: the case passes. */
  readonly failures: readonly string[]
}

export interface ParityReport {
  readonly pass: boolean
  readonly backend: string
  /** Who wrote the golden file. */
  readonly reference: string
  readonly weights: string
  /** Why the tolerance is what it is. */
  readonly reason: string
  readonly cases: readonly GoldenCase[]
}

async function greedyAgreement(model: ParityModel, { ids, greedy }: GoldenPrompt): Promise<GreedyAgreement> {
  if (!greedy) return { matched: 0, total: 0, firstDivergence: null }
  const options = { maxTokens: greedy.tokens.length, temperature: 0, repetitionPenalty: 1, ignoreEos: true } as const
  const { tokens } = await model.generate(ids, options).result()
  const total = greedy.tokens.length
  const first = greedy.tokens.findIndex((token, i) => tokens[i] !== token)
  if (first < 0) return { matched: total, total, firstDivergence: null }
  return { matched: first, total, firstDivergence: first, margin: greedy.margins[first]! }
}

/** Sentences on what a case exceeds. */
function failuresOf(result: Omit<GoldenCase, 'failures'>, { nll: nllTolerance }: Tolerance): string[] {
  const { maxAbs, rms, tolerance, greedy, nll } = result
  const failures: string[] = []
  if (!(rms <= tolerance.rms)) failures.push(`the rms logit error is ${rms}, allowed is ${tolerance.rms}`)
  if (!(maxAbs <= tolerance.maxAbs))
    failures.push(`the largest logit error is ${maxAbs}, allowed is ${tolerance.maxAbs}`)
  if (greedy.margin !== undefined && !(greedy.margin < tolerance.tie))
    failures.push(
      `greedy token ${greedy.firstDivergence} differs where the best logit leads by ${greedy.margin}, more than ${tolerance.tie}`,
    )
  const allowed = nll && nllTolerance * Math.max(1, nll.golden)
  if (nll && !(Math.abs(nll.mean - nll.golden) <= allowed!))
    failures.push(`the mean loss is ${nll.mean}, expected ${nll.golden} within ${allowed}`)
  return failures
}

async function checkPrompt(model: ParityModel, prompt: GoldenPrompt, allowed: Tolerance): Promise<GoldenCase> {
  const { vocab } = model.plan
  const all = await model.logits(prompt.ids)
  const rows = prompt.logits.length / vocab
  const actual = all.subarray(all.length - rows * vocab)
  const { deviation, ...difference } = compareLogits(actual, prompt.logits, vocab)
  const scale = Math.max(1, deviation)
  const losses = prompt.nll && lossOf(all, prompt.ids, vocab, prompt.nll)
  const result = {
    name: prompt.name,
    tokens: prompt.ids.length,
    ...difference,
    greedy: await greedyAgreement(model, prompt),
    tolerance: { rms: allowed.rms * scale, maxAbs: allowed.logits * scale, tie: tieMargin(allowed) * scale },
    ...(losses && { nll: losses }),
  }
  return { ...result, failures: failuresOf(result, allowed) }
}

/**
 * Runs every prompt of the golden file at `path`. Throws PlanError when the file is malformed or does not fit the model.
 */
export async function runGolden(
  model: ParityModel,
  path: string,
  options: { readonly onProgress?: (done: number, total: number, what: string) => void } = {},
): Promise<ParityReport> {
  const golden = await readGolden(path, model.plan.vocab)
  const weights = weightsClass(model.plan)
  const allowed = goldenTolerances[backendClass(model.device.backend)][weights]
  const cases: GoldenCase[] = []
  for (const [done, prompt] of golden.prompts.entries()) {
    options.onProgress?.(done, golden.prompts.length, prompt.name)
    cases.push(await checkPrompt(model, prompt, allowed))
  }
  options.onProgress?.(cases.length, cases.length, 'done')
  return {
    pass: cases.every(({ failures }) => failures.length === 0),
    backend: model.device.backend,
    reference: golden.reference,
    weights,
    reason: allowed.reason,
    cases,
  }
}

/** The report as lines for people. */
export function printParity(report: ParityReport): string {
  const line = ({ name, tokens, maxAbs, rms, kl, argmaxAgreement, greedy, tolerance, nll, failures }: GoldenCase) => {
    const facts = [
      `${tokens} tokens`,
      `rms error ${rms.toExponential(1)} of ${tolerance.rms.toExponential(1)}`,
      `largest ${maxAbs.toExponential(1)} of ${tolerance.maxAbs.toExponential(1)}`,
      `KL ${kl.toExponential(1)}`,
      `same best token ${(100 * argmaxAgreement).toFixed(1)} %`,
      ...(greedy.total ? [`greedy ${greedy.matched}/${greedy.total}`] : []),
      ...(nll ? [`loss ${nll.mean.toFixed(5)}, golden ${nll.golden.toFixed(5)}`] : []),
    ]
    return [
      `${failures.length ? 'FAIL' : 'ok  '} ${name}: ${facts.join(', ')}`,
      ...failures.map((why) => `     ${why}`),
    ]
  }
  const verdict = `${report.pass ? 'pass' : 'FAIL'}: ${report.backend}, ${report.weights} weights, against ${report.reference}`
  return [...report.cases.flatMap(line), verdict].join('\n')
}
