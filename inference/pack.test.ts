import { expect, test } from 'vitest'
import { createStep, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'
import { pack } from './pack.ts'
import { Request, type Work } from './request.ts'
import { sampling } from './sampling.ts'

const sink = { row: () => false, failed: () => {} }
const choice = (options: object) => sampling(options, { eosTokens: [], options: {} }, 100, 'test')
const word = stepHeader.word
const words = sampleParams.bytes / 4

function make(work: Partial<Work>, state: Partial<Request>): Request {
  const request = new Request(0, { prompt: Int32Array.of(1), output: 'token', maxTokens: 8, since: 0, sink, ...work })
  request.grow()
  return Object.assign(request, state)
}

const limits = { tokens: 16, rows: 8, sequences: 4, blocksPerSequence: 3, history: 32, biases: 8, copies: 4 }

test('a ragged batch, field by field', () => {
  const step = createStep(limits)
  const penalised = make(
    {
      prompt: Int32Array.of(10, 11, 12),
      sampling: choice({
        temperature: 0.5,
        topK: 4,
        topP: 0.75,
        minP: 0.125,
        repetitionPenalty: 1.5,
        presencePenalty: 0.25,
        frequencyPenalty: -0.5,
        logitBias: { 7: 2, 9: -1 },
        seed: 2n ** 40n + 3n,
        logprobs: 5,
      }),
    },
    { slot: 2, computed: 3, blocks: [5, 6] },
  )
  penalised.put(penalised.known, 13)
  const prefill = make(
    { prompt: Int32Array.of(20, 21, 22, 23), sampling: choice({ seed: 1 }) },
    { slot: 1, blocks: [4] },
  )
  const logits = make({ prompt: Int32Array.of(30, 31), output: 'logits' }, { slot: 3, blocks: [8], computed: 0 })
  const copied = make(
    { prompt: Int32Array.of(40, 41), output: 'hidden' },
    { slot: 4, computed: 1, blocks: [9], copySource: 3 },
  )
  const batch = [
    { sequence: penalised, tokens: 1, blocks: 0, rows: 1 },
    { sequence: prefill, tokens: 2, blocks: 1, rows: 0 },
    { sequence: logits, tokens: 2, blocks: 0, rows: 2 },
    { sequence: copied, tokens: 1, blocks: 0, rows: 1 },
  ]
  pack(step, batch, true, { logits: 64, hidden: 128 })

  const head = (name: keyof typeof word) => step.header[word[name]]
  expect([head('tokens'), head('sequences'), head('rows'), head('copies'), head('resets')]).toEqual([6, 4, 4, 1, 2])
  expect([head('history'), head('biases'), head('result_logits'), head('result_hidden')]).toEqual([4, 2, 64, 128])
  expect([...step.tokenIds.subarray(0, 6)]).toEqual([13, 20, 21, 30, 31, 41])
  expect([...step.positions.subarray(0, 6)]).toEqual([3, 0, 1, 0, 1, 1])
  expect([...step.tokenSequence.subarray(0, 6)]).toEqual([0, 1, 1, 2, 2, 3])
  expect([...step.sequenceStart]).toEqual([0, 1, 3, 5, 6])
  expect([...step.sequenceLength]).toEqual([4, 2, 2, 2])
  expect([...step.sequenceSlot]).toEqual([2, 1, 3, 4])
  expect([...step.blockTable]).toEqual([5, 6, 0, 4, 0, 0, 8, 0, 0, 9, 0, 0])
  expect([...step.rowToken.subarray(0, 4)]).toEqual([0, 3, 4, 5])
  expect([...step.copyPairs.subarray(0, 2)]).toEqual([3, 9])
  expect([...step.resetSlots.subarray(0, 2)]).toEqual([1, 3])
  expect([...step.historyIds.subarray(0, 4)]).toEqual([10, 11, 12, 13])
  expect([step.biasEntries[0], step.biasEntriesF32[1], step.biasEntries[2], step.biasEntriesF32[3]]).toEqual([
    7, 2, 9, -1,
  ])

  const row = Object.fromEntries(
    Object.entries(sampleParams.fields).map(([name, type]) => {
      const at = sampleParams.word[name as keyof typeof sampleParams.word]
      return [name, type === 'f32' ? step.samplingF32[at] : step.sampling[at]]
    }),
  )
  expect(row).toEqual({
    flags: sampleFlags.sample | sampleFlags.logprobs,
    seed_low: 3,
    seed_high: 256,
    position: 4,
    temperature: 0.5,
    top_k: 4,
    top_p: 0.75,
    min_p: 0.125,
    repetition_penalty: 1.5,
    presence_penalty: 0.25,
    frequency_penalty: -0.5,
    history_start: 0,
    history_count: 4,
    history_prompt: 3,
    bias_start: 0,
    bias_count: 2,
    top_logprobs: 5,
  })
  const flags = [0, 1, 2, 3].map((r) => step.sampling[r * words + sampleParams.word.flags])
  expect(flags).toEqual([
    sampleFlags.sample | sampleFlags.logprobs,
    sampleFlags.logits,
    sampleFlags.logits,
    sampleFlags.hidden,
  ])
})

test('a later step leaves nothing of an earlier one in what is read', () => {
  const step = createStep(limits)
  const long = make({ sampling: choice({ repetitionPenalty: 2 }) }, { slot: 1, blocks: [1, 2, 3] })
  pack(step, [{ sequence: long, tokens: 1, blocks: 0, rows: 1 }], true, { logits: 64, hidden: 128 })
  const plain = make({ sampling: choice({ seed: 1 }) }, { slot: 1, blocks: [7] })
  pack(step, [{ sequence: plain, tokens: 1, blocks: 0, rows: 1 }], false, { logits: 64, hidden: 128 })
  expect([...step.blockTable.subarray(0, 3)]).toEqual([7, 0, 0])
  expect(step.sampling[sampleParams.word.history_count]).toBe(0)
  for (const name of ['resets', 'history', 'result_logits', 'result_hidden'] as const) {
    expect(step.header[word[name]]).toBe(0)
  }
})

test('a step larger than memory is a typed error', () => {
  const outOfMemory = expect.objectContaining({ code: 'OUT_OF_MEMORY' })
  expect(() => createStep({ ...limits, history: 2 ** 50 })).toThrow(outOfMemory)
  // Its offsets would not fit their words.
  expect(() => createStep({ ...limits, history: 2 ** 30 })).toThrow(outOfMemory)
})
