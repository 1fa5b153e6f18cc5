/** Writes a batch into the step buffer (abi/step.ts). It runs once a step and allocates next to nothing. */
import { biasEntry, type ResultOffsets, type StepView, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'
import type { Output, Work } from './request.ts'
import type { Sampling } from './sampling.ts'
import type { Assignment, Sequence } from './scheduler.ts'

const word = stepHeader.word
const param = sampleParams.word
const PARAM_WORDS = sampleParams.bytes / 4
const BIAS_WORDS = biasEntry.bytes / 4
const flags: Record<Output, number> = {
  token: sampleFlags.sample,
  logits: sampleFlags.logits,
  hidden: sampleFlags.hidden,
}

/** What packing needs of a sequence. */
export interface Packed extends Sequence {
  readonly tokens: Int32Array
  readonly slot: number
  /** 0, or the block that the last of `blocks` is copied from first. */
  readonly copySource: number
  readonly work: Work
}

/** Counts of the step under construction. */
interface Cursor {
  tokens: number
  rows: number
  copies: number
  resets: number
  history: number
  biases: number
  wanted: number
}

/** `resets`: the plan has states that a new sequence needs zeroed. `follows`: the step before it is in flight. */
export function pack(
  step: StepView,
  batch: readonly Assignment<Packed>[],
  resets: boolean,
  offsets: ResultOffsets,
  follows = false,
): void {
  const cursor: Cursor = { tokens: 0, rows: 0, copies: 0, resets: 0, history: 0, biases: 0, wanted: 0 }
  for (let index = 0; index < batch.length; index++) packSequence(step, cursor, batch[index]!, index, resets)
  const { header } = step
  step.sequenceStart[batch.length] = cursor.tokens
  header[word.tokens] = cursor.tokens
  header[word.sequences] = batch.length
  header[word.rows] = cursor.rows
  header[word.copies] = cursor.copies
  header[word.resets] = cursor.resets
  header[word.history] = cursor.history
  header[word.biases] = cursor.biases
  header[word.follows] = follows ? 1 : 0
  header[word.result_logits] = cursor.wanted & sampleFlags.logits ? offsets.logits : 0
  header[word.result_hidden] = cursor.wanted & sampleFlags.hidden ? offsets.hidden : 0
}

/** Has every row of a packed step copy its logits out as well, to a result buffer of `offsets`. */
export function copyLogits(step: StepView, offsets: ResultOffsets): void {
  const { header } = step
  for (let row = 0; row < header[word.rows]!; row++)
    step.sampling[row * PARAM_WORDS + param.flags]! |= sampleFlags.logits
  header[word.result_logits] = offsets.logits
  if (header[word.result_hidden]) header[word.result_hidden] = offsets.hidden
}

function packSequence(
  step: StepView,
  cursor: Cursor,
  { sequence, tokens, rows }: Assignment<Packed>,
  index: number,
  resets: boolean,
): void {
  const start = cursor.tokens
  const end = sequence.computed + tokens
  step.sequenceStart[index] = start
  step.sequenceLength[index] = end
  step.sequenceSlot[index] = sequence.slot
  for (let position = sequence.computed; position < end; position++) {
    const at = cursor.tokens++
    step.tokenIds[at] = sequence.tokens[position]!
    step.positions[at] = position
    step.tokenSequence[at] = index
  }
  packBlocks(step, sequence.blocks, index)
  if (sequence.copySource > 0) {
    step.copyPairs[2 * cursor.copies] = sequence.copySource
    step.copyPairs[2 * cursor.copies + 1] = sequence.blocks.at(-1)!
    cursor.copies++
  }
  if (resets && sequence.computed === 0) step.resetSlots[cursor.resets++] = sequence.slot
  if (rows === 0) return
  const slices = packSlices(step, cursor, sequence, end)
  for (let row = tokens - rows; row < tokens; row++) {
    packRow(step, cursor, sequence, start + row, sequence.computed + row + 1, slices)
  }
}

/** Where the rows of one sequence find their biases and history, which each reads up to its own position. */
interface Slices {
  readonly history: number
  readonly biases: number
}

/** A row of the block table; what is beyond the sequence points at the dump. */
function packBlocks(step: StepView, blocks: readonly number[], index: number): void {
  const width = step.header[word.blocks_per_sequence]!
  const row = index * width
  for (let i = 0; i < blocks.length; i++) step.blockTable[row + i] = blocks[i]!
  step.blockTable.fill(0, row + blocks.length, row + width)
}

function packSlices(step: StepView, cursor: Cursor, { work, tokens }: Packed, end: number): Slices {
  const { history, biases } = cursor
  const { sampling } = work
  if (!sampling) return { history, biases }
  if (penalises(sampling)) {
    step.historyIds.set(tokens.subarray(0, end), history)
    cursor.history += end
  }
  for (let i = 0; i < sampling.biasTokens.length; i++) {
    const entry = BIAS_WORDS * cursor.biases++
    step.biasEntries[entry + biasEntry.word.token] = sampling.biasTokens[i]!
    step.biasEntriesF32[entry + biasEntry.word.bias] = sampling.biasValues[i]!
  }
  return { history, biases }
}

export function penalises({ repetitionPenalty, presencePenalty, frequencyPenalty }: Sampling): boolean {
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0
}

/** A row of `token`, the packed one, whose sequence has `length` tokens up to and with it. */
function packRow(
  step: StepView,
  cursor: Cursor,
  { work }: Packed,
  token: number,
  length: number,
  slices: Slices,
): void {
  const row = cursor.rows++
  const at = row * PARAM_WORDS
  const { output, sampling } = work
  step.rowToken[row] = token
  step.sampling.fill(0, at, at + PARAM_WORDS)
  step.sampling[at + param.flags] = flags[output]
  cursor.wanted |= flags[output]
  if (sampling) packSampling(step, at, sampling, length, work.prompt.length, slices)
}

function packSampling(
  step: StepView,
  at: number,
  sampling: Sampling,
  length: number,
  prompt: number,
  slices: Slices,
): void {
  const { sampling: words, samplingF32: floats } = step
  words[at + param.seed_low] = sampling.seedLow
  words[at + param.seed_high] = sampling.seedHigh
  words[at + param.position] = length
  floats[at + param.temperature] = sampling.temperature
  words[at + param.top_k] = sampling.topK
  floats[at + param.top_p] = sampling.topP
  floats[at + param.min_p] = sampling.minP
  floats[at + param.repetition_penalty] = sampling.repetitionPenalty
  floats[at + param.presence_penalty] = sampling.presencePenalty
  floats[at + param.frequency_penalty] = sampling.frequencyPenalty
  if (sampling.logprobs >= 0) words[at + param.flags]! |= sampleFlags.logprobs
  words[at + param.top_logprobs] = Math.max(0, sampling.logprobs)
  if (penalises(sampling)) {
    words[at + param.history_start] = slices.history
    words[at + param.history_count] = length
    words[at + param.history_prompt] = prompt
  }
  words[at + param.bias_start] = slices.biases
  words[at + param.bias_count] = sampling.biasTokens.length
}
