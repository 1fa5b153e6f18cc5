/**
 * Judges plan bytes by running them: the reference kernels over memory in which every word starts as poison and knows
 * its writer. Nothing here asks the verifier, and no rule of its is repeated: liveness, placement, widths and sizes are
 * judged by the words that a run touches. What a plan states but no run can touch (a name, a total above the need) is
 * nothing that can go wrong.
 */
import { ByteBuffer } from 'flatbuffers'
import { evaluate } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { createStep, type StepLimits, sampleFlags } from '../../abi/step.ts'
import type { ReferenceStep } from '../../compute/reference/kernel.ts'
import { readStep } from '../../compute/reference.ts'
import { type ExecutionPlan, type Instruction, PLAN_FORMAT, RUNTIME_VERSION } from '../../plans/plan.ts'
import { decodePlan } from '../../plans/read.ts'
import { type BatchInput, packStep, type SampleInput, type SequenceInput } from '../batch.ts'
import { Machine } from './machine.ts'
import { Breach } from './memory.ts'

/** Reads no byte outside its own. */
class Bounded extends ByteBuffer {
  #check(offset: number, bytes: number): void {
    if (!(offset >= 0 && offset + bytes <= this.capacity()))
      throw new Breach('unreadable', `byte ${offset} of ${this.capacity()}`)
  }
  override readUint8(offset: number): number {
    this.#check(offset, 1)
    return super.readUint8(offset)
  }
  override readInt16(offset: number): number {
    this.#check(offset, 2)
    return super.readInt16(offset)
  }
  override readInt32(offset: number): number {
    this.#check(offset, 4)
    return super.readInt32(offset)
  }
  override readUint64(offset: number): bigint {
    this.#check(offset, 8)
    return super.readUint64(offset)
  }
}

/** More than this of anything takes longer to run than a mutant is worth. */
const MOST_ELEMENTS = 2 ** 22

function hasLargeOperand({ op, params }: Instruction): boolean {
  const { inputs, outputs } = opDef(op)
  return [...Object.values(inputs), ...Object.values(outputs)].some(
    ({ width }) => evaluate(width, params) > MOST_ELEMENTS,
  )
}

function expectReadable(plan: ExecutionPlan, identifier: string): void {
  const newer = plan.instructions.find(({ op, version }) => version < 1 || version > opDef(op).version)
  const refused = plan.instructions.find(({ params }) => 'refused' in params)
  if (identifier !== 'INGT') throw new Breach('unreadable', `identifier ${identifier}`)
  if (plan.format !== PLAN_FORMAT || plan.minRuntime < 1 || plan.minRuntime > RUNTIME_VERSION)
    throw new Breach('unreadable', `format ${plan.format} for runtime ${plan.minRuntime}`)
  if (newer) throw new Breach('unreadable', `${newer.label}: version ${newer.version}`)
  if (refused) throw new Breach('unreadable', `${refused.label}: params`)
  const large =
    plan.registers.some(({ width }) => width > MOST_ELEMENTS) ||
    plan.tensors.some(({ rows, cols }) => rows * cols > MOST_ELEMENTS) ||
    plan.instructions.some(hasLargeOperand)
  if (large) throw new Breach('unjudged', 'too large to run')
}

/** The plan of `bytes`, by no more than reading them. Throws Breach. */
export function decode(bytes: Uint8Array): ExecutionPlan {
  try {
    const buffer = new Bounded(bytes)
    const plan = decodePlan(buffer)
    expectReadable(plan, buffer.getBufferIdentifier())
    return plan
  } catch (error) {
    throw error instanceof Breach ? error : new Breach('unreadable', (error as Error).message)
  }
}

const limits: StepLimits = {
  tokens: 8,
  rows: 6,
  sequences: 4,
  blocksPerSequence: 3,
  history: 16,
  biases: 4,
  copies: 2,
}

/** Positions of a block as the runtime hands them out. */
const blocksOf = { a: [1, 2], b: [3, 4], c: [5], d: [6] }
const WITHIN = 30

