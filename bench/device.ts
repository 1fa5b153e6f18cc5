/**
 * Checks and measures a backend of this build in one go, for machines that hold nothing but the bundle of bench/bundle.sh:
 * goldens, tasks, invariance, then the speed of real shapes with random weights, and transformers beside it. Prints one
 * JSON document; progress and a table go to stderr. Exit 1 when a check fails.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { addon, packageRoot } from '../abi/native.ts'
import { BLOCK_TOKENS } from '../abi/state.ts'
import { compile, open } from '../index.ts'
import type { Quantization } from '../models/compile/quantize.ts'
import { checkChoices, chooseAtRandom } from '../parity/choices.ts'
import { type GoldenCase, runGolden } from '../parity/golden.ts'
import { checkInvariance, mixedRequests, standardVariations } from '../parity/invariance.ts'
import { runTasks } from '../parity/tasks.ts'
import { besidePeer } from './device-peer.ts'
import type { DevicePeer } from './device-results.ts'
import { kindOf } from './device-work.ts'
import { quantile, randomPrompts } from './measure.ts'
import { writeCheckpoint } from './peers/checkpoint.ts'
import { type ShapeName, shape, shapeNames } from './peers/shapes.ts'
import { type BenchReport, bench, openForBench, perStep, timeDecode } from './step.ts'

interface Options {
  readonly backend: string
  readonly checks: readonly string[]
  readonly shapes: readonly ShapeName[]
  readonly formats: readonly Quantization[]
  readonly batches: readonly number[]
  readonly prefill: readonly number[]
  readonly prompt: number
  readonly generate: number
  readonly deterministic: readonly boolean[]
  readonly models: string
  readonly breakdown?: boolean
  /** Undefined: as the backend does by default. */
  readonly pipelined?: boolean
  readonly reuse: boolean
  readonly prepare?: boolean
  /** The library that takes the device from a process; undefined: that is not checked. */
  readonly lose?: string
  /** The Python that runs transformers beside this build; undefined: none does. */
  readonly peer?: string
  readonly rounds: number
  readonly compiled: readonly number[]
}

const checks = ['goldens', 'tasks', 'invariance', 'choices', 'faults']
const say = (line: string) => process.stderr.write(`${line}\n`)
const list = (text: string) => text.split(',').filter(Boolean)
const numbers = (text: string) => list(text).map(Number)

const root = packageRoot()
const folderOf = (...parts: string[]) => {
  const here = resolve(...parts)
  return existsSync(here) ? here : join(root, ...parts)
}

/** The first line of an error, so that one broken case does not hide the others. */
const reasonOf = (error: unknown) =>
  `${(error as { code?: string }).code ?? ''} ${(error as Error).message.split('\n')[0]}`

const goldenFolders = () => {
  const goldens = folderOf('parity', 'goldens')
  return readdirSync(goldens)
    .map((name) => ({ name, checkpoint: join(goldens, name), golden: join(goldens, name, 'golden.safetensors') }))
    .filter(({ golden }) => existsSync(golden))
}

async function checkGoldens(folder: string, { backend, formats, deterministic }: Options) {
  const rows: { name: string; quantize: string; pass: boolean; cases?: readonly GoldenCase[]; reason?: string }[] = []
  for (const { name, checkpoint, golden } of goldenFolders())
    for (const quantize of formats) {
      try {
        const { path } = await compile(checkpoint, { out: join(folder, `${name}-${quantize}.ingot`), quantize })
        await using model = await open(path, { backend, deterministic: deterministic[0] })
        const { pass, cases } = await runGolden(model, golden)
        rows.push({ name, quantize, pass, cases })
        say(`${pass ? 'pass' : 'FAIL'} ${name} ${quantize}${pass ? '' : `: ${cases.flatMap((c) => c.failures)[0]}`}`)
      } catch (error) {
        rows.push({ name, quantize, pass: false, reason: reasonOf(error) })
        say(`FAIL ${name} ${quantize}: ${reasonOf(error)}`)
      }
    }
  return rows
}

async function checkTasks(folder: string, { backend, formats, deterministic }: Options) {
  const checkpoint = folderOf('checkpoints', 'storyteller-7m')
  const least = { none: 350, q8: 345, q4: 346, fp8: 345 }
  const rows = []
  for (const quantize of formats) {
    const { path } = await compile(checkpoint, { out: join(folder, `storyteller-${quantize}.ingot`), quantize })
    await using model = await open(path, { backend, maxSlots: 32, contextTokens: 256, deterministic: deterministic[0] })
    const { correct, total } = await runTasks(model, join(checkpoint, 'tasks.json'))
    rows.push({ quantize, correct, total, pass: correct >= least[quantize] })
    say(`${correct >= least[quantize] ? 'pass' : 'FAIL'} storyteller-7m ${quantize}: ${correct} of ${total} tasks`)
  }
  return rows
}

