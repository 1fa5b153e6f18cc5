/** Compares two runs of one shape: the figures of a cell, and what of them fails. */
import type { ExecutionPlan } from '../plans/plan.ts'
import { rowError } from './alone.ts'
import type { LayerDivergence, MatrixGreedy, MatrixMetrics, MatrixShape } from './matrix-report.ts'
import type { Run } from './matrix-run.ts'
import { compareLogits } from './measures.ts'
import { sameArithmetic } from './steps.ts'
import { type MatrixTolerance, matrixTolerance } from './tolerances.ts'

export interface Comparison {
  readonly sameBits: boolean
  readonly metrics: MatrixMetrics
  readonly layers: readonly LayerDivergence[]
  readonly failures: readonly string[]
}

/** Positions of a sequence whose inputs are the same on both sides, and where the tokens part; -1: nowhere. */
function comparable(expected: readonly number[], actual: readonly number[], length: number) {
  const first = expected.slice(0, length).findIndex((token, i) => token !== actual[i])
  return { rows: first < 0 ? length : first, first }
}

/** Rows of logits and of streams that can be compared, over all sequences. */
function pairRows(expected: Run, actual: Run, shape: MatrixShape) {
  const greedy: { matched: number; total: number; margins: number[] } = { matched: 0, total: 0, margins: [] }
  const rows: { readonly sequence: number; readonly position: number }[] = []
  for (const [sequence, want] of expected.sequences.entries()) {
    const got = actual.sequences[sequence]!
    const length = want.prompt + shape.generate
    const { rows: count, first } = comparable(want.tokens, got.tokens, length)
    const computed = Math.min(count, got.logits.length, want.logits.length)
    for (let position = 0; position < computed; position++) rows.push({ sequence, position })
    greedy.total += shape.generate
    greedy.matched += first < 0 ? shape.generate : first - want.prompt
    const before = want.logits[first - 1]
    if (first >= 0) greedy.margins.push(before![want.tokens[first]!]! - before![got.tokens[first]!]!)
  }
  return { rows, greedy }
}

const gather = (run: Run, rows: readonly { sequence: number; position: number }[], vocab: number): Float32Array => {
  const all = new Float32Array(rows.length * vocab)
  for (const [i, { sequence, position }] of rows.entries())
    all.set(run.sequences[sequence]!.logits[position]!, i * vocab)
  return all
}

/** Tokens whose best id differs though the expected side leads by at least `tie`, and logits that err by over `limit`. */
function outliers(expected: Float32Array, actual: Float32Array, vocab: number, tie: number, limit: number) {
  let [outsideTies, beyond] = [0, 0]
  for (let start = 0; start < expected.length; start += vocab) {
    let [a, b] = [start, start]
    for (let i = start; i < start + vocab; i++) {
      if (expected[i]! > expected[a]!) a = i
      if (actual[i]! > actual[b]!) b = i
      if (!(Math.abs(actual[i]! - expected[i]!) <= limit)) beyond++
    }
    if (!(expected[a]! - expected[b]! < tie) && a !== b) outsideTies++
  }
  return { outsideTies, beyond }
}

function layerErrors(
  expected: Run,
  actual: Run,
  rows: readonly { sequence: number; position: number }[],
  allowed: number,
): LayerDivergence[] {
  if (!expected.traced || !actual.traced) return []
  return expected.layers.map(({ label, instruction }, layer) => {
    const errors = rows.map(({ sequence, position }) => {
      const [want, got] = [expected, actual].map((run) => run.sequences[sequence]!.streams[layer]![position]!)
      return rowError(want!, got!, 0, want!.length)
    })
    const mean = errors.reduce((sum, error) => sum + error, 0) / Math.max(1, errors.length)
    return { label, instruction, mean, worst: { value: errors.reduce((a, b) => Math.max(a, b), 0), allowed } }
  })
}

const figure = (value: number) => (Number.isInteger(value) ? String(value) : value.toExponential(2))

/** Sentences on what exceeds its bound; a figure that is no number exceeds every bound. */
function exceeded(metrics: MatrixMetrics, layers: readonly LayerDivergence[]): string[] {
  const { rms, maxAbs, kl, mismatchRatio, argmaxOutsideTies, greedy } = metrics
  const bounds = {
    'the rms logit error': rms,
    'the largest logit error': maxAbs,
    'the KL divergence': kl,
    'the share of logits far off': mismatchRatio,
  }
  const counts = {
    'best tokens that differ outside ties': argmaxOutsideTies,
    'greedy continuations that part outside ties': greedy.outsideTies,
  }
  const layer = layers.find(({ worst }) => !(worst.value <= worst.allowed))
  const streams = layer ? { [`the residual stream behind ${layer.label}`]: layer.worst } : {}
  return Object.entries({ ...bounds, ...counts, ...streams })
    .filter(([, { value, allowed }]) => !(value <= allowed))
    .map(([what, { value, allowed }]) => `${what}: ${figure(value)}, allowed is ${figure(allowed)}`)
}

/** Greedy agreement with its ties counted. */
function greedyOf(
  { matched, total, margins }: { matched: number; total: number; margins: readonly number[] },
  tie: number,
): MatrixGreedy & { outsideTies: { value: number; allowed: number } } {
  const ties = margins.filter((margin) => margin < tie).length
  return { matched, total, ties, outsideTies: { value: margins.length - ties, allowed: 0 } }
}

const exact: MatrixTolerance = { rms: 0, maxAbs: 0, tie: 0, kl: 0, mismatch: 0, layer: 0 }

/** Judges `actual` by `expected`: by bits where both have one arithmetic, else by the tolerances of `plan`. */
export function compareRuns(plan: ExecutionPlan, expected: Run, actual: Run, shape: MatrixShape): Comparison {
  const { vocab } = plan
  const same = sameArithmetic(expected.device, actual.device)
  const { rows, greedy } = pairRows(expected, actual, shape)
  const traced = expected.traced && actual.traced
  const sameBits = traced ? expected.digest === actual.digest : expected.logitsDigest === actual.logitsDigest
  const [want, got] = sameBits
    ? [new Float32Array(vocab), new Float32Array(vocab)]
    : [gather(expected, rows, vocab), gather(actual, rows, vocab)]
  const { deviation, ...difference } = compareLogits(got, want, vocab)
  const bothRound = [expected, actual].every(({ device }) => device.backend !== 'reference')
  const allowed = same ? exact : matrixTolerance(plan, deviation, bothRound)
  const { outsideTies, beyond } = outliers(want, got, vocab, allowed.tie, 4 * allowed.rms)
  const metrics: MatrixMetrics = {
    tokens: rows.length,
    maxAbs: { value: difference.maxAbs, allowed: allowed.maxAbs },
    maxRel: sameBits ? 0 : difference.maxRel,
    rms: { value: difference.rms, allowed: allowed.rms },
    kl: { value: difference.kl, allowed: allowed.kl },
    mismatchRatio: { value: beyond / want.length, allowed: allowed.mismatch },
    argmaxAgreement: difference.argmaxAgreement,
    argmaxOutsideTies: { value: outsideTies, allowed: 0 },
    greedy: greedyOf(greedy, allowed.tie),
  }
  const layers = layerErrors(expected, actual, rows, allowed.layer)
  const bits = same && !sameBits ? ['bits differ, and the arithmetic of both is one'] : []
  return { sameBits, metrics, layers, failures: [...bits, ...exceeded(metrics, layers)] }
}
