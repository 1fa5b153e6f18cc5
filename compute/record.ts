/**
 * The file of a recorded step, format 1 (JSON): all that running it again needs, whatever the backend. State is kept as
 * the token ids that made it, since its bytes mean something to one backend only: who replays computes the history first.
 * Digests of rows and of units of state say whether the bits are those of the run.
 */
import { createHash } from 'node:crypto'
import { z } from 'zod'
import {
  biasEntry,
  copyPair,
  type ResultView,
  ROW_RESULT_BYTES,
  type StepView,
  sampleFlags,
  sampleParams,
  stepHeader,
} from '../abi/step.ts'
import { fail, shownValue, wrongField } from '../errors.ts'
import { sha256 } from '../plans/hash.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { sampleOptions } from './reference/sample.ts'

export const RECORD_FORMAT = 'ingot-step'
export const RECORD_VERSION = 1

const INT32 = 2 ** 31 - 1
const count = z.int().min(0).max(INT32)
const word = z
  .int()
  .min(0)
  .max(2 ** 32 - 1)
const text = z.string().max(1000)

const { history_start, history_count, bias_start, bias_count, ...kept } = sampleParams.fields
const sampling = z.strictObject({
  ...(Object.fromEntries(
    Object.entries(kept).map(([name, type]) => [name, type === 'f32' ? z.number() : word]),
  ) as Record<keyof typeof kept, z.ZodNumber>),
  /** Prompt then output; the first `history_prompt` are prompt. */
  history: z.array(count),
  bias: z.array(z.tuple([count, z.number()])),
})

const schema = z.strictObject({
  format: z.literal(RECORD_FORMAT),
  version: z.literal(RECORD_VERSION),
  /** SHA-256 of the plan's bytes and of the file of weights. */
  plan: sha256,
  weights: sha256,
  /** Model family, where it ran and when, for people. */
  model: text,
  backend: text,
  isa: text,
  description: text,
  created: text,
  /** Steps of the run before it. */
  index: count,
  sequences: z
    .array(
      z.strictObject({
        slot: count,
        /** Blocks of its positions; empty where no state is paged. */
        blocks: z.array(count),
        /** Position of the first token. */
        position: count,
        tokens: z.array(count).min(1),
        /** Indices into `tokens` that are rows. */
        rows: z.array(count),
        /** Token ids before `position`; empty where the plan has no state. */
        history: z.array(count),
      }),
    )
    .min(1),
  copies: z.array(z.tuple([count, count])),
  resets: z.array(count),
  /** Of each row, sequence after sequence. */
  sampling: z.array(sampling),
  /** What came out; absent: the step failed, with `error`. */
  result: z
    .strictObject({
      /** Token, or -1; SHA-256 of the row's token, alternatives, logprobs, logits and hidden state as far as asked for. */
      rows: z.array(z.strictObject({ token: z.int().min(-1).max(INT32), sha256 })),
      /** Units that the step wrote, as it left them; those that hold more than the known positions are left out. */
      units: z.array(z.strictObject({ state: count, unit: count, sha256 })),
    })
    .optional(),
  error: text.optional(),
})

export type StepRecord = z.output<typeof schema>
export type RecordedSequence = StepRecord['sequences'][number]
export type RecordedSampling = StepRecord['sampling'][number]

function samplingOf(step: StepView, row: number): RecordedSampling {
  const {
    history_start: start,
    history_count: length,
    bias_start: first,
    bias_count: biases,
    ...rest
  } = sampleOptions(step, row)
  const bias = Array.from({ length: biases }, (_, i): [number, number] => {
    const at = ((first + i) * biasEntry.bytes) / 4
    return [step.biasEntries[at + biasEntry.word.token]!, step.biasEntriesF32[at + biasEntry.word.bias]!]
  })
  return { ...rest, history: [...step.historyIds.subarray(start, start + length)], bias }
}

