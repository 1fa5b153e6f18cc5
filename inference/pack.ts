/** Writes a batch into the step buffer (abi/step.ts). Allocates nothing: it runs once a step. */
import { biasEntry, type ResultOffsets, type StepView, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'
import type { Output, Request } from './request.ts'
import type { Sampling } from './sampling.ts'
import type { Assignment } from './scheduler.ts'

const word = stepHeader.word
const param = sampleParams.word
const PARAM_WORDS = sampleParams.bytes / 4
const BIAS_WORDS = biasEntry.bytes / 4
const flags: Record<Output, number> = {
  token: sampleFlags.sample,
  logits: sampleFlags.logits,
  hidden: sampleFlags.hidden,
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

/** `resets`: the plan has states that a new sequence needs zeroed. */
export function pack(
  step: StepView,
  batch: readonly Assignment<Request>[],
  resets: boolean,
  offsets: ResultOffsets,
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
  header[word.result_logits] = cursor.wanted & sampleFlags.logits ? offsets.logits : 0
  header[word.result_hidden] = cursor.wanted & sampleFlags.hidden ? offsets.hidden : 0
}

function packSequence(
  step: StepView,
  cursor: Cursor,
  { sequence, tokens, rows }: Assignment<Request>,
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
  for (let row = tokens - rows; row < tokens; row++) packRow(step, cursor, sequence, start + row)
}

/** A row of the block table; what is beyond the sequence points at the dump. */
function packBlocks(step: StepView, blocks: readonly number[], index: number): void {
  const width = step.header[word.blocks_per_sequence]!
  const row = index * width
  for (let i = 0; i < blocks.length; i++) step.blockTable[row + i] = blocks[i]!
  step.blockTable.fill(0, row + blocks.length, row + width)
}

function packRow(step: StepView, cursor: Cursor, request: Request, token: number): void {
  const row = cursor.rows++
  const at = row * PARAM_WORDS
  const { output, sampling } = request.work
  step.rowToken[row] = token
  step.sampling.fill(0, at, at + PARAM_WORDS)
  step.sampling[at + param.flags] = flags[output]
  cursor.wanted |= flags[output]
  if (sampling) packSampling(step, cursor, request, sampling, at)
}

function packSampling(step: StepView, cursor: Cursor, request: Request, sampling: Sampling, at: number): void {
  const { sampling: words, samplingF32: floats } = step
  words[at + param.seed_low] = sampling.seedLow
  words[at + param.seed_high] = sampling.seedHigh
  words[at + param.position] = request.known
  floats[at + param.temperature] = sampling.temperature
  words[at + param.top_k] = sampling.topK
  floats[at + param.top_p] = sampling.topP
  floats[at + param.min_p] = sampling.minP
  floats[at + param.repetition_penalty] = sampling.repetitionPenalty
  floats[at + param.presence_penalty] = sampling.presencePenalty
  floats[at + param.frequency_penalty] = sampling.frequencyPenalty
  words[at + param.top_logprobs] = Math.max(0, sampling.logprobs)
  if (sampling.repetitionPenalty !== 1 || sampling.presencePenalty !== 0 || sampling.frequencyPenalty !== 0) {
    words[at + param.history_start] = cursor.history
    words[at + param.history_count] = request.known
    words[at + param.history_prompt] = request.work.prompt.length
    step.historyIds.set(request.tokens.subarray(0, request.known), cursor.history)
    cursor.history += request.known
  }
  words[at + param.bias_start] = cursor.biases
  words[at + param.bias_count] = sampling.biasTokens.length
  for (let i = 0; i < sampling.biasTokens.length; i++) {
    const entry = BIAS_WORDS * cursor.biases++
    step.biasEntries[entry + biasEntry.word.token] = sampling.biasTokens[i]!
    step.biasEntriesF32[entry + biasEntry.word.bias] = sampling.biasValues[i]!
  }
}
