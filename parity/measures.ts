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
function logSoftmax(logits: ArrayLike<number>, start: number, vocab: number): Float64Array {
  // plain loops: a matrix of backends takes this of a hundred million logits
  const z = new Float64Array(vocab)
  let best = Number.NEGATIVE_INFINITY
  for (let i = 0; i < vocab; i++) best = Math.max(best, (z[i] = logits[start + i]!))
  let sum = 0
  for (let i = 0; i < vocab; i++) sum += Math.exp(z[i]! - best)
  const normalizer = best + Math.log(sum)
  for (let i = 0; i < vocab; i++) z[i]! -= normalizer
  return z
}

function argmax(values: Float64Array): number {
  let best = 0
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i
  return best
}

/** KL(expected || actual) of two log-distributions, in nats. */
function divergence(expected: Float64Array, actual: Float64Array): number {
  let total = 0
  for (let i = 0; i < expected.length; i++) total += Math.exp(expected[i]!) * (expected[i]! - actual[i]!)
  return total
}

/** KL(expected || actual) of every token of two (tokens, vocab) matrices, in nats; rounding can take one below 0. */
export function divergences(actual: ArrayLike<number>, expected: ArrayLike<number>, vocab: number): number[] {
  const kls: number[] = []
  for (let start = 0; start < expected.length; start += vocab)
    kls.push(divergence(logSoftmax(expected, start, vocab), logSoftmax(actual, start, vocab)))
  return kls
}

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
    kl += divergence(p, q)
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
