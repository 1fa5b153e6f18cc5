/**
 * Where the time of a step goes, by opcode and by instruction, and how near each comes to the limit of the machine: its
 * bytes over the read bandwidth, its multiply-adds over the matrix peak, both measured in the same run.
 */
import { basename } from 'node:path'
import type { StepTally } from '../abi/native.ts'
import { work } from '../compute/work.ts'
import { fail } from '../errors.ts'
import type { Model } from '../index.ts'
import type { Ceilings } from './ceilings.ts'
import { randomPrompts } from './measure.ts'
import { type BenchOptions, ceilingsFor, openForBench, timeDecode, timePrefill } from './step.ts'

/** An opcode or an instruction, in one run: a prompt, or a step of decoding. */
export interface ProfileRow {
  /** Opcode, or label and opcode of the instruction. */
  readonly name: string
  readonly calls: number
  readonly ms: number
  /** Of the run's time. */
  readonly share: number
  /** Weights and state. */
  readonly bytes: number
  readonly gigabytesPerSecond: number
  readonly readShare: number
  readonly operations: number
  readonly gigaoperationsPerSecond: number
  readonly peakShare: number
  /** Which limit is the nearer, and the share of it that was reached. */
  readonly bound: 'memory' | 'compute'
  readonly limitShare: number
}

/** Time outside opcodes. */
export interface OutsideRow {
  readonly name: string
  readonly ms: number
  readonly share: number
}

export interface Scenario {
  readonly name: string
  readonly sequences: number
  /** Mean positions of a sequence after a step. */
  readonly context: number
  /** What a run is. */
  readonly run: 'prompt' | 'step'
  readonly runs: number
  /** Wall-clock time of a run, and tokens that it computes a second. */
  readonly ms: number
  readonly tokensPerSecond: number
  /** Share of the run's time in which the machine worked at its limit. */
  readonly limitShare: number
  /** Longest first. */
  readonly opcodes: readonly ProfileRow[]
  /** In order of the plan. */
  readonly instructions: readonly ProfileRow[]
  readonly outside: readonly OutsideRow[]
}

export interface Profile {
  /** Name of the package. */
  readonly package: string
  readonly model: string
  readonly device: string
  readonly backend: string
  readonly ceilings: Ceilings
  readonly scenarios: readonly Scenario[]
}

/** What an instruction took and had to do, in one run. */
export interface Cost {
  readonly op: string
  readonly label: string
  readonly calls: number
  readonly ms: number
  readonly bytes: number
  readonly operations: number
  /** Least times of the bytes and of the operations. */
  readonly memoryMs: number
  readonly computeMs: number
}

function costs({ plan }: Model, tally: StepTally, runs: number, { read, peak }: Ceilings): Cost[] {
  const { steps, tokens, rows, sequences, positions, attended } = tally
  const mean = (sum: number) => sum / steps
  const shape = {
    tokens: mean(tokens),
    rows: mean(rows),
    sequences: mean(sequences),
    positions: mean(positions),
    attended: mean(attended),
  }
  return work(plan, shape).map(({ weightBytes, stateBytes, operations, arithmetic }, i) => {
    const calls = tally.instructionCalls[i]! / runs
    const ran = { bytes: calls * weightBytes + (steps / runs) * stateBytes, operations: (steps / runs) * operations }
    return {
      op: plan.instructions[i]!.op,
      label: plan.instructions[i]!.label,
      calls,
      ms: tally.instructionNanoseconds[i]! / runs / 1e6,
      ...ran,
      memoryMs: ran.bytes / read.median / 1e6,
      computeMs: ran.operations / peak[arithmetic].median / 1e6,
    }
  })
}

/** Of instructions together, in a run of `runMs`. */
export function rowOf(name: string, parts: readonly Cost[], runMs: number): ProfileRow {
  const sum = (of: (cost: Cost) => number) => parts.reduce((total, cost) => total + of(cost), 0)
  const [ms, bytes, operations] = [sum((c) => c.ms), sum((c) => c.bytes), sum((c) => c.operations)]
  const [memoryMs, computeMs] = [sum((c) => c.memoryMs), sum((c) => c.computeMs)]
  const per = (value: number) => (ms > 0 ? value / ms : 0)
  return {
    name,
    calls: sum((c) => c.calls),
    ms,
    share: ms / runMs,
    bytes,
    gigabytesPerSecond: per(bytes) / 1e6,
    readShare: per(memoryMs),
    operations,
    gigaoperationsPerSecond: per(operations) / 1e6,
    peakShare: per(computeMs),
    bound: memoryMs >= computeMs ? 'memory' : 'compute',
    limitShare: per(sum((c) => Math.max(c.memoryMs, c.computeMs))),
  }
}

