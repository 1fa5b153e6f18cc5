/**
 * Options of one generation. Checked once, when the request is made; then numbers that packing copies.
 *
 * Defaults are what the package's authors advise (GenerationDefaults), else greedy without limits. Every option given
 * overrides its own default only.
 */
import { randomInt } from 'node:crypto'
import { z } from 'zod'
import { TOP_LOGPROBS } from '../abi/ops/sample.ts'
import { invalid, parseOptions } from './options.ts'

/** Most entries of one request's logitBias: what the step buffer holds per row. */
export const MAX_LOGIT_BIAS = 1024

export interface GenerateOptions {
  /** Most tokens to generate; by default until the context is full. */
  maxTokens?: number | undefined
  /** 0 is greedy (ties to the lower id). */
  temperature?: number | undefined
  /** Keep the k most likely tokens; 0 keeps all. */
  topK?: number | undefined
  /** Keep the fewest tokens whose probabilities reach p; 1 keeps all. */
  topP?: number | undefined
  /** Keep tokens at least this fraction as likely as the best; 0 keeps all. */
  minP?: number | undefined
  /** Divides positive and multiplies negative logits of every token seen, prompt included; 1 is none. */
  repetitionPenalty?: number | undefined
  /** Subtracted once from the logit of every token generated before. */
  presencePenalty?: number | undefined
  /** Subtracted per occurrence from the logit of every token generated before. */
  frequencyPenalty?: number | undefined
  /** Added to logits, by token id; -Infinity forbids a token. */
  logitBias?: Readonly<Record<number, number>> | undefined
  /** Seed of the counter-based generator, taken modulo 2^64; random by default and reported in the result. */
  seed?: number | bigint | undefined
  /** Text that ends the generation; neither it nor any part of it is emitted. */
  stop?: string | readonly string[] | undefined
  /** Token ids that end the generation; their text is not emitted. */
  stopTokens?: readonly number[] | undefined
  /** Generate past end-of-sequence tokens. */
  ignoreEos?: boolean | undefined
  /** Report logprobs; a number asks for that many alternatives as well. */
  logprobs?: number | boolean | undefined
  /** false: no tokens are guessed for this request. Default: as the model was opened. */
  speculative?: boolean | undefined
  /** Ends the request within one step. */
  signal?: AbortSignal | undefined
  /** Milliseconds from now after which the request fails with DEADLINE_EXCEEDED. */
  deadlineMs?: number | undefined
}

/** As the kernels will see it: the range holds after rounding to float32. */
const float = z.number().overwrite(Math.fround).refine(Number.isFinite)
const tokenId = z.int().min(0).max(0x7fffffff)
const wellFormed = z.string().refine((text) => text.length > 0 && !/\p{Surrogate}/u.test(text))

/** Options that every request takes. */
export const requestShape = {
  signal: z.instanceof(AbortSignal).optional().describe('an AbortSignal'),
  deadlineMs: z.int().min(0).max(0x7fffffff).optional().describe('milliseconds, an integer from 0 to 2147483647'),
}

/** The fields of GenerateOptions, for whoever extends them. */
export const generateShape = {
  maxTokens: z.int().min(0).optional().describe('an integer of 0 or more'),
  temperature: float.min(0).optional().describe('a number of 0 or more'),
  topK: z.int().min(0).max(0x7fffffff).optional().describe('an integer of 0 or more'),
  topP: float.gt(0).max(1).optional().describe('a number above 0 and at most 1'),
  minP: float.min(0).max(1).optional().describe('a number from 0 to 1'),
  repetitionPenalty: float.gt(0).optional().describe('a number above 0'),
  presencePenalty: float.optional().describe('a finite number'),
  frequencyPenalty: float.optional().describe('a finite number'),
  logitBias: z
    .record(z.string().regex(/^\d{1,10}$/), z.union([float, z.literal(Number.NEGATIVE_INFINITY)]))
    .refine((bias) => Object.keys(bias).length <= MAX_LOGIT_BIAS)
    .optional()
    .describe(`at most ${MAX_LOGIT_BIAS} finite numbers (or -Infinity) by token id`),
  seed: z.union([z.int(), z.bigint()]).optional().describe('a safe integer or a bigint'),
  stop: z
    .union([wellFormed.transform((text) => [text]), z.array(wellFormed).max(64)])
    .optional()
    .describe('a non-empty string, or at most 64 of them'),
  stopTokens: z.array(tokenId).optional().describe('an array of token ids'),
  ignoreEos: z.boolean().optional().describe('a boolean'),
  logprobs: z
    .union([z.boolean(), z.int().min(0).max(TOP_LOGPROBS)])
    .optional()
    .describe(`a boolean, or how many alternatives: an integer from 0 to ${TOP_LOGPROBS}`),
  speculative: z.boolean().optional().describe('a boolean'),
  ...requestShape,
}

