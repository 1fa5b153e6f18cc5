/**
 * The ExecutionContext of one batched step, as bytes that JavaScript writes and native code reads without copying.
 *
 * A step is a ragged batch: `tokens` packed tokens of `sequences` sequences (each a contiguous run), of which `rows`
 * tokens want logits. One ArrayBuffer holds a StepHeader, then arrays at the byte offsets that the header names; a second
 * one receives the results. Native code checks every count and offset before it runs anything.
 */
import { fail } from '../errors.ts'
import { TOP_LOGPROBS } from './ops/sample.ts'
import { record } from './record.ts'

export const STEP_VERSION = 2

/** Counts first, then byte offsets into the step buffer, then byte offsets into the result buffer. */
export const stepHeader = record('StepHeader', {
  version: 'u32',
  tokens: 'u32',
  sequences: 'u32',
  rows: 'u32',
  /** Block copies (copy on write) to make before the first instruction. */
  copies: 'u32',
  /** Slots whose fixed states are zeroed before the first instruction. */
  resets: 'u32',
  blocks_per_sequence: 'u32',
  history: 'u32',
  biases: 'u32',
  /** 1: submitted before the step before it had settled. It fails where that failed, and may name what that sampled. */
  follows: 'u32',
  /** Below 0 in a step that follows: what a row of the step before sampled, see rowReference(). */
  token_ids: 'u32',
  positions: 'u32',
  token_sequence: 'u32',
  sequence_start: 'u32',
  sequence_length: 'u32',
  sequence_slot: 'u32',
  block_table: 'u32',
  row_token: 'u32',
  sampling: 'u32',
  history_ids: 'u32',
  bias_entries: 'u32',
  copy_pairs: 'u32',
  reset_slots: 'u32',
  /** f32 (rows, vocab) in the result buffer; 0: no row's logits are copied out. */
  result_logits: 'u32',
  /** f32 (rows, hidden) in the result buffer; 0: not copied out. */
  result_hidden: 'u32',
})

/** The token id that stands for what row `row` of the step before samples, while nobody has read it. */
export const rowReference = (row: number): number => -1 - row

/** Bits of SampleParams.flags. `logprobs`: of a sampled row, since the sum over its vocabulary is not for nothing. */
export const sampleFlags = { sample: 1, logits: 2, hidden: 4, logprobs: 8 } as const

/** How one row is sampled. */
export const sampleParams = record('SampleParams', {
  flags: 'u32',
  seed_low: 'u32',
  seed_high: 'u32',
  /** Position of the token that is chosen: the counter of the generator. */
  position: 'u32',
  temperature: 'f32',
  /** 0: all. */
  top_k: 'u32',
  /** 1: all. */
  top_p: 'f32',
  /** 0: all. */
  min_p: 'f32',
  /** 1: none. */
  repetition_penalty: 'f32',
  presence_penalty: 'f32',
  frequency_penalty: 'f32',
  /** Slice of history_ids: prompt then output; the first `history_prompt` are prompt. */
  history_start: 'u32',
  history_count: 'u32',
  history_prompt: 'u32',
  bias_start: 'u32',
  bias_count: 'u32',
  /** Alternatives wanted, at most TOP_LOGPROBS; none without the flag `logprobs`. */
  top_logprobs: 'u32',
})

export const biasEntry = record('BiasEntry', { token: 'u32', bias: 'f32' })
export const copyPair = record('CopyPair', { source: 'u32', target: 'u32' })

/** Start of the result buffer; then RowResult per row. */
export const resultHeader = record('ResultHeader', {
  rows: 'u32',
  /** Kernels launched by the step: constant in batch size. */
  launches: 'u32',
  /** Kernels launched once per slot instead of once per step; 0 unless a backend declares such a fallback. */
  slot_launches: 'u32',
  /** Time inside the step. */
  microseconds: 'u32',
  /** From the end of the step before to the start of this one; 0 for the first. */
  idle_microseconds: 'u32',
})

/** One sampled row; followed by TOP_LOGPROBS token ids (i32) and TOP_LOGPROBS logprobs (f32). 0 where not asked for. */
export const rowResult = record('RowResult', { token: 'i32', logprob: 'f32' })
export const ROW_RESULT_BYTES = rowResult.bytes + 8 * TOP_LOGPROBS

/** Capacities fixed when a model is opened; every buffer is sized from them once. */
export interface StepLimits {
  /** Packed tokens of one step. */
  readonly tokens: number
  /** Rows of one step. */
  readonly rows: number
  /** Sequences of one step. */
  readonly sequences: number
  readonly blocksPerSequence: number
  /** Token ids of all penalty histories of a step. */
  readonly history: number
  /** Logit-bias entries of a step. */
  readonly biases: number
  readonly copies: number
}

const align = (bytes: number) => Math.ceil(bytes / 64) * 64

/** Offsets in a buffer are u32. */
const MAX_BYTES = 2 ** 32 - 1

/** Throws OUT_OF_MEMORY. */
function allocate(thing: string, bytes: number): ArrayBuffer {
  if (bytes > MAX_BYTES) throw fail('OUT_OF_MEMORY', { thing, needed: bytes, available: MAX_BYTES })
  try {
    return new ArrayBuffer(bytes)
  } catch (cause) {
    throw fail('OUT_OF_MEMORY', { thing, needed: bytes, available: 'fewer' }, cause)
  }
}

