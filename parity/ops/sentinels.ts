/**
 * Sentinels of the buffers that JavaScript owns: the step buffer and the results. What a step does not name holds noise
 * (in range and wrong, so that reading it is an error and no crash); what a step must not write holds a signalling NaN.
 * Registers and states are the runner's: Runner.sentinels of compute/device.ts.
 */
import { BLOCK_TOKENS } from '../../abi/state.ts'
import {
  biasEntry,
  copyPair,
  type ResultView,
  ROW_RESULT_BYTES,
  resultHeader,
  type StepView,
  sampleFlags,
  sampleParams,
  stepHeader,
} from '../../abi/step.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'

/** A signalling NaN as f32, and NaN as two halves of f16 or bf16. */
export const POISON = 0x7fbf7fbf

/** Units that no sequence of a case owns. */
export interface Traps {
  readonly block: number
  readonly slot: number
}

/** SampleParams of a row that nobody asked for: a draw from nothing but NaN. */
const noiseRow = new Uint32Array(sampleParams.bytes / 4)
for (const [name, word] of Object.entries(sampleParams.word))
  if (sampleParams.fields[name as keyof typeof sampleParams.fields] === 'f32') noiseRow[word] = POISON
noiseRow[sampleParams.word.flags] = Object.values(sampleFlags).reduce<number>((all, flag) => all | flag, 0)

function noiseSampling(view: StepView, from: number): void {
  for (let at = from * noiseRow.length; at < view.sampling.length; at += noiseRow.length)
    view.sampling.set(noiseRow, at)
}

/** Blocks past those that a sequence has positions in are traps. */
function noiseBlocks(view: StepView, sequences: number, trap: number): void {
  const width = view.header[stepHeader.word.blocks_per_sequence]!
  for (let s = 0; s < view.blockTable.length / width; s++) {
    const needed = s < sequences ? Math.ceil(view.sequenceLength[s]! / BLOCK_TOKENS) : 0
    view.blockTable.fill(trap, s * width + needed, (s + 1) * width)
  }
}

/** Fills every entry past the counts of a packed step; returns the bytes that it must still have afterwards. */
export function noiseStep(view: StepView, traps: Traps, { vocab, maxContext }: ExecutionPlan): Uint8Array {
  const { word } = stepHeader
  const count = (name: keyof typeof word) => view.header[word[name]]!
  const [tokens, sequences, rows] = [count('tokens'), count('sequences'), count('rows')]
  noiseBlocks(view, sequences, traps.block)
  noiseSampling(view, rows)
  view.tokenIds.fill(vocab - 1, tokens)
  view.positions.fill(maxContext - 1, tokens)
  view.tokenSequence.fill(Math.max(0, sequences - 1), tokens)
  view.sequenceStart.fill(tokens + 1, sequences + 1)
  view.sequenceLength.fill(1, sequences)
  view.sequenceSlot.fill(traps.slot, sequences)
  view.rowToken.fill(0, rows)
  view.historyIds.fill(vocab - 1, count('history'))
  view.biasEntriesF32.fill(1e30, (count('biases') * biasEntry.bytes) / 4)
  for (let i = count('biases'); i < (view.biasEntries.length * 4) / biasEntry.bytes; i++)
    view.biasEntries[(i * biasEntry.bytes) / 4 + biasEntry.word.token] = 0
  view.copyPairs.fill(1, (count('copies') * copyPair.bytes) / 4)
  for (let i = count('copies'); i < (view.copyPairs.length * 4) / copyPair.bytes; i++)
    view.copyPairs[(i * copyPair.bytes) / 4 + copyPair.word.source] = traps.block
  view.resetSlots.fill(traps.slot, count('resets'))
  return new Uint8Array(view.buffer.slice(0))
}

export const poisonResult = (view: ResultView): void => void new Uint32Array(view.buffer).fill(POISON)

/** The first byte in which `buffer` differs from what it was, as a fault. */
export function stepFaults(view: StepView, before: Uint8Array): string[] {
  const after = Buffer.from(view.buffer)
  if (after.equals(before)) return []
  return [`the step buffer: byte ${after.findIndex((byte, i) => byte !== before[i])} was written`]
}

/** Words of the result buffer outside of header, rows, and the matrices' rows that were overwritten; the first of each gap. */
export function resultFaults(view: ResultView, rows: number, matrices: readonly Float32Array[]): string[] {
  const words = new Uint32Array(view.buffer)
  const used = [
    { start: 0, end: resultHeader.bytes / 4 },
    { start: view.rows.byteOffset / 4, end: view.rows.byteOffset / 4 + (rows * ROW_RESULT_BYTES) / 4 },
    ...matrices.map(({ byteOffset, length }) => ({ start: byteOffset / 4, end: byteOffset / 4 + length })),
  ]
  const faults: string[] = []
  for (const [i, { end }] of used.entries()) {
    const next = used[i + 1]?.start ?? words.length
    let at = end
    while (at < next && words[at] === POISON) at++
    if (at < next) faults.push(`the result buffer: byte ${4 * at} was written, past what the step asked for`)
  }
  return faults
}
