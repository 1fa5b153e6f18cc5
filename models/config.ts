/**
 * config.json and generation_config.json, as transformers 4 and 5 write them. Every schema's message is what was
 * expected, so that CONFIG_INVALID names file, field, expected and got.
 */
import { z } from 'zod'
import { type Activation, activations } from '../abi/ops/define.ts'
import { fail, shownValue, wrongField } from '../errors.ts'
import { isObject } from './files.ts'
import { type RopeParameters, ropeType } from './rope.ts'

/** An integer of [low, high]. */
export const integer = (low: number, high: number) =>
  z.custom<number>(
    (value) => Number.isInteger(value) && (value as number) >= low && (value as number) <= high,
    `an integer from ${low} to ${high}`,
  )
/** Kernels compute in float32: what overflows or vanishes there is out of range. */
const float32 = (value: unknown) => (typeof value === 'number' ? Math.fround(value) : Number.NaN)
/** A number above `low` that float32 holds. */
export const above = (low: number) =>
  z.custom<number>((value) => Number.isFinite(float32(value)) && float32(value) > low, `a float32 number above ${low}`)
export const flag = z.boolean('true or false')
export const text = z.string('a string')
/** A field that may be absent or null; both give `value`. */
export const orElse = <T extends z.ZodType, const V>(schema: T, value: V) =>
  schema.nullish().transform((given): z.output<T> | V => given ?? value)

/** Names of hidden_act, as transformers' ACT2FN knows them, that have one of Ingot's pointwise functions. */
const hiddenActs: Readonly<Record<string, Activation>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_python: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_python_tanh: 'gelu_tanh',
  relu: 'relu',
  relu2: 'relu2',
  sigmoid: 'sigmoid',
  tanh: 'tanh',
}
const hiddenAct = z
  .custom<string>(
    (name) => typeof name === 'string' && Object.hasOwn(hiddenActs, name),
    `one of ${Object.keys(hiddenActs).join(', ')}`,
  )
  .transform((name) => activations[hiddenActs[name]!])

const MAX_DIM = 2 ** 20
/** Fields that every decoder of the supported families reads; a family adds its own and its defaults. */
export const decoderFields = {
  vocab_size: integer(1, 2 ** 24),
  hidden_size: integer(1, MAX_DIM),
  intermediate_size: integer(1, 2 ** 22),
  num_hidden_layers: integer(1, 4096),
  num_attention_heads: integer(1, 4096),
  num_key_value_heads: integer(1, 4096).nullish(),
  head_dim: integer(2, 4096).nullish(),
  hidden_act: orElse(hiddenAct, activations.silu),
  rms_norm_eps: orElse(above(0), 1e-6),
  tie_word_embeddings: orElse(flag, false),
  quantization_config: z.null('no quantization_config: a checkpoint of f32, f16 or bf16 weights').optional(),
}
export const contextLength = integer(1, 2 ** 31 - 1)

/** The error of one field. */
export const invalid = (path: string, field: string, expected: string, got: unknown) =>
  fail('CONFIG_INVALID', { path, field, expected, got: shownValue(got) })

/** Parses `value` by a schema whose messages say what was expected. Throws CONFIG_INVALID for the first wrong field. */
export function parseConfig<T extends z.ZodType>(schema: T, value: unknown, path: string): z.output<T> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const { thing, expected, got } = wrongField(result.error, value, 'the document')
  throw fail('CONFIG_INVALID', { path, field: thing, expected, got })
}

/** Heads and their width, after the defaults that transformers applies. Throws CONFIG_INVALID. */
export function headShape(
  config: {
    readonly hidden_size: number
    readonly num_attention_heads: number
    readonly num_key_value_heads?: number | null | undefined
    readonly head_dim?: number | null | undefined
  },
  path: string,
): { readonly heads: number; readonly kvHeads: number; readonly headDim: number } {
  const heads = config.num_attention_heads
  const kvHeads = config.num_key_value_heads ?? heads
  if (heads % kvHeads)
    throw invalid(path, 'num_key_value_heads', `a divisor of num_attention_heads (${heads})`, kvHeads)
  const headDim = config.head_dim ?? Math.floor(config.hidden_size / heads)
  if (headDim < 2)
    throw invalid(path, 'num_attention_heads', `at most half of hidden_size where head_dim is absent`, heads)
  return { heads, kvHeads, headDim }
}

const optionalNumber = above(0).nullish()
const ropeFields = {
  rope_type: text.nullish(),
  type: text.nullish(),
  rope_theta: above(1).nullish(),
  partial_rotary_factor: z
    .custom<number>((value) => typeof value === 'number' && value > 0 && value <= 1, 'a number above 0, at most 1')
    .nullish(),
  factor: optionalNumber,
  original_max_position_embeddings: contextLength.nullish(),
  low_freq_factor: optionalNumber,
  high_freq_factor: optionalNumber,
  attention_factor: optionalNumber,
  beta_fast: optionalNumber,
  beta_slow: optionalNumber,
  mscale: z.custom<number>(Number.isFinite, 'a finite number').nullish(),
  mscale_all_dim: z.custom<number>(Number.isFinite, 'a finite number').nullish(),
  truncate: flag.nullish(),
}
const ropeSchema = z.object(ropeFields, 'an object')
/** What rope reads outside its own object: transformers 4 keeps theta there. */
const ropeOuter = z.object({
  rope_theta: ropeFields.rope_theta,
  partial_rotary_factor: ropeFields.partial_rotary_factor,
  original_max_position_embeddings: ropeFields.original_max_position_embeddings,
})

/** Fields that a rope type cannot do without. */
const required = {
  default: [],
  linear: ['factor'],
  llama3: ['factor', 'low_freq_factor', 'high_freq_factor'],
  yarn: [],
} as const

