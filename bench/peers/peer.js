/**
 * One measurement of node-llama-cpp in a fresh process: a Task as JSON in argv, an Answer as JSON on stdout. Plain
 * JavaScript beside its own node_modules, so that Ingot is built without them.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { getLlama, LlamaLogLevel } from 'node-llama-cpp'
import { randomPrompts } from '../../dist/bench/measure.js'
import {
  Arrivals,
  generatedTokens,
  MOST_PROMPTS,
  parseMemory,
  STEP_TOKENS,
  stepSeconds,
} from '../../dist/bench/peers/scenarios.js'

const task = JSON.parse(process.argv[2])
const greedy = { temperature: 0, yieldEogToken: true }

/**
 * node-llama-cpp tells its addon to load the best library of its own folder; it is told to load that of `folder`
 * instead, see isa.ts.
 */
function holdTo(folder) {
  const { dlopen } = process
  process.dlopen = (module, ...rest) => {
    dlopen.call(process, module, ...rest)
    const { exports } = module
    if (exports.loadBackends)
      module.exports = Object.create(exports, { loadBackends: { value: (path) => exports.loadBackends(path && folder) } })
  }
}

const load = async () => {
  if (task.isa) holdTo(task.isa)
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    maxThreads: task.threads,
    logLevel: LlamaLogLevel.error,
  })
  return llama.loadModel({ modelPath: task.path, gpuLayers: 0, defaultContextFlashAttention: true })
}

/**
 * A batch runs at once when every sequence has asked for a token; the timer serves prompts. By default it would run with
 * whoever asked first and leave one sequence behind, so this is the peer at its best.
 */
const contextOf = (model, { sequences, context }) =>
  model.createContext({
    sequences,
    contextSize: context + generatedTokens({ sequences, context }),
    batchSize: Math.max(STEP_TOKENS, sequences),
    threads: task.threads,
    flashAttention: true,
    batching: { dispatchSchedule: (dispatch) => setTimeout(dispatch, sequences === 1 ? 0 : 50) },
    ignoreMemorySafetyChecks: true,
  })

async function firstToken(sequence, ids) {
  await sequence.clearHistory()
  const start = performance.now()
  for await (const _ of sequence.evaluate(ids, greedy)) break
  return performance.now() - start
}

async function prefill(sequence, { context }) {
  const samples = []
  const start = performance.now()
  do {
    const [ids] = randomPrompts(1, context, task.vocab, task.seed + samples.length)
    samples.push((await firstToken(sequence, ids)) / 1000)
  } while (samples.length < MOST_PROMPTS && performance.now() - start < task.seconds * 1000)
  return samples
}

async function decode(sequences, { context }) {
  const arrivals = new Arrivals(sequences.length, task.seconds)
  const prompts = randomPrompts(sequences.length, context, task.vocab, task.seed)
  for (const [index, sequence] of sequences.entries()) {
    await sequence.clearHistory()
    await sequence.evaluateWithoutGeneratingNewTokens(prompts[index].slice(0, -1))
  }
  await Promise.all(
    sequences.map(async (sequence, index) => {
      for await (const _ of sequence.evaluate(prompts[index].slice(-1), greedy)) {
        arrivals.add(index)
        if (arrivals.enough) break
      }
    }),
  )
  return stepSeconds(arrivals.times)
}

/** The library that computes: llama.cpp loads one per instruction set. */
const library = () => /libggml-cpu-(\w+)\.so/.exec(readFileSync('/proc/self/maps', 'utf8'))?.[1] ?? 'unknown'

async function measure(scenario) {
  const [warmup] = randomPrompts(1, 16, task.vocab, task.seed)
  const start = performance.now()
  const model = await load()
  const context = await contextOf(model, scenario)
  const openMs = performance.now() - start
  const sequences = Array.from({ length: scenario.sequences }, () => context.getSequence())
  const firstTokenMs = openMs + (await firstToken(sequences[0], warmup))
  let single
  if (scenario.withSingle) {
    const alone = await contextOf(model, { ...scenario, sequences: 1 })
    single = await decode([alone.getSequence()], scenario)
    await alone.dispose()
  }
  let samples = [firstTokenMs / 1000]
  if (scenario.kind === 'prefill') samples = await prefill(sequences[0], scenario)
  if (scenario.kind === 'decode') samples = await decode(sequences, scenario)
  const memory = parseMemory(readFileSync('/proc/self/status', 'utf8'))
  const stateTokens = context.getAllocatedContextSize()
  const device = `llama.cpp ${library()}, ${context.currentThreads} threads`
  return { device, openMs, firstTokenMs, samples, single, stateTokens, memory }
}

/** The logits of every token of every prompt, as the model gives them (no filter, temperature 0). */
async function writeLogits({ prompts, out }) {
  const model = await load()
  const longest = Math.max(...prompts.map((ids) => ids.length))
  const context = await contextOf(model, { sequences: 1, context: longest })
  const sequence = context.getSequence()
  const parts = []
  for (const ids of prompts) {
    await sequence.clearHistory()
    const logits = new Float32Array(ids.length * task.vocab)
    const outputs = await sequence.controlledEvaluate(
      ids.map((id) => [id, { generateNext: { logits: true, options: { temperature: 0 } } }]),
    )
    for (const [index, output] of outputs.entries())
      for (const [token, logit] of output.next.logits) logits[index * task.vocab + token] = logit
    parts.push(Buffer.from(logits.buffer))
  }
  writeFileSync(out, Buffer.concat(parts))
  return { device: `llama.cpp ${library()}` }
}

const answer = task.logits ? await writeLogits(task.logits) : await measure(task.scenario)
process.stdout.write(`${JSON.stringify(answer)}\n`)
// its threads and finalizers are no part of what is measured
process.exit(0)
