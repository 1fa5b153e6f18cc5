/**
 * `npm run bench:peers`: Ingot beside node-llama-cpp on the same weights, in one run: ceilings, parity, speed, memory.
 * stdout is the report; bench/results/ gets it as JSON, Markdown and SVG. bench/peers/README.md says what is fair about it.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { packageRoot } from '../../abi/native.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import { kernelDigest } from '../../compute/kernels.ts'
import { open } from '../../index.ts'
import { codeDigest } from '../../parity/code.ts'
import { type Ceilings, ceilings } from '../ceilings.ts'
import { chart } from './chart.ts'
import type { Format } from './convert.ts'
import { peerLibraries } from './isa.ts'
import { readOptions } from './options.ts'
import { checkParity, lossesOf, type Setup } from './parity.ts'
import { type Artifact, artifactOf, checkpointOf, peersFolder } from './prepare.ts'
import { runTask, warm } from './processes.ts'
import { type Scenario, type ScenarioName, type Side, scenarios, type Task } from './scenarios.ts'
import type { ShapeName } from './shapes.ts'
import {
  goalTable,
  lossTable,
  type Measurement,
  number,
  parityTable,
  peaksOf,
  rowsOf,
  type Subject,
  speedTable,
  unitOf,
} from './table.ts'

const { models, formats, only, layers, rounds, seconds, minutes, isa, install, parity, out, ...options } = readOptions()
const log = (text: string) => process.stderr.write(`${text}\n`)
const deadline = performance.now() + minutes * 60_000
const cache = join(peersFolder(), '.cache')
const peerPackage = join(peersFolder(), 'node_modules', 'node-llama-cpp', 'package.json')

/** Installs the locked peer where it is not; the machine may have no network (--no-install). */
async function peerVersion(): Promise<string> {
  if (!existsSync(peerPackage) && install) {
    log('installing the peer (npm ci in bench/peers)')
    execFileSync('npm', ['ci'], { cwd: peersFolder(), stdio: ['ignore', 'ignore', 'inherit'] })
  }
  return (JSON.parse(await readFile(peerPackage, 'utf8')) as { version: string }).version
}

interface Prepared extends Artifact {
  readonly model: ShapeName
  readonly format: Format
}

async function prepare(): Promise<Prepared[]> {
  const prepared: Prepared[] = []
  for (const model of models) {
    const checkpoint = await checkpointOf(cache, model, layers)
    for (const format of formats) {
      log(`files of ${checkpoint.name}, ${format}`)
      prepared.push({ model, format, ...(await artifactOf(checkpoint.folder, cache, checkpoint.name, format)) })
    }
  }
  return prepared
}

/** Per-token losses of the trained checkpoint that ships with Ingot, on the first of its own tasks. */
async function losses(setup: Setup) {
  const folder = join(packageRoot(), 'checkpoints', 'storyteller-7m')
  const tasks = JSON.parse(await readFile(join(folder, 'tasks.json'), 'utf8')) as { prompt: string; answer: string }[]
  const found: Partial<Record<Format, Record<Side, number>>> = {}
  for (const format of ['bf16', 'q8', 'q4'] as const) {
    const artifact = await artifactOf(folder, cache, 'storyteller-7m', format)
    await using model = await open(artifact.package, { maxSlots: 1, contextTokens: 64 })
    const texts: number[][] = []
    for (const { prompt, answer } of tasks.slice(0, 64)) texts.push([...(await model.tokenize(prompt + answer))])
    found[format] = await lossesOf(artifact, texts, setup)
    log(`loss of storyteller-7m ${format}: ${JSON.stringify(found[format])}`)
  }
  return found
}

async function measure({ model, format, ...artifact }: Prepared, name: ScenarioName, round: number, setup: Setup) {
  const scenario: Scenario = scenarios[name]
  const found: Measurement[] = []
  // alternate who goes first, so that neither always follows the other's heat and page cache
  const order: readonly Side[] = round % 2 === 0 ? ['ingot', 'peer'] : ['peer', 'ingot']
  for (const side of order) {
    const path = side === 'ingot' ? artifact.package : artifact.gguf
    const vocab = artifact.config.vocab_size
    const task: Task = { path, threads: setup.threads, isa: setup.isa[side], vocab, seed: 1 + round, seconds, scenario }
    if (scenario.kind === 'start') await warm(path)
    const answer = await runTask(side, task)
    found.push({ model, format, scenario: name, round, side, answer })
  }
  return found
}