/** Time of a run that no instruction took: with the opcodes it makes the whole. */
function outsideRows(tally: StepTally, runs: number, ms: number): OutsideRow[] {
  const [all, states, results] = [tally.nanoseconds, tally.states, tally.results].map((ns) => ns / runs / 1e6)
  const inside = tally.instructionNanoseconds.reduce((sum, ns) => sum + ns, 0) / runs / 1e6
  const rows: [string, number][] = [
    ['state preparation', states!],
    ['results', results!],
    ['step checks, threads', all! - states! - results! - inside],
    ['host (JavaScript)', Math.max(0, ms - all!)],
  ]
  return rows.map(([name, time]) => ({ name, ms: time, share: time / ms }))
}

interface Measured {
  readonly name: string
  readonly sequences: number
  readonly run: Scenario['run']
  readonly runs: number
  readonly wallMs: number
}

function scenario(model: Model, tally: StepTally, limits: Ceilings, measured: Measured): Scenario {
  const { wallMs, runs, ...rest } = measured
  const all = costs(model, tally, runs, limits)
  // What the native side counted is a part of the wall-clock time, but of other runs where one more step was under way.
  const ms = Math.max(wallMs, tally.nanoseconds / runs / 1e6)
  const opcodes = [...new Set(all.map(({ op }) => op))]
    .map((op) =>
      rowOf(
        op,
        all.filter((cost) => cost.op === op),
        ms,
      ),
    )
    .sort((a, b) => b.ms - a.ms)
  return {
    ...rest,
    context: tally.positions / Math.max(1, tally.sequences),
    runs,
    ms,
    tokensPerSecond: (tally.tokens / runs / ms) * 1000,
    limitShare: all.reduce((sum, c) => sum + Math.max(c.memoryMs, c.computeMs), 0) / ms,
    opcodes,
    instructions: all.map((cost) => rowOf(`${cost.label} (${cost.op})`, [cost], ms)),
    outside: outsideRows(tally, runs, ms),
  }
}

async function profilePrefill(model: Model, tokens: number, runs: number, limits: Ceilings): Promise<Scenario> {
  const prompts = randomPrompts(runs + 1, tokens, model.info.vocab)
  await timePrefill(model, [prompts[0]!])
  await model.setTally(true)
  let wall = 0
  for (const prompt of prompts.slice(1)) wall += await timePrefill(model, [prompt])
  // A prompt of one token is a step that decodes, by the tally's definition.
  const tally = (await model.tally())![tokens === 1 ? 'decode' : 'prefill']
  const measured = { name: `prefill ${tokens}`, sequences: 1, run: 'prompt', runs, wallMs: wall / runs } as const
  return scenario(model, tally, limits, measured)
}

async function profileDecode(model: Model, sequences: number, context: number, steps: number, limits: Ceilings) {
  const prompts = randomPrompts(sequences, context, model.info.vocab)
  await timeDecode(model, prompts, 2)
  await model.setTally(true)
  const times = await timeDecode(model, prompts, steps)
  const tally = (await model.tally())!.decode
  const wallMs = times.reduce((sum, ms) => sum + ms, 0) / times.length
  const name = `decode ${sequences} after ${context}`
  return scenario(model, tally, limits, { name, sequences, run: 'step', runs: tally.steps, wallMs })
}

/**
 * Profiles one prompt's prefill and decoding at every number of sequences. Throws TALLY_MISSING for a backend that does
 * not count, LIMITS_MISSING for one that runs on no CPU, and as open() does.
 */
export async function profile(path: string, options: BenchOptions): Promise<Profile> {
  const { prompt, context = prompt, generate, batches, repeats } = options
  await using model = await openForBench(path, options)
  await model.setTally(false)
  const limits = await ceilingsFor(options)
  if (!limits) throw fail('LIMITS_MISSING', { backend: options.backend })
  const total = batches.length + 1
  const progress = (done: number, what: string) => options.onProgress?.(done, total, what)
  progress(0, 'prefill')
  const scenarios = [await profilePrefill(model, prompt, repeats, limits)]
  for (const [i, sequences] of batches.entries()) {
    progress(i + 1, `decode ${sequences}`)
    scenarios.push(await profileDecode(model, sequences, context, generate, limits))
  }
  progress(total, 'done')
  const { backend, description } = model.device
  return {
    package: basename(path, '.ingot'),
    model: model.info.model,
    device: description,
    backend,
    ceilings: limits,
    scenarios,
  }
}