function stepOf(batch: BatchInput): ReferenceStep {
  const view = createStep(limits)
  view.blockTable.fill(-1)
  return readStep(packStep(view, batch))
}

/** Ids that reach both ends of the vocabulary. */
const ids = (count: number, vocab: number) =>
  Array.from({ length: count }, (_, i) => (i % 2 ? i * 7 : vocab - 1 - i) % vocab).map((id) => Math.max(0, id))

function sampling(vocab: number): (row: number) => SampleInput {
  const history = { history: [vocab - 1, 0, vocab - 1], history_prompt: 1, repetition_penalty: 1.2 }
  const options: readonly SampleInput[] = [
    { top_logprobs: 20 },
    { temperature: 0.7, top_k: 3, seed_low: 5, position: 9, ...history },
    { temperature: 1, top_p: 0.9, bias: [[vocab - 1, 1]] },
    { flags: sampleFlags.logits },
    { flags: sampleFlags.sample, top_logprobs: 3 },
  ]
  return (row) => options[row % options.length]!
}

/** Sequence a from its start, b over the edge of its first block; then both further, c, and d, which a was forked to. */
function steps(vocab: number): BatchInput[] {
  const sequence = (slot: number, blocks: readonly number[], position: number, count: number, rows?: number[]) =>
    ({ slot, blocks, position, tokens: ids(count, vocab), ...(rows && { rows }) }) satisfies SequenceInput
  return [
    {
      sequences: [sequence(1, blocksOf.a, 0, 3, [2]), sequence(2, blocksOf.b, WITHIN, 2)],
      resets: [1],
      sampling: sampling(vocab),
    },
    {
      sequences: [
        sequence(1, blocksOf.a, 3, 1),
        sequence(2, blocksOf.b, WITHIN + 2, 2, [1]),
        sequence(3, blocksOf.c, 0, 4),
        sequence(4, blocksOf.d, 3, 1, []),
      ],
      copies: [[blocksOf.a[0]!, blocksOf.d[0]!]],
      resets: [3],
      sampling: sampling(vocab),
    },
  ]
}

/** One token of sequence a at `position`, greedily sampled. */
const single = (vocab: number, position: number): ReferenceStep =>
  stepOf({ sequences: [{ slot: 1, blocks: blocksOf.a, position, tokens: ids(1, vocab) }] })

/** The same token twice at one position, where a state declares that a position can be taken back. */
function expectRewind(machine: Machine, plan: ExecutionPlan): void {
  const able = plan.states.map(({ rewind, fork }) => rewind > 0 || fork === 'any')
  if (!able.some(Boolean)) return
  const before = machine.snapshot()
  const first = machine.run(single(plan.vocab, 4))
  machine.restore(before, (state) => !able[state])
  const again = machine.run(single(plan.vocab, 4))
  if (first.some((value, i) => !Object.is(value, again[i])))
    throw new Breach('capability', 'a position that was taken back reads otherwise')
}

/** Runs a plan as a runtime might. Throws Breach. */
function exercise(plan: ExecutionPlan): void {
  const machine = new Machine(plan, limits, { blocks: 8, slots: 5 })
  const { vocab, maxContext } = plan
  // As after a restore: what b and the fork of a's slot hold was computed before.
  machine.adopt({ blocks: [blocksOf.b[0]!], slots: [2, 4] })
  for (const batch of steps(vocab)) machine.run(stepOf(batch))
  expectRewind(machine, plan)
  // The furthest position, as far as it needs no earlier one.
  machine.run(stepOf({ sequences: [{ slot: 1, blocks: [], position: maxContext - 1, tokens: [0] }] }), 'stateless')
}

/** Why the plan of `bytes` must not run; undefined: a run of it is sound. */
export function judge(bytes: Uint8Array): Breach | undefined {
  try {
    exercise(decode(bytes))
    return undefined
  } catch (error) {
    // What kernels throw on values that make no sense is a breach as well.
    return error instanceof Breach ? error : new Breach('kernel', (error as Error).message)
  }
}