const cpu = (cpus()[0]?.model ?? 'unknown').replace(/\s+/g, ' ').trim()
const version = await peerVersion()
const binaries = join(peersFolder(), 'node_modules', '@node-llama-cpp', 'linux-x64', 'bins', 'linux-x64')
const libraries = await peerLibraries(cache, binaries, isa)
const probe = () => ceilings({ threads: options.threads, isa })
const probes: Ceilings[] = [await probe()]
const setup: Setup = { cache, threads: probes[0]!.threads, isa: { ingot: isa, peer: libraries } }
const prepared = await prepare()
if (options.prepare) process.exit(0)

// What a sign-off that relies on these figures compares; a bundle without sources can sign off nothing.
const [code, kernels] = [await codeDigest().catch(() => ''), await kernelDigest(cpuBackend)]

const subjects: Subject[] = []
for (const item of prepared) {
  const found = parity ? await checkParity(item.model, item.format, item, setup) : undefined
  if (found) log(`parity of ${item.model} ${item.format}: ${found.pass ? 'pass' : 'FAIL'} ${JSON.stringify(found)}`)
  subjects.push({ ...item, ...(found && { parity: found }) })
}
const quality = parity ? await losses(setup) : {}

const measurements: Measurement[] = []
const date = new Date().toISOString().slice(0, 10)
const devices = () => {
  const of = (side: Side) => measurements.find((m) => m.side === side)?.answer.device ?? 'not run'
  return `Ingot ${of('ingot')}; node-llama-cpp ${version} ${of('peer')}`
}

/** Writes what there is so far; returns the report. */
async function save(): Promise<string> {
  const peaks = peaksOf(probes)
  const rows = subjects.flatMap((subject) => rowsOf(subject, measurements, peaks))
  const title = `${cpu}, ${setup.threads} threads${isa && `, ${isa}`}`
  const speeds = `read ${peaks.read.toFixed(1)} GB/s, int8 ${(peaks.i8 / 1000).toFixed(2)} TOPS, bf16 ${(peaks.bf16 / 1000).toFixed(2)} TFLOPS`
  const report = [
    `# ${title}, ${date}`,
    `${devices()}. Ceilings: ${speeds}. Medians of rounds of fresh processes, taken in turns; ratios are of pairs, with the least and the most.`,
    speedTable(rows),
    `## Against the bars`,
    goalTable(rows),
    ...(parity ? ['## Parity', parityTable(subjects), '## Loss per token of storyteller-7m', lossTable(quality)] : []),
  ].join('\n\n')
  const machine = [cpu, setup.threads, isa, ...models, layers && `${layers} layers`].filter(Boolean).join(' ')
  const slug = machine
    .toLowerCase()
    .replace(/\(r\)|\(tm\)|@.*?ghz/g, '')
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
  const name = join(out, `peers-${date}-${slug}`)
  await mkdir(out, { recursive: true })
  const data = {
    date,
    cpu,
    isa,
    threads: setup.threads,
    peer: version,
    code,
    kernels,
    probes,
    rows,
    subjects: subjects.map(({ model, format, bytes, parity }) => ({ model, format, bytes, parity })),
    quality,
    measurements,
  }
  await writeFile(`${name}.json`, `${JSON.stringify(data, undefined, 1)}\n`)
  await writeFile(`${name}.md`, `${report}\n`)
  await writeFile(`${name}.svg`, chart(rows, title, `${devices()}. Ceilings: ${speeds}.`))
  return `${report}\n\n${name}.svg\n`
}

let report = ''
for (let round = 0; round < rounds && performance.now() < deadline; round++) {
  if (round > 0) probes.push(await probe())
  for (const item of prepared)
    for (const name of only) {
      const scenario: Scenario = scenarios[name]
      if (!scenario.formats.includes(item.format) || round >= (scenario.rounds ?? rounds)) continue
      if (performance.now() > deadline) break
      const pair = await measure(item, name, round, setup)
      measurements.push(...pair)
      const peaks = peaksOf(probes)
      const subject = subjects.find(({ model, format }) => model === item.model && format === item.format)!
      const [row] = rowsOf(subject, pair, peaks)
      log(
        `round ${round + 1}/${rounds} ${item.model} ${item.format} ${name}: ${number(row!.ingot.value.median)} against ${number(row!.peer.value.median)} ${unitOf(name)}, ${number(row!.ratio.median)}x`,
      )
    }
  report = await save()
}
process.stdout.write(report)
process.exitCode = subjects.some((subject) => subject.parity?.pass === false) ? 1 : 0
