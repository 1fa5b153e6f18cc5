/** How far two sets of logits are apart. */

export interface Difference {
  /** Largest absolute error. */
  readonly maxAbs: number
  /** Root mean square of the errors. */
  readonly rms: number
  /** maxAbs over the root mean square of the expected logits. */
  readonly maxRel: number
  /** Mean over tokens of KL(expected || actual) of the next-token distributions, in nats. */
  readonly kl: number
  /** Share of tokens with the same best id. */
  readonly argmaxAgreement: number
}

/** Log-softmax of `logits[start, start + vocab)` in float64. */
export function logSoftmax(logits: ArrayLike<number>, start: number, vocab: number): Float64Array {
  const z = Float64Array.from({ length: vocab }, (_, i) => logits[start + i]!)
  const best = z.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const normalizer = best + Math.log(z.reduce((sum, value) => sum + Math.exp(value - best), 0))
  return z.map((value) => value - normalizer)
}

const argmax = (values: Float64Array) => values.reduce((best, value, i) => (value > values[best]! ? i : best), 0)

/** Compares two (tokens, vocab) matrices; NaN or a missing element makes every figure NaN or infinite. */
export function compareLogits(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  vocab: number,
): Difference & { readonly deviation: number } {
  const tokens = expected.length / vocab
  let [maxAbs, errors, sum, squares, kl, agreed] = [0, 0, 0, 0, 0, 0]
  for (let i = 0; i < expected.length; i++) {
    const error = (actual[i] ?? Number.NaN) - expected[i]!
    maxAbs = Math.max(maxAbs, Math.abs(error))
    errors += error ** 2
    sum += expected[i]!
    squares += expected[i]! ** 2
  }
  for (let start = 0; start < expected.length; start += vocab) {
    const [p, q] = [logSoftmax(expected, start, vocab), logSoftmax(actual, start, vocab)]
    kl += p.reduce((total, logp, i) => total + Math.exp(logp) * (logp - q[i]!), 0)
    if (argmax(p) === argmax(q)) agreed++
  }
  const mean = sum / expected.length
  const meanSquare = squares / expected.length
  return {
    maxAbs,
    rms: Math.sqrt(errors / expected.length),
    maxRel: maxAbs / Math.sqrt(meanSquare),
    // rounding can take a divergence of nothing below 0
    kl: kl < 0 ? 0 : kl / tokens,
    argmaxAgreement: agreed / tokens,
    deviation: Math.sqrt(Math.max(0, meanSquare - mean ** 2)),
  }
}

/** Loss of every token but the first under (tokens, vocab) logits, against the golden losses. */
export function lossOf(logits: ArrayLike<number>, ids: readonly number[], vocab: number, golden: ArrayLike<number>) {
  let [total, goldenTotal, maxAbs] = [0, 0, 0]
  for (let t = 0; t + 1 < ids.length; t++) {
    const loss = -logSoftmax(logits, t * vocab, vocab)[ids[t + 1]!]!
    total += loss
    goldenTotal += golden[t]!
    maxAbs = Math.max(maxAbs, Math.abs(loss - golden[t]!))
  }
  const count = Math.max(1, ids.length - 1)
  return { mean: total / count, golden: goldenTotal / count, maxAbs }
}
