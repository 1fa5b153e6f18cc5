/** Packs sequences into a step buffer by hand: the plainest caller of a Runner, so that a check needs no scheduler. */
import { biasEntry, copyPair, type StepView, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'

export type SampleInput = Partial<Record<keyof typeof sampleParams.word, number>> & {
  /** Prompt then output; the first `history_prompt` are prompt. */
  readonly history?: readonly number[]
  readonly bias?: readonly (readonly [token: number, bias: number])[]
}

export interface SequenceInput {
  readonly slot: number
  /** Blocks of positions 0, 32, 64 ... */
  readonly blocks: readonly number[]
  /** Position of the first token. */
  readonly position: number
  readonly tokens: readonly number[]
  /** Indices into `tokens` that become rows; all when absent. */
  readonly rows?: readonly number[]
}

export interface BatchInput {
  readonly sequences: readonly SequenceInput[]
  readonly copies?: readonly (readonly [source: number, target: number])[]
  readonly resets?: readonly number[]
  /** Options of row r; greedy with all that can be copied out when absent. */
  readonly sampling?: (row: number) => SampleInput
}

const unused: Readonly<Record<keyof typeof sampleParams.word, number>> = {
  flags: sampleFlags.sample | sampleFlags.logits | sampleFlags.hidden | sampleFlags.logprobs,
  seed_low: 0,
  seed_high: 0,
  position: 0,
  temperature: 0,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  history_start: 0,
  history_count: 0,
  history_prompt: 0,
  bias_start: 0,
  bias_count: 0,
  top_logprobs: 0,
}

/** Appends the history and biases of one row; returns where each array now ends. */
function writeSampling(view: StepView, row: number, input: SampleInput, ends: { history: number; biases: number }) {
  const { history = [], bias = [], ...given } = input
  view.historyIds.set(history, ends.history)
  for (const [i, [token, value]] of bias.entries()) {
    const at = ((ends.biases + i) * biasEntry.bytes) / 4
    view.biasEntries[at + biasEntry.word.token] = token
    view.biasEntriesF32[at + biasEntry.word.bias] = value
  }
  const slices = {
    history_start: ends.history,
    history_count: history.length,
    bias_start: ends.biases,
    bias_count: bias.length,
  }
  for (const [name, value] of Object.entries({ ...unused, ...slices, ...given })) {
    const at = (row * sampleParams.bytes) / 4 + sampleParams.word[name as keyof typeof unused]
    if (sampleParams.fields[name as keyof typeof unused] === 'f32') view.samplingF32[at] = value
    else view.sampling[at] = value
  }
  return { history: ends.history + history.length, biases: ends.biases + bias.length }
}

/** Writes `batch` into `view` and returns it; `results` are the offsets of createResult. */
export function packStep(view: StepView, batch: BatchInput, results?: { logits: number; hidden: number }): StepView {
  const { word } = stepHeader
  let [token, row] = [0, 0]
  let ends = { history: 0, biases: 0 }
  for (const [s, { slot, blocks, position, tokens, rows }] of batch.sequences.entries()) {
    view.sequenceStart[s] = token
    view.sequenceLength[s] = position + tokens.length
    view.sequenceSlot[s] = slot
    view.blockTable.set(blocks, s * view.header[word.blocks_per_sequence]!)
    for (const index of rows ?? tokens.keys()) {
      view.rowToken[row] = token + index
      ends = writeSampling(view, row, batch.sampling?.(row) ?? {}, ends)
      row++
    }
    for (const [i, id] of tokens.entries()) {
      view.tokenIds[token] = id
      view.positions[token] = position + i
      view.tokenSequence[token++] = s
    }
  }
  view.sequenceStart[batch.sequences.length] = token
  const { copies = [], resets = [] } = batch
  for (const [i, [source, target]] of copies.entries()) view.copyPairs.set([source, target], (i * copyPair.bytes) / 4)
  view.resetSlots.set(resets)
  const counts = { tokens: token, sequences: batch.sequences.length, rows: row, copies: copies.length }
  const rest = { resets: resets.length, history: ends.history, biases: ends.biases }
  const offsets = { result_logits: results?.logits ?? 0, result_hidden: results?.hidden ?? 0 }
  for (const [name, value] of Object.entries({ ...counts, ...rest, ...offsets }))
    view.header[word[name as keyof typeof word]] = value
  return view
}
