/** The step buffer as the reference reads it: counts out of the header, every index checked before anything runs. */
import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import { biasEntry, type StepView, sampleFlags, stepHeader } from '../../abi/step.ts'
import { fail } from '../../errors.ts'
import type { ReferenceStep } from './kernel.ts'
import { sampleOptions } from './sample.ts'

/** `tokenIds`: those of `view`, references resolved. */
export function readStep(view: StepView, tokenIds = view.tokenIds): ReferenceStep {
  const { tokens, sequences, rows, blocks_per_sequence } = stepHeader.word
  return {
    ...view,
    tokenIds,
    tokens: view.header[tokens]!,
    sequences: view.header[sequences]!,
    rows: view.header[rows]!,
    blocksPerSequence: view.header[blocks_per_sequence]!,
  }
}

/** What the indices of a step may reach. */
export interface StepBounds {
  readonly vocab: number
  readonly maxContext: number
  readonly blocks: number
  readonly slots: number
  /** Positions of a block; 0 without paged state. */
  readonly blockTokens: number
}

/** Throws STEP_FAILED naming the array, the index and the value. */
function inside(values: ArrayLike<number>, count: number, name: string, limit: number): void {
  if (count > values.length) throw refuse(name, `${count} entries, the buffer holds ${values.length}`)
  for (let i = 0; i < count; i++)
    if (!(values[i]! >= 0 && values[i]! < limit))
      throw refuse(name, `entry ${i} is ${values[i]}, expected 0 to ${limit - 1}`)
}

function expectEqual(name: string, index: number, got: number | undefined, expected: number): void {
  if (got !== expected) throw refuse(name, `entry ${index} is ${got}, expected ${expected}`)
}

const refuse = (name: string, reason: string) => fail('STEP_FAILED', { where: `the step buffer, ${name}`, reason })

/** Sequences are contiguous, not empty, cover all tokens, and end at their length; their blocks exist. */
function checkSequences(step: ReferenceStep, { maxContext, blockTokens, blocks }: StepBounds): void {
  const { sequenceStart, sequenceLength } = step
  expectEqual('sequence_start', 0, sequenceStart[0], 0)
  for (let s = 0; s < step.sequences; s++) {
    const [start, end, length] = [sequenceStart[s]!, sequenceStart[s + 1]!, sequenceLength[s]!]
    if (end <= start || end > step.tokens)
      throw refuse('sequence_start', `entry ${s + 1} is ${end}, expected ${start + 1} to ${step.tokens}`)
    if (length < end - start || length > maxContext)
      throw refuse('sequence_length', `entry ${s} is ${length}, expected ${end - start} to ${maxContext}`)
    for (let t = start; t < end; t++) {
      expectEqual('token_sequence', t, step.tokenSequence[t], s)
      expectEqual('positions', t, step.positions[t], length - (end - t))
    }
    const needed = blockTokens ? Math.ceil(length / blockTokens) : 0
    if (needed > step.blocksPerSequence)
      throw refuse('sequence_length', `entry ${s} needs ${needed} blocks, a sequence has ${step.blocksPerSequence}`)
    inside(step.blockTable.subarray(s * step.blocksPerSequence), needed, 'block_table', blocks)
  }
  expectEqual('sequence_start', step.sequences, sequenceStart[step.sequences], step.tokens)
}

/** Inclusive ranges of the sampling options that have one. */
const ranges = {
  temperature: [0, Number.MAX_VALUE],
  top_p: [Number.MIN_VALUE, 1],
  min_p: [0, 1],
  repetition_penalty: [Number.MIN_VALUE, Number.MAX_VALUE],
  presence_penalty: [-Number.MAX_VALUE, Number.MAX_VALUE],
  frequency_penalty: [-Number.MAX_VALUE, Number.MAX_VALUE],
  top_logprobs: [0, TOP_LOGPROBS],
} as const

function checkSampling(step: ReferenceStep, vocab: number): void {
  const [history, biases] = [step.header[stepHeader.word.history]!, step.header[stepHeader.word.biases]!]
  for (let r = 0; r < step.rows; r++) {
    const o = sampleOptions(step, r)
    if (!(o.flags & sampleFlags.sample)) continue
    for (const [name, [low, high]] of Object.entries(ranges)) {
      const value = o[name as keyof typeof ranges]
      if (!(value >= low && value <= high)) throw refuse('sampling', `row ${r}: ${name} is ${value}`)
    }
    if (o.history_start + o.history_count > history || o.history_prompt > o.history_count)
      throw refuse('sampling', `row ${r} reads history beyond ${history}`)
    if (o.bias_start + o.bias_count > biases) throw refuse('sampling', `row ${r} reads biases beyond ${biases}`)
  }
  inside(step.historyIds, history, 'history_ids', vocab)
  const words = biasEntry.bytes / 4
  const entries = step.biasEntries.subarray(0, biases * words)
  const tokens = entries.filter((_, i) => i % words === biasEntry.word.token)
  inside(tokens, biases, 'bias_entries', vocab)
  for (let i = 0; i < biases; i++) {
    const bias = step.biasEntriesF32[i * words + biasEntry.word.bias]!
    if (!Number.isFinite(bias)) throw refuse('bias_entries', `entry ${i} is ${bias}, expected a finite bias`)
  }
}

/** Throws DeviceError STEP_FAILED when an index of the step reaches outside its bounds. */
export function checkStep(step: ReferenceStep, bounds: StepBounds): void {
  const { copies, resets } = stepHeader.word
  inside(step.tokenIds, step.tokens, 'token_ids', bounds.vocab)
  inside(step.sequenceSlot, step.sequences, 'sequence_slot', bounds.slots)
  inside(step.rowToken, step.rows, 'row_token', step.tokens)
  inside(step.copyPairs, step.header[copies]! * 2, 'copy_pairs', bounds.blocks)
  inside(step.resetSlots, step.header[resets]!, 'reset_slots', bounds.slots)
  checkSequences(step, bounds)
  checkSampling(step, bounds.vocab)
}