async function checkEveryWay(folder: string, { backend, formats }: Options) {
  const rows = []
  const base = { contextTokens: 128, backend, deterministic: true }
  for (const quantize of formats) {
    const { path } = await compile(folderOf('checkpoints', 'storyteller-1m'), {
      out: join(folder, `1m-${quantize}.ingot`),
      quantize,
    })
    const reports = await checkInvariance(
      path,
      mixedRequests(64, 4096, 100),
      standardVariations(base, 128 / BLOCK_TOKENS),
    )
    for (const { name, differing, happened, launchesPerStep } of reports) {
      const pass = differing.length === 0 && happened
      rows.push({ quantize, name, differing: differing.length, happened, launchesPerStep, pass })
      say(
        `${pass ? 'pass' : 'FAIL'} invariance ${quantize}, ${name}: ${differing.length} requests differ, ${launchesPerStep} launches`,
      )
    }
  }
  return rows
}

/** Heads of 128, for which attention has two kernels, in a model that is small otherwise. */
const wideHeads = {
  ...shape('Qwen3-0.6B'),
  ...{ hidden_size: 512, intermediate_size: 1024, num_hidden_layers: 2, vocab_size: 4096 },
  ...{ num_attention_heads: 8, num_key_value_heads: 2 },
}

/** Random choices of kernels, where a backend has several: no bit changes in the deterministic mode, parity holds in the other. */
async function checkEveryChoice(folder: string, { backend, formats }: Options) {
  const rows: { quantize: string; name: string; pass: boolean }[] = []
  const tell = (quantize: string, name: string, pass: boolean) => {
    rows.push({ quantize, name, pass })
    say(`${pass ? 'pass' : 'FAIL'} choices ${quantize}, ${name}`)
  }
  const compiled = async (checkpoint: string, quantize: Options['formats'][number]) =>
    (await compile(checkpoint, { out: join(folder, `choices-${rows.length}.ingot`), quantize })).path
  const checkBits = async (checkpoint: string, quantize: Options['formats'][number]) => {
    const requests = mixedRequests(48, 4096, 100)
    const path = await compiled(checkpoint, quantize)
    for (const { name, differing, happened } of await checkChoices(path, backend, requests, [1, 2, 3, 4]))
      tell(quantize, `${name}: ${differing.length} requests differ`, differing.length === 0 && happened)
  }
  for (const quantize of formats) await checkBits(folderOf('checkpoints', 'storyteller-1m'), quantize)
  await writeCheckpoint(wideHeads, join(folder, 'wide'))
  await checkBits(join(folder, 'wide'), 'none')
  for (const [seed, { name, checkpoint, golden }] of goldenFolders().entries()) {
    const path = await compiled(checkpoint, 'none')
    const others = await chooseAtRandom(path, backend, {}, { deterministic: false, seed: seed + 1 })
    await using model = await open(path, { backend })
    const failure = await runGolden(model, golden).then(
      ({ pass }) => (pass ? '' : ': differs'),
      (error: unknown) => `: ${reasonOf(error)}`,
    )
    tell('none', `${name}, ${others} choices that are not the rules'${failure}`, failure === '')
  }
  return rows
}

/** A device that is lost in the middle of a step: what a process of its own sees, which the library at `lose` takes it from. */
function checkLost(path: string, lose: string) {
  const script = fileURLToPath(new URL('./device-lost.js', import.meta.url))
  const env = { ...process.env, LD_PRELOAD: resolve(lose) }
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, path], {
    env,
    encoding: 'utf8',
    timeout: 120_000,
  })
  const found: [string, string | null][] =
    status === 0
      ? Object.entries(JSON.parse(stdout))
      : [['its process ends', `${status ?? 'killed'}: ${stderr.trim()}`]]
  return found.map(([what, failure]) => {
    say(`${failure === null ? 'pass' : 'FAIL'} lost device, ${what}${failure === null ? '' : `: ${failure}`}`)
    return { name: `lost device, ${what}`, pass: failure === null }
  })
}

