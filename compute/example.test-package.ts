/** A small plan with random weights on disk, for tests of backends. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type DType, dtypes, numberToBf16, numberToE4m3, numberToF16, packInt4 } from '../abi/dtypes.ts'
import { elementIndex } from '../abi/layouts.ts'
import { createStep, type StepLimits, type StepView, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import type { ExecutionPlan, Tensor } from '../plans/plan.ts'
import { writePlan } from '../plans/write.ts'
import type { LinkedPackage, StoredTensor } from './device.ts'

const arrays = {
  f32: (values: Float64Array) => Float32Array.from(values),
  f16: (values: Float64Array) => Uint16Array.from(values, numberToF16),
  bf16: (values: Float64Array) => Uint16Array.from(values, numberToBf16),
  i8: (values: Float64Array) => Int8Array.from(values, (value) => Math.round(value * 100)),
  e4m3: (values: Float64Array) => Uint8Array.from(values, (value) => numberToE4m3(value * 100)),
  i32: (values: Float64Array) => Int32Array.from(values),
  i4: (values: Float64Array) => {
    const packed = new Uint8Array(values.length / 2)
    packInt4(
      Int8Array.from(values, (value) => Math.round(value * 12)),
      packed,
    )
    return packed
  },
} as const satisfies Record<DType, unknown>

/** Deterministic values of (-1, 1), Marsaglia's xorshift32 (2003). */
export function randomValues(seed: number): () => number {
  let state = seed | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state / 2 ** 31
  }
}

/** The value of a scale or, as a hundredth, of a sub-scale. */
function scaling(name: string): number | undefined {
  if (name.endsWith('sub_scales')) return 0.02
  return name.endsWith('scales') ? 0.01 : undefined
}

function storedBytes({ dtype, layout, rows, cols, bytes, name }: Tensor, random: () => number): Uint8Array {
  const values = new Float64Array((bytes * 8) / dtypes[dtype].bits)
  const center = /norm/.test(name) ? 1 : 0
  for (let row = 0; row < rows; row++)
    for (let col = 0; col < cols; col++)
      values[elementIndex(layout, cols, row, col)] = scaling(name) ?? center + random() * 0.5
  const { buffer, byteLength } = arrays[dtype](values)
  return new Uint8Array(buffer, 0, byteLength)
}

export interface ExamplePackage extends LinkedPackage, Disposable {
  /** The file that holds every weight. */
  readonly file: string
}

/** Writes the weights of `plan` into a folder that `using` removes. */
export function examplePackage(plan: ExecutionPlan = decoderPlan('f32')): ExamplePackage {
  const folder = mkdtempSync(join(tmpdir(), 'ingot-package-'))
  const file = join(folder, 'weights.bin')
  const random = randomValues(7)
  const tensors = new Map<string, StoredTensor>()
  const parts: Uint8Array[] = []
  let offset = 0
  for (const tensor of plan.tensors) {
    const bytes = storedBytes(tensor, random)
    tensors.set(tensor.name, { file, offset, bytes: bytes.length })
    const padding = new Uint8Array((64 - (bytes.length % 64)) % 64)
    parts.push(bytes, padding)
    offset += bytes.length + padding.length
  }
  writeFileSync(file, Buffer.concat(parts))
  const remove = () => rmSync(folder, { recursive: true, force: true })
  return { path: folder, file, plan, planBytes: writePlan(plan), tensors, [Symbol.dispose]: remove }
}

export const exampleLimits: StepLimits = {
  tokens: 64,
  rows: 8,
  sequences: 8,
  blocksPerSequence: 4,
  history: 64,
  biases: 8,
  copies: 8,
}

/** A step that runs whole prompts from position 0, one a sequence, and greedily samples after each. */
export function promptStep(prompts: readonly (readonly number[])[], limits = exampleLimits): StepView {
  const step = createStep(limits)
  let token = 0
  for (const [index, prompt] of prompts.entries()) {
    step.sequenceStart[index] = token
    step.sequenceLength[index] = prompt.length
    step.sequenceSlot[index] = index + 1
    for (let i = 0; i < limits.blocksPerSequence; i++)
      step.blockTable[index * limits.blocksPerSequence + i] = 1 + index * limits.blocksPerSequence + i
    for (const [position, id] of prompt.entries()) {
      step.tokenIds[token] = id
      step.positions[token] = position
      step.tokenSequence[token++] = index
    }
    step.rowToken[index] = token - 1
    const at = (index * sampleParams.bytes) / 4
    step.sampling[at + sampleParams.word.flags] = sampleFlags.sample | sampleFlags.logits
    step.samplingF32[at + sampleParams.word.top_p] = 1
    step.samplingF32[at + sampleParams.word.repetition_penalty] = 1
  }
  step.sequenceStart[prompts.length] = token
  step.header[stepHeader.word.tokens] = token
  step.header[stepHeader.word.sequences] = prompts.length
  step.header[stepHeader.word.rows] = prompts.length
  return step
}