/** The rope of a config in either spelling. `context` is max_position_embeddings. */
export function readRope(config: unknown, context: number, headDim: number, path: string): RopeParameters {
  const document = config as Readonly<Record<string, unknown>>
  const field = isObject(document.rope_scaling) ? 'rope_scaling' : 'rope_parameters'
  const given = document.rope_scaling ?? document.rope_parameters ?? {}
  const rope = parseConfig(z.object({ [field]: ropeSchema }), { [field]: given }, path)[field]!
  const outer = parseConfig(ropeOuter, document, path)
  const nested = ['full_attention', 'sliding_attention'].find((layer) => layer in (given as object))
  if (nested)
    throw invalid(path, `${field}.${nested}`, 'one rope for all layers', (given as Record<string, unknown>)[nested])
  const type = ropeType(rope.rope_type ?? rope.type ?? 'default', path)
  for (const name of required[type])
    if (rope[name] == null)
      throw invalid(path, `${field}.${name}`, `a number, as rope type ${type} needs it`, rope[name])
  if (type === 'llama3' && rope.high_freq_factor! <= rope.low_freq_factor!)
    throw invalid(path, `${field}.high_freq_factor`, 'more than low_freq_factor', rope.high_freq_factor)
  const partial = rope.partial_rotary_factor ?? outer.partial_rotary_factor ?? 1
  const dim = Math.trunc(headDim * partial)
  if (dim < 2 || dim % 2) throw invalid(path, 'head_dim', 'an even number of rotated elements', dim)
  return {
    type,
    theta: rope.rope_theta ?? outer.rope_theta ?? 10_000,
    partial,
    factor: rope.factor ?? undefined,
    originalContext: outer.original_max_position_embeddings ?? rope.original_max_position_embeddings ?? context,
    lowFreqFactor: rope.low_freq_factor ?? undefined,
    highFreqFactor: rope.high_freq_factor ?? undefined,
    attentionFactor: rope.attention_factor ?? undefined,
    betaFast: rope.beta_fast ?? undefined,
    betaSlow: rope.beta_slow ?? undefined,
    mscale: rope.mscale ?? undefined,
    mscaleAllDim: rope.mscale_all_dim ?? undefined,
    truncate: rope.truncate ?? undefined,
  }
}

const weightDtypes = ['float32', 'float16', 'bfloat16'] as const
/** Fields that do not depend on the family. */
const commonSchema = z.object(
  {
    architectures: z.array(text, 'a list of one architecture name').length(1, 'a list of one architecture name'),
    dtype: text.nullish(),
    torch_dtype: text.nullish(),
  },
  'an object',
)

/** Architecture names of a config; its dtype, in either spelling, must be one that weights can have. */
export function readArchitectures(config: unknown, path: string): readonly string[] {
  const { architectures, dtype, torch_dtype } = parseConfig(commonSchema, config, path)
  const name = (dtype ?? torch_dtype)?.replace(/^torch\./, '')
  if (name && !weightDtypes.some((known) => known === name))
    throw fail('DTYPE_UNSUPPORTED', { path, thing: dtype ? 'dtype' : 'torch_dtype', got: name, expected: weightDtypes })
  return architectures
}

export const tokenId = integer(0, 2 ** 31 - 1)
const tokenIds = z.union([tokenId, z.array(tokenId)], 'a token id or a list of token ids').nullish()
/** What the sampling that authors advise may be; the manifest holds the same. */
export const samplingFields = {
  temperature: z.custom<number>(
    (value) => Number.isFinite(float32(value)) && (value as number) >= 0,
    'a float32 number from 0',
  ),
  topK: tokenId,
  topP: z.custom<number>((value) => float32(value) > 0 && (value as number) <= 1, 'a number above 0, at most 1'),
  minP: z.custom<number>((value) => float32(value) >= 0 && (value as number) <= 1, 'a number from 0 to 1'),
  repetitionPenalty: above(0),
}
const generationSchema = z.object(
  {
    eos_token_id: tokenIds,
    bos_token_id: tokenIds,
    do_sample: flag.nullish(),
    temperature: samplingFields.temperature.nullish(),
    top_k: samplingFields.topK.nullish(),
    top_p: samplingFields.topP.nullish(),
    min_p: samplingFields.minP.nullish(),
    repetition_penalty: samplingFields.repetitionPenalty.nullish(),
  },
  'an object',
)

/** How the checkpoint's authors generate: stop tokens and sampling defaults; null: not said. */
export interface GenerationSettings {
  readonly eos: readonly number[]
  readonly bos: number | null
  readonly doSample: boolean | null
  readonly temperature: number | null
  readonly topK: number | null
  readonly topP: number | null
  readonly minP: number | null
  readonly repetitionPenalty: number | null
}

const listOf = (value: number | number[] | null | undefined) => (typeof value === 'number' ? [value] : (value ?? []))

/** Settings of generation_config.json where there is one, token ids of config.json where it does not say. */
export function readGeneration(
  config: unknown,
  configPath: string,
  generation: unknown,
  generationPath: string,
): GenerationSettings {
  const model = parseConfig(generationSchema.pick({ eos_token_id: true, bos_token_id: true }), config, configPath)
  const own = parseConfig(generationSchema, generation ?? {}, generationPath)
  return {
    eos: listOf(own.eos_token_id ?? model.eos_token_id),
    bos: listOf(own.bos_token_id ?? model.bos_token_id)[0] ?? null,
    doSample: own.do_sample ?? null,
    temperature: own.temperature ?? null,
    topK: own.top_k ?? null,
    topP: own.top_p ?? null,
    minP: own.min_p ?? null,
    repetitionPenalty: own.repetition_penalty ?? null,
  }
}