/** What cannot be opened says so with both numbers, and disturbs nothing that is open. */
async function checkFaults(folder: string, { backend, lose }: Options) {
  const { path } = await compile(folderOf('checkpoints', 'storyteller-1m'), { out: join(folder, 'faults.ingot') })
  await using model = await open(path, { backend, deterministic: true })
  const story = async () => (await model.generate('Once', { maxTokens: 20, seed: 1 }).result()).text
  const before = await story()
  const refused = await open(path, { backend, blocks: 2 ** 28 }).then(
    (opened) => opened.dispose().then(() => undefined),
    (error: unknown) => error as { code?: string; details?: Record<string, unknown> },
  )
  const numbers = ['needed', 'available'].every((name) => Number(refused?.details?.[name]) > 0)
  const pass = refused?.code === 'OUT_OF_MEMORY' && numbers && (await story()) === before
  say(`${pass ? 'pass' : 'FAIL'} out of memory: ${refused && reasonOf(refused)}`)
  return [{ name: 'out of memory', pass }, ...(lose === undefined ? [] : checkLost(path, lose))]
}

function sayBench(name: string, { prefill, decode, launchesPerStep, loadMs }: BenchReport) {
  say(`${name}: ${launchesPerStep.toFixed(0)} launches a step, opened in ${loadMs.toFixed(0)} ms`)
  for (const p of prefill) say(`  prefill ${p.tokens} x ${p.batch}: ${p.tokensPerSecond.toFixed(0)} tok/s`)
  for (const d of decode)
    say(
      `  decode x ${d.batch} at ${d.context}: ${d.tokensPerSecond.toFixed(0)} tok/s, ${d.msPerStep.toFixed(3)} ms, ${d.gigabytesPerSecond.toFixed(0)} GB/s, ${d.idleMicroseconds.toFixed(0)} us between steps`,
    )
}

const wayOf = ({ backend, pipelined }: Options) => ({
  backend,
  ...(pipelined !== undefined && { pipelined }),
})

/** Microseconds of a decode step by opcode and first weight, kernels one after the other; and a step's own and host time. */
async function breakdown(path: string, options: Options, deterministic: boolean, batch: number) {
  const { prompt, generate } = options
  const shared = { ...wayOf(options), deterministic, prompt, generate, repeats: 1 }
  const free = addon().cuda().availableBytes
  await using model = await openForBench(path, { ...shared, batches: [batch], stepTokens: 2048 })
  const taken = free - addon().cuda().availableBytes
  const prompts = randomPrompts(batch, prompt, model.info.vocab, 1)
  await timeDecode(model, prompts, generate)
  const before = model.stats()
  const times = await timeDecode(model, prompts, generate)
  const after = model.stats()
  await model.setTally(true)
  await timeDecode(model, prompts, generate)
  const tally = (await model.tally())!.decode
  const sums: Record<string, number> = {}
  for (const [i, nanoseconds] of tally.instructionNanoseconds.entries()) {
    const name = kindOf(model.plan, i)
    sums[name] = (sums[name] ?? 0) + nanoseconds / tally.steps / 1000
  }
  const wall = 1000 * quantile(times, 0.5)
  const device = perStep(before, after, 'deviceMicrosecondsPerStep')
  const host = perStep(before, after, 'hostMicrosecondsPerStep')
  const idle = perStep(before, after, 'idleMicrosecondsPerStep')
  const means = [device, idle, host].map((us) => us.toFixed(0))
  say(
    `  step x ${batch}: ${wall.toFixed(0)} us, native mean ${means[0]}, ${means[1]} between steps, host ${means[2]}; alone, by opcode:`,
  )
  say(
    `    ${Object.entries(sums)
      .map(([name, us]) => `${name} ${us.toFixed(0)}`)
      .join(', ')}`,
  )
  const { weightsBytes, arenaBytes, stateBytes, scratchBytes } = model.memory()
  const planned = weightsBytes + arenaBytes + stateBytes + scratchBytes
  say(
    `    device memory: ${(taken / 2 ** 20).toFixed(0)} MiB taken at open, ${(planned / 2 ** 20).toFixed(0)} MiB accounted for`,
  )
  return { batch, wall, device, idle, host, opcodes: sums, taken, planned }
}

async function measure(options: Options) {
  const rows: {
    shape: string
    quantize: string
    deterministic: boolean
    report?: BenchReport
    steps?: unknown[]
    reason?: string
  }[] = []
  for (const name of options.shapes) {
    const checkpoint = join(options.models, name)
    if (!existsSync(join(checkpoint, 'config.json'))) await writeCheckpoint(shape(name), checkpoint)
    for (const quantize of options.formats) {
      const out = join(options.models, `${name}-${quantize}.ingot`)
      if (!options.reuse || !existsSync(out)) await compile(checkpoint, { out, quantize })
      if (options.prepare) continue
      for (const deterministic of options.deterministic) {
        const { prompt, generate } = options
        const title = `${name} ${quantize}${deterministic ? ' deterministic' : ''}`
        const shared = { ...wayOf(options), deterministic, generate, repeats: 1 }
        try {
          const report = await bench(out, { ...shared, prompt, batches: options.batches, stepTokens: 2048 })
          const steps: Awaited<ReturnType<typeof breakdown>>[] = []
          rows.push({ shape: name, quantize, deterministic, report, steps })
          sayBench(title, report)
          if (options.breakdown)
            for (const batch of options.batches) steps.push(await breakdown(out, options, deterministic, batch))
          for (const tokens of options.prefill) {
            const long = await bench(out, { ...shared, prompt: tokens, batches: [1], generate: 2, stepTokens: tokens })
            rows.push({ shape: name, quantize, deterministic, report: long })
            sayBench(title, long)
          }
        } catch (error) {
          rows.push({ shape: name, quantize, deterministic, reason: reasonOf(error) })
          say(`FAIL ${title}: ${reasonOf(error)}`)
        }
      }
    }
  }
  return rows
}