/** The inputs of a step, its rows in the order of their tokens. `historyOf` gives the ids before a position. */
export function captureStep(
  step: StepView,
  blockTokens: number,
  historyOf: (sequence: number) => number[],
): Pick<StepRecord, 'sequences' | 'copies' | 'resets' | 'sampling'> & { readonly order: readonly number[] } {
  const head = (name: keyof typeof stepHeader.word) => step.header[stepHeader.word[name]]!
  const order = Array.from({ length: head('rows') }, (_, row) => row).sort(
    (a, b) => step.rowToken[a]! - step.rowToken[b]!,
  )
  const sequences = Array.from({ length: head('sequences') }, (_, s): RecordedSequence => {
    const [start, end] = [step.sequenceStart[s]!, step.sequenceStart[s + 1]!]
    const first = s * head('blocks_per_sequence')
    const blocks = blockTokens ? Math.ceil(step.sequenceLength[s]! / blockTokens) : 0
    return {
      slot: step.sequenceSlot[s]!,
      blocks: [...step.blockTable.subarray(first, first + blocks)],
      position: step.positions[start]!,
      tokens: [...step.tokenIds.subarray(start, end)],
      rows: order.map((row) => step.rowToken[row]! - start).filter((index) => index >= 0 && index < end - start),
      history: historyOf(s),
    }
  })
  const copies = Array.from({ length: head('copies') }, (_, i): [number, number] => {
    const at = (i * copyPair.bytes) / 4
    return [step.copyPairs[at + copyPair.word.source]!, step.copyPairs[at + copyPair.word.target]!]
  })
  const resets = [...step.resetSlots.subarray(0, head('resets'))]
  return { sequences, copies, resets, sampling: order.map((row) => samplingOf(step, row)), order }
}

/** Token and digest of row `row`: of its result, and of its logits and hidden state where it asked for them. */
export function digestRow(plan: ExecutionPlan, step: StepView, result: ResultView, row: number) {
  const { flags } = sampleOptions(step, row)
  const words = ROW_RESULT_BYTES / 4
  const hash = createHash('sha256').update(result.rows.slice(row * words, (row + 1) * words))
  for (const [name, width] of [
    ['logits', plan.vocab],
    ['hidden', plan.hidden],
  ] as const) {
    const asked = flags & sampleFlags[name] && step.header[stepHeader.word[`result_${name}`]]
    if (asked) hash.update(result[name].slice(row * width, (row + 1) * width))
  }
  return { token: result.rows[row * words]!, sha256: hash.digest('hex') }
}

function assert(condition: boolean, path: string, field: string, expected: string, got: unknown): void {
  if (!condition) throw fail('RECORD_INVALID', { path, field, expected, got: shownValue(got) })
}

/** What the fields must be to each other. */
function assertConsistent({ sequences, sampling, result, error }: StepRecord, path: string): void {
  for (const [s, { position, tokens, rows, history }] of sequences.entries()) {
    const at = `sequences.${s}`
    assert(position + tokens.length <= INT32, path, `${at}.position`, 'a position of 31 bits', position)
    assert(
      history.length === position || history.length === 0,
      path,
      `${at}.history`,
      `${position} ids`,
      history.length,
    )
    const ascending = rows.every((row, i) => row < tokens.length && row > (rows[i - 1] ?? -1))
    assert(ascending, path, `${at}.rows`, `ascending indices below ${tokens.length}`, rows)
  }
  const rows = sequences.reduce((sum, sequence) => sum + sequence.rows.length, 0)
  assert(sampling.length === rows, path, 'sampling', `${rows} rows`, sampling.length)
  assert(!result || result.rows.length === rows, path, 'result.rows', `${rows} rows`, result?.rows.length)
  assert((result === undefined) !== (error === undefined), path, 'result', 'a result or an error', 'both or neither')
}

/**
 * Parses the text of a record; `path` is for messages. Throws RECORD_INVALID or RECORD_NEWER on any other text, whatever it
 * holds.
 */
export function parseRecord(source: string, path: string): StepRecord {
  let json: unknown
  try {
    json = JSON.parse(source)
  } catch (cause) {
    throw fail('RECORD_INVALID', { path, field: 'the file', expected: 'JSON', got: (cause as Error).message }, cause)
  }
  const { format, version } = (json ?? {}) as { format?: unknown; version?: unknown }
  if (format === RECORD_FORMAT && Number.isInteger(version) && (version as number) > RECORD_VERSION)
    throw fail('RECORD_NEWER', { path, expected: RECORD_VERSION, got: version })
  const parsed = schema.safeParse(json)
  if (!parsed.success) {
    const { thing: field, expected, got } = wrongField(parsed.error, json, 'the file')
    throw fail('RECORD_INVALID', { path, field, expected, got })
  }
  assertConsistent(parsed.data, path)
  return parsed.data
}

export const recordText = (record: StepRecord): string => `${JSON.stringify(record)}\n`