const generateSchema = z.strictObject(generateShape)

/** Options of one generation, complete. */
export interface Sampling {
  readonly maxTokens: number
  readonly temperature: number
  readonly topK: number
  readonly topP: number
  readonly minP: number
  readonly repetitionPenalty: number
  readonly presencePenalty: number
  readonly frequencyPenalty: number
  readonly biasTokens: readonly number[]
  readonly biasValues: readonly number[]
  readonly seed: number | bigint
  readonly seedLow: number
  readonly seedHigh: number
  readonly stop: readonly string[]
  readonly stopTokens: ReadonlySet<number>
  readonly ignoreEos: boolean
  /** Alternatives to report; -1: no logprobs at all. */
  readonly logprobs: number
  readonly speculative: boolean | undefined
  readonly signal: AbortSignal | undefined
  readonly deadlineMs: number | undefined
}

/** What a package says about generating with it. */
export interface GenerationDefaults {
  readonly eosTokens: readonly number[]
  readonly options: Readonly<
    Pick<GenerateOptions, 'maxTokens' | 'temperature' | 'topK' | 'topP' | 'minP' | 'repetitionPenalty'>
  >
}

/** Checks `options` of `where` against the defaults; `vocab` bounds the token ids. Throws OPTION_UNKNOWN, OPTION_INVALID. */
export function sampling(options: unknown, defaults: GenerationDefaults, vocab: number, where: string): Sampling {
  const given = parseOptions(generateSchema, where, options)
  const pick = <K extends keyof GenerationDefaults['options'], D>(name: K, otherwise: D) =>
    (given[name] ?? defaults.options[name] ?? otherwise) as number
  const bias = Object.entries(given.logitBias ?? {}).map(([token, value]) => [Number(token), value] as const)
  const outside = [...bias.map(([token]) => token), ...(given.stopTokens ?? [])].find((token) => token >= vocab)
  if (outside !== undefined) throw invalid('logitBias and stopTokens', `token ids below ${vocab}`, outside)
  const seed = given.seed ?? randomInt(2 ** 48 - 1)
  const words = BigInt.asUintN(64, BigInt(seed))
  return {
    maxTokens: pick('maxTokens', Number.POSITIVE_INFINITY),
    temperature: pick('temperature', 0),
    topK: pick('topK', 0),
    topP: pick('topP', 1),
    minP: pick('minP', 0),
    repetitionPenalty: pick('repetitionPenalty', 1),
    presencePenalty: given.presencePenalty ?? 0,
    frequencyPenalty: given.frequencyPenalty ?? 0,
    biasTokens: bias.map(([token]) => token),
    biasValues: bias.map(([, value]) => value),
    seed,
    seedLow: Number(words & 0xffffffffn),
    seedHigh: Number(words >> 32n),
    stop: given.stop ?? [],
    stopTokens: new Set(given.stopTokens),
    ignoreEos: given.ignoreEos ?? false,
    logprobs:
      given.logprobs === undefined || given.logprobs === false
        ? -1
        : Number(given.logprobs === true ? 0 : given.logprobs),
    speculative: given.speculative,
    signal: given.signal,
    deadlineMs: given.deadlineMs,
  }
}