/** What measure() compiled, beside transformers on the same checkpoints. */
async function measurePeers(options: Options): Promise<DevicePeer[]> {
  const { peer: python, models, formats, deterministic, rounds, compiled, prompt, generate, batches } = options
  const peers: DevicePeer[] = []
  for (const name of python ? options.shapes : [])
    try {
      const measured = await besidePeer({
        python: python!,
        shape: name,
        checkpoint: join(models, name),
        packages: formats.map((quantize) => ({ quantize, path: join(models, `${name}-${quantize}.ingot`) })),
        deterministic,
        rounds,
        compiled,
        prefill: options.prefill,
        speed: { ...wayOf(options), prompt, generate, batches },
        say,
      })
      peers.push(measured)
    } catch (error) {
      peers.push({ shape: name, logits: [], speeds: [], reason: reasonOf(error) })
      say(`FAIL ${name} beside transformers: ${reasonOf(error)}`)
    }
  return peers
}

const command = new Command('device')
  .option('--backend <name>', 'what is checked', 'cuda')
  .option('--checks <list>', `of ${checks.join(', ')}`, list, checks)
  .option('--shapes <list>', `of ${shapeNames.join(', ')}`, list, [])
  .option('--formats <list>', 'of none, q8, q4 and, where the backend runs it, fp8', list, ['none', 'q8', 'q4'])
  .option('--batches <list>', 'sequences that decode', numbers, [1, 8, 32, 128])
  .option('--prefill <list>', 'tokens of prompts that are computed in one step', numbers, [2048])
  .option('--prompt <n>', 'tokens of each prompt before decoding', Number, 512)
  .option('--generate <n>', 'steps of a decode run', Number, 64)
  .option('--deterministic <list>', 'modes: true, false', (text) => list(text).map((mode) => mode === 'true'), [
    true,
    false,
  ])
  .option('--pipelined', 'submit a step before the tokens of the last are read; default: as the backend does')
  .option('--no-pipelined', 'submit it afterwards')
  .option('--breakdown', 'also where a decode step spends its time')
  .option('--peer <python>', 'also transformers in this Python: logits, and speeds in turns')
  .option('--rounds <n>', 'turns of both sides', Number, 2)
  .option('--compiled <list>', 'numbers of sequences at which the peer is also compiled', numbers, [1, 128])
  .option('--models <folder>', 'where checkpoints of random weights are kept', join(tmpdir(), 'ingot-models'))
  .option('--lose <library>', 'among the faults, also a device that is lost: liblose_device.so of the CUDA tests')
  .option('--prepare', 'write these and compile them, measure nothing')
  .option('--reuse', 'take the packages that are there already, whatever compiled them')
  .parse()
const options = command.opts<Options>()
const folder = await mkdtemp(join(tmpdir(), 'ingot-device-'))
const wanted = (name: string) => options.checks.includes(name)
const report = {
  device: addon().cuda(),
  goldens: wanted('goldens') ? await checkGoldens(folder, options) : [],
  tasks: wanted('tasks') ? await checkTasks(folder, options) : [],
  invariance: wanted('invariance') ? await checkEveryWay(folder, options) : [],
  choices: wanted('choices') ? await checkEveryChoice(folder, options) : [],
  faults: wanted('faults') ? await checkFaults(folder, options) : [],
  bench: await measure(options),
  peers: await measurePeers(options),
}
await rm(folder, { recursive: true, force: true })
process.stdout.write(`${JSON.stringify(report)}\n`)
const failed = [...report.goldens, ...report.tasks, ...report.invariance, ...report.choices, ...report.faults].some(
  ({ pass }) => !pass,
)
const diverged = report.peers.some(({ logits, reason }) => reason || logits.some(({ pass }) => pass === false))
process.exitCode = failed || diverged || report.bench.some(({ reason }) => reason !== undefined) ? 1 : 0
