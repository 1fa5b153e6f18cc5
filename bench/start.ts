/**
 * Warm start and resident memory: `npm run bench:start [package] [runs]`. Each run is a fresh process that opens the
 * package, generates from 16 token ids and then tells where its memory is; prints one JSON object. One run before those
 * that count brings the file into the page cache and its receipt into the user's.
 */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { open } from '../index.ts'
import { type Spread, spread } from './measure.ts'
import { storyteller } from './storyteller.ts'

const PROMPT_TOKENS = 16
const GENERATED = 16

/** Milliseconds and megabytes (10^6 bytes) of one process. */
interface Run {
  /** Process start to the first line of this file: Node and the modules of ingot. */
  readonly loadMs: number
  readonly openMs: number
  /** open() to the first token. */
  readonly firstTokenMs: number
  readonly decodeMsPerToken: number
  /** What the first step pays beyond a later one of the same shape: page faults, caches, cold code. */
  readonly coldMs: number
  readonly residentMegabytes: number
  /** Of which anonymous: heaps, stacks, state, activations. */
  readonly anonymousMegabytes: number
  /** Over the weights, which are mapped from the file. The state of these few tokens is in it. */
  readonly overWeightsMegabytes: number
  readonly integrity: string
}

/** A field of /proc/self/status in megabytes; NaN where the system has no such file. */
function status(field: string): number {
  if (!existsSync('/proc/self/status')) return field === 'VmRSS' ? process.memoryUsage().rss / 1e6 : Number.NaN
  const match = readFileSync('/proc/self/status', 'utf8').match(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm'))
  return (Number(match?.[1]) * 1024) / 1e6
}

async function measure(path: string): Promise<Run> {
  const start = performance.now()
  await using model = await open(path)
  const opened = performance.now()
  const ids = (first: number) => Array.from({ length: PROMPT_TOKENS }, (_, i) => (first + i * 37) % model.info.vocab)
  const run = async (first: number) => {
    const times = [performance.now()]
    const options = { maxTokens: GENERATED, temperature: 0, ignoreEos: true }
    for await (const _ of model.generate(ids(first), options)) times.push(performance.now())
    return times
  }
  const cold = await run(1)
  const residentMegabytes = status('VmRSS')
  const anonymousMegabytes = status('RssAnon')
  const warm = await run(7)
  return {
    loadMs: start,
    openMs: opened - start,
    firstTokenMs: cold[1]! - start,
    decodeMsPerToken: (cold.at(-1)! - cold[1]!) / (GENERATED - 1),
    coldMs: cold[1]! - cold[0]! - (warm[1]! - warm[0]!),
    residentMegabytes,
    anonymousMegabytes,
    overWeightsMegabytes: residentMegabytes - model.memory().weightsBytes / 1e6,
    integrity: model.info.integrity,
  }
}

const [path, runs = '9', child] = process.argv.slice(2)
if (child === 'child') process.stdout.write(JSON.stringify(await measure(path!)))
else {
  const chosen = path ?? (await storyteller('q4'))
  const script = fileURLToPath(import.meta.url)
  const samples: Run[] = []
  for (let run = 0; run <= Number(runs); run++) {
    const { stdout } = await promisify(execFile)(process.execPath, [script, chosen, runs, 'child'])
    if (run > 0) samples.push(JSON.parse(stdout) as Run)
  }
  const integrity = [...new Set(samples.map((sample) => sample.integrity))]
  const report: Record<string, Spread> = {}
  for (const [name, value] of Object.entries(samples[0] ?? {}))
    if (typeof value === 'number') report[name] = spread(samples.map((sample) => sample[name as keyof Run] as number))
  process.stdout.write(`${JSON.stringify({ package: chosen, integrity, ...report }, undefined, 2)}\n`)
}