/** Typed views over one step buffer; `header` is words, see `stepHeader.word`. */
export interface StepView {
  readonly buffer: ArrayBuffer
  readonly header: Uint32Array
  readonly tokenIds: Int32Array
  readonly positions: Int32Array
  readonly tokenSequence: Int32Array
  readonly sequenceStart: Int32Array
  readonly sequenceLength: Int32Array
  readonly sequenceSlot: Int32Array
  /** (sequences, blocksPerSequence) */
  readonly blockTable: Int32Array
  readonly rowToken: Int32Array
  /** rows x SampleParams as words; write f32 fields through `samplingF32`. */
  readonly sampling: Uint32Array
  readonly samplingF32: Float32Array
  readonly historyIds: Int32Array
  readonly biasEntries: Uint32Array
  readonly biasEntriesF32: Float32Array
  readonly copyPairs: Uint32Array
  readonly resetSlots: Int32Array
}

/** Allocates a step buffer for `limits` and writes the offsets, which never change, into its header. */
export function createStep(limits: StepLimits): StepView {
  const word = stepHeader.word
  const sections = {
    token_ids: limits.tokens * 4,
    positions: limits.tokens * 4,
    token_sequence: limits.tokens * 4,
    sequence_start: (limits.sequences + 1) * 4,
    sequence_length: limits.sequences * 4,
    sequence_slot: limits.sequences * 4,
    block_table: limits.sequences * limits.blocksPerSequence * 4,
    row_token: limits.rows * 4,
    sampling: limits.rows * sampleParams.bytes,
    history_ids: limits.history * 4,
    bias_entries: limits.biases * biasEntry.bytes,
    copy_pairs: limits.copies * copyPair.bytes,
    reset_slots: limits.sequences * 4,
  }
  const offsets = {} as Record<keyof typeof sections, number>
  let end = align(stepHeader.bytes)
  for (const name of Object.keys(sections) as (keyof typeof sections)[]) {
    offsets[name] = end
    end += align(sections[name])
  }
  const buffer = allocate('the step buffer', end)
  const header = new Uint32Array(buffer, 0, stepHeader.bytes / 4)
  header[word.version] = STEP_VERSION
  header[word.blocks_per_sequence] = limits.blocksPerSequence
  for (const name of Object.keys(sections) as (keyof typeof sections)[]) header[word[name]] = offsets[name]
  const int32 = (name: keyof typeof sections) => new Int32Array(buffer, offsets[name], sections[name] / 4)
  const uint32 = (name: keyof typeof sections) => new Uint32Array(buffer, offsets[name], sections[name] / 4)
  const float32 = (name: keyof typeof sections) => new Float32Array(buffer, offsets[name], sections[name] / 4)
  return {
    buffer,
    header,
    tokenIds: int32('token_ids'),
    positions: int32('positions'),
    tokenSequence: int32('token_sequence'),
    sequenceStart: int32('sequence_start'),
    sequenceLength: int32('sequence_length'),
    sequenceSlot: int32('sequence_slot'),
    blockTable: int32('block_table'),
    rowToken: int32('row_token'),
    sampling: uint32('sampling'),
    samplingF32: float32('sampling'),
    historyIds: int32('history_ids'),
    biasEntries: uint32('bias_entries'),
    biasEntriesF32: float32('bias_entries'),
    copyPairs: uint32('copy_pairs'),
    resetSlots: int32('reset_slots'),
  }
}

/** Typed views over one result buffer. `logits` and `hidden` are empty unless asked for. */
export interface ResultView {
  readonly buffer: ArrayBuffer
  readonly header: Uint32Array
  /** Word offset of row r is r * ROW_RESULT_BYTES / 4: token, logprob, TOP_LOGPROBS ids, TOP_LOGPROBS logprobs. */
  readonly rows: Int32Array
  readonly rowsF32: Float32Array
  readonly logits: Float32Array
  readonly hidden: Float32Array
}

/** Byte offsets of the optional parts, to be written into the header of every step that uses the buffer. */
export interface ResultOffsets {
  readonly logits: number
  readonly hidden: number
}

/** Allocates a result buffer; `vocab` and `hidden` are widths, 0 to leave that part out. */
export function createResult(
  rows: number,
  widths: { vocab: number; hidden: number },
): { view: ResultView; offsets: ResultOffsets } {
  const start = align(resultHeader.bytes)
  const logits = align(start + rows * ROW_RESULT_BYTES)
  const hidden = align(logits + rows * widths.vocab * 4)
  const buffer = allocate('the result buffer', align(hidden + rows * widths.hidden * 4))
  const words = (rows * ROW_RESULT_BYTES) / 4
  return {
    view: {
      buffer,
      header: new Uint32Array(buffer, 0, resultHeader.bytes / 4),
      rows: new Int32Array(buffer, start, words),
      rowsF32: new Float32Array(buffer, start, words),
      logits: new Float32Array(buffer, logits, rows * widths.vocab),
      hidden: new Float32Array(buffer, hidden, rows * widths.hidden),
    },
    offsets: { logits: widths.vocab ? logits : 0, hidden: widths.hidden ? hidden : 0 },
  }
}
