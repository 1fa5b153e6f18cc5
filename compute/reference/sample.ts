import type { Ops } from '../../abi/ops/index.ts'
import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import { biasEntry, sampleFlags, sampleParams } from '../../abi/step.ts'
import { type ReferenceKernel, type ReferenceStep, row } from './kernel.ts'
import { uniform } from './philox.ts'

type Options = Readonly<Record<keyof typeof sampleParams.word, number>>

const fields = Object.entries(sampleParams.word).map(([name, word]) => {
  const isFloat = sampleParams.fields[name as keyof Options] === 'f32'
  return { name: name as keyof Options, word, isFloat }
})

/** SampleParams of row r. */
export function sampleOptions(step: Pick<ReferenceStep, 'sampling' | 'samplingF32'>, r: number): Options {
  const base = (r * sampleParams.bytes) / 4
  const options = {} as Record<keyof Options, number>
  for (const { name, word, isFloat } of fields)
    options[name] = (isFloat ? step.samplingF32 : step.sampling)[base + word]!
  return options
}

/** Adds the bias, then applies the penalties; `z` changes in place. */
function adjust(z: Float64Array, o: Options, step: ReferenceStep): void {
  for (let i = o.bias_start; i < o.bias_start + o.bias_count; i++) {
    const at = (i * biasEntry.bytes) / 4
    z[step.biasEntries[at + biasEntry.word.token]!]! += step.biasEntriesF32[at + biasEntry.word.bias]!
  }
  const history = step.historyIds.subarray(o.history_start, o.history_start + o.history_count)
  const counts = new Map<number, number>()
  for (const [i, token] of history.entries())
    counts.set(token, (counts.get(token) ?? 0) + (i < o.history_prompt ? 0 : 1))
  for (const [token, count] of counts) {
    const value = z[token]! > 0 ? z[token]! / o.repetition_penalty : z[token]! * o.repetition_penalty
    z[token] = value - (count > 0 ? o.presence_penalty + count * o.frequency_penalty : 0)
  }
}

/** NaN ranks as impossible. */
const possible = (logit: number) => (Number.isNaN(logit) ? Number.NEGATIVE_INFINITY : logit)

/** Ids by value, best first, ties to the lower id. */
const ranked = (z: Float64Array) => Array.from(z.keys()).sort((a, b) => z[b]! - z[a]! || a - b)

function best(z: Float64Array): number {
  let token = 0
  for (let id = 1; id < z.length; id++) if (z[id]! > z[token]!) token = id
  return token
}

/** Longest prefix of the ranked candidates that top_k, then top_p, then min_p keep; never empty. */
function kept(weights: Float64Array, order: readonly number[], o: Options): number {
  let count = o.top_k > 0 ? Math.min(o.top_k, order.length) : order.length
  if (o.top_p < 1) {
    let total = 0
    for (let i = 0; i < count; i++) total += weights[order[i]!]!
    let [sum, i] = [0, 0]
    while (i < count && (i === 0 || sum < o.top_p * total)) sum += weights[order[i++]!]!
    count = i
  }
  const least = o.min_p * weights[order[0]!]!
  while (count > 1 && weights[order[count - 1]!]! < least) count--
  return count
}

/** One draw from softmax(z / temperature) over the candidates: in rank order when one of the limits is set, else in id order. */
function draw(z: Float64Array, o: Options): number {
  const top = z[best(z)]!
  const weights = z.map((value) => (value === top ? 1 : Math.exp((value - top) / o.temperature)))
  const limited = o.top_k > 0 || o.top_p < 1 || o.min_p > 0
  const order = limited ? ranked(z) : Array.from(z.keys())
  const candidates = limited ? order.slice(0, kept(weights, order, o)) : order
  const total = candidates.reduce((sum, id) => sum + weights[id]!, 0)
  const target = uniform(o.seed_low, o.seed_high, o.position) * total
  let sum = 0
  return candidates.find((id) => (sum += weights[id]!) > target) ?? candidates.at(-1)!
}

/** ln of the sum of exponentials. */
function logSum(z: Float64Array): number {
  const top = z[best(z)]!
  return top + Math.log(z.reduce((sum, value) => sum + Math.exp(value - top), 0))
}

export const sample: ReferenceKernel<Ops['sample']> = ({ inputs, step, outputs }) => {
  for (let r = 0; r < step.rows; r++) {
    const o = sampleOptions(step, r)
    const [logprobs, top] = [row(outputs.logprobs, r), row(outputs.top_tokens, r).fill(-1)]
    const tokens = row(outputs.tokens, r)
    tokens[0] = -1
    if (!(o.flags & sampleFlags.sample)) continue
    const logits = row(inputs.logits, r).map(possible)
    const z = row(inputs.logits, r).slice()
    adjust(z, o, step)
    for (const [id, value] of z.entries()) z[id] = possible(value)
    const token = o.temperature === 0 ? best(z) : draw(z, o)
    tokens[0] = token
    if (!(o.flags & sampleFlags.logprobs)) continue
    const normalizer = logSum(logits)
    logprobs[0] = logits[token]! - normalizer
    const wanted = Math.min(o.top_logprobs, TOP_LOGPROBS)
    for (const [i, id] of (wanted ? ranked(logits).slice(0, wanted) : []).entries()) {
      top[i] = id
      logprobs[1 + i] = logits[id]! - normalizer
    }
  }
}
