/** One measurement of Ingot in a fresh process: a Task as JSON in argv, an Answer as JSON on stdout. */
import { readFileSync, writeFileSync } from 'node:fs'
import { type Model, open } from '../../index.ts'
import { randomPrompts } from '../measure.ts'
import {
  type Answer,
  Arrivals,
  generatedTokens,
  MOST_PROMPTS,
  parseMemory,
  type Scenario,
  STEP_TOKENS,
  stepSeconds,
  type Task,
} from './scenarios.ts'

const greedy = { temperature: 0, ignoreEos: true } as const
const task = JSON.parse(process.argv[2]!) as Task

const openModel = ({ sequences, context }: Scenario, extra: number) =>
  open(task.path, {
    threads: task.threads,
    ...(task.isa && { isa: task.isa }),
    maxSlots: sequences,
    contextTokens: context + extra,
    maxTokensPerStep: Math.max(STEP_TOKENS, sequences),
    prefixCache: false,
  })

/** Milliseconds to the first token of `ids`. */
async function firstToken(model: Model, ids: number[]): Promise<number> {
  const start = performance.now()
  await model.generate(ids, { ...greedy, maxTokens: 1 }).result()
  return performance.now() - start
}

async function prefill(model: Model, { context }: Scenario): Promise<number[]> {
  const samples: number[] = []
  const start = performance.now()
  do {
    const [ids] = randomPrompts(1, context, task.vocab, task.seed + samples.length)
    samples.push((await firstToken(model, ids!)) / 1000)
  } while (samples.length < MOST_PROMPTS && performance.now() - start < task.seconds * 1000)
  return samples
}

async function decode(model: Model, scenario: Scenario): Promise<number[]> {
  const { sequences, context } = scenario
  const arrivals = new Arrivals(sequences, task.seconds)
  const maxTokens = generatedTokens(scenario)
  await Promise.all(
    randomPrompts(sequences, context, task.vocab, task.seed).map(async (ids, sequence) => {
      for await (const _ of model.generate(ids, { ...greedy, maxTokens })) {
        arrivals.add(sequence)
        if (arrivals.enough) break
      }
    }),
  )
  return stepSeconds(arrivals.times)
}

async function measure(scenario: Scenario): Promise<Answer> {
  const [warmup] = randomPrompts(1, 16, task.vocab, task.seed)
  const start = performance.now()
  await using model = await openModel(scenario, generatedTokens(scenario))
  const openMs = performance.now() - start
  const firstTokenMs = openMs + (await firstToken(model, warmup!))
  const single = scenario.withSingle && (await decode(model, { ...scenario, sequences: 1 }))
  const samples = { start: async () => [firstTokenMs / 1000], prefill, decode }
  const measured = await samples[scenario.kind](model, scenario)
  const memory = parseMemory(readFileSync('/proc/self/status', 'utf8'))
  const { stateBytesPerToken: stateTokenBytes } = model.info
  const stateTokens = model.memory().stateBytes / stateTokenBytes
  const { description: device } = model.device
  const times = { openMs, firstTokenMs, samples: measured, ...(single && { single }) }
  return { device, ...times, stateTokens, stateTokenBytes, memory }
}

async function writeLogits({ prompts, out }: NonNullable<Task['logits']>): Promise<{ device: string }> {
  const longest = Math.max(...prompts.map((ids) => ids.length))
  await using model = await openModel({ sequences: 1, context: longest } as Scenario, 1)
  const logits: Uint8Array[] = []
  for (const ids of prompts) logits.push(new Uint8Array((await model.logits(ids)).buffer))
  writeFileSync(out, Buffer.concat(logits))
  return { device: model.device.description }
}

const answer = task.logits ? await writeLogits(task.logits) : await measure(task.scenario!)
process.stdout.write(`${JSON.stringify(answer)}\n`)
