import { Command } from 'commander'
import { type Profile, profile, type Scenario } from '../bench/profile.ts'
import { outsideCells, percent, profileCells, profileHead, profileHtml, profileSvg } from '../bench/profile-chart.ts'
import { benchSpeculation, type SpeculationReport } from '../bench/speculation.ts'
import { type BenchOptions, type BenchReport, bench } from '../bench/step.ts'
import { fail } from '../errors.ts'
import {
  deterministicFlag,
  draftFlag,
  guessesFlag,
  integer,
  integers,
  lookupFlag,
  type SpeculativeFlags,
  speculativeOf,
  tuningFlag,
} from './arguments.ts'
import { ceilingsText } from './doctor.ts'
import { finish, mebibytes, print, progress, type Shared, write } from './terminal.ts'

interface Options extends Shared, SpeculativeFlags {
  readonly prompt: number
  readonly context?: number
  readonly generate: number
  readonly sequences: number[]
  readonly repeats: number
  readonly stepTokens?: number
  readonly backend: string
  readonly deterministic?: boolean
  readonly pipelined?: boolean
  readonly tuning: boolean
  readonly isa?: string
  readonly threads?: number
  readonly profile?: boolean
  readonly svg?: string
  readonly html?: string
}

function tuningText({ source, file, reason, entries, refused, hits, misses }: NonNullable<BenchReport['tuning']>) {
  const from = source === 'file' ? `${file}, ${entries} choices${refused ? `, ${refused} refused` : ''}` : 'rules'
  return `kernels by ${from}${reason ? ` (${reason})` : ''}: ${hits} launches by a measured choice, ${misses} by rules`
}

const capturesText = ({ count, bytes, milliseconds }: NonNullable<BenchReport['captures']>) =>
  `${count} steps captured in ${milliseconds.toFixed(1)} ms, ${mebibytes(bytes)}`

function benchText(report: BenchReport, { prompt, generate }: Options): string {
  const cell = (value: number, digits = 0) => value.toFixed(digits).padStart(9)
  const share = (value?: number) => (value === undefined ? '' : percent(value)).padStart(9)
  const rows = report.decode.map((d, index) => {
    const p = report.prefill[index]!
    return `${cell(d.batch)}${cell(p.tokensPerSecond)}${share(p.peakShare)}${cell(d.tokensPerSecond)}  [${d.spread.low.toFixed(0)} to ${d.spread.high.toFixed(0)}]${cell(d.msPerStep, 2)}${cell(d.gigabytesPerSecond, 1)}${share(d.readShare)}${cell(d.idleMicroseconds)}`
  })
  return [
    `${report.model} on ${report.device}: weights ${mebibytes(report.weightsBytes)}, state ${report.stateBytesPerToken} B a token, peak ${mebibytes(report.peakBytes)}`,
    `load ${report.loadMs.toFixed(0)} ms, ${report.launchesPerStep} launches a step; prompt ${prompt}, ${generate} steps after ${report.decode[0]!.context - Math.floor(generate / 2)} tokens; tokens/s`,
    ...(report.tuning ? [tuningText(report.tuning)] : []),
    ...(report.captures ? [capturesText(report.captures)] : []),
    ...(report.ceilings ? [ceilingsText(report.ceilings)] : []),
    'sequences  prefill  of peak   decode  [p10 to p90]  ms/step     GB/s  of read  idle us',
    ...rows,
  ].join('\n')
}

function speculationText({ model, device, by, tokens, cells }: SpeculationReport): string {
  const rows = cells.map(({ batch, acceptance, plain, speculative, ratio }) =>
    [
      String(batch),
      percent(acceptance),
      plain.median.toFixed(0),
      speculative.median.toFixed(0),
      `${ratio.median.toFixed(2)}  [${ratio.low.toFixed(2)} to ${ratio.high.toFixed(2)}]`,
    ]
      .map((cell, i) => cell.padStart(i === 4 ? 24 : 13))
      .join(''),
  )
  return [
    `${model} on ${device}: guesses by ${by}, at most ${tokens}; greedy, after text of its own; the same tokens both ways`,
    '    sequences     accepted   plain tok/s  guessed tok/s   ratio  [p10 to p90]',
    ...rows,
  ].join('\n')
}

function scenarioText({ name, ms, run, tokensPerSecond, limitShare, opcodes, outside }: Scenario): string {
  const rows = [
    profileHead,
    ...opcodes.map(profileCells),
    ...outside.map(outsideCells),
    ['all', '', ms.toFixed(3), '100.0'],
  ]
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => (i === 0 ? cell.padEnd(22) : cell.padStart(i === 1 ? 6 : 10)))
      .join('')
      .trimEnd()
  return `\n${name}: ${ms.toFixed(3)} ms a ${run}, ${tokensPerSecond.toFixed(1)} tokens/s, ${percent(limitShare)} of the limit\n${rows.map(line).join('\n')}`
}

const profileText = (found: Profile) =>
  [
    `${found.package} (${found.model}) on ${found.device}`,
    ceilingsText(found.ceilings),
    ...found.scenarios.map(scenarioText),
  ].join('\n')

export const benchCommand = new Command('bench')
  .description('measure prefill and decode')
  .argument('<package>')
  .option('--prompt <n>', 'tokens of a prompt', integer(1), 512)
  .option('--context <n>', 'tokens of a sequence before it decodes; default: the prompt', integer(1))
  .option('--generate <n>', 'steps to decode', integer(1), 64)
  .option('--batch, --sequences <list>', 'numbers of sequences', integers, [1, 8])
  .option('--repeats <n>', 'runs a cell, after one warm-up', integer(1), 3)
  .option('--step-tokens <n>', 'most tokens of one step', integer(1))
  .option('--backend <name>', 'cpu, cuda, reference, null', 'cpu')
  .addOption(deterministicFlag)
  .option('--pipelined', 'submit a step before the tokens of the last are read; default: on cuda')
  .option('--no-pipelined', 'submit it afterwards')
  .addOption(tuningFlag)
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .option('--threads <n>', 'threads; default: physical cores', integer(1))
  .option('--profile', 'show by opcode where the time goes, and how near that is to the limits of the machine')
  .option('--svg <file>', 'with --profile: draw it')
  .option('--html <file>', 'with --profile: draw it on a page with the numbers, by instruction too')
  .addOption(draftFlag)
  .addOption(lookupFlag)
  .addOption(guessesFlag)
  .action((path: string, options: Options) =>
    finish(async () => {
      const {
        backend,
        deterministic,
        pipelined,
        tuning,
        isa,
        threads,
        prompt,
        context,
        generate,
        repeats,
        sequences: batches,
        stepTokens,
      } = options
      if (!options.profile && (options.svg !== undefined || options.html !== undefined))
        throw fail('USAGE', { reason: '--svg and --html draw a profile: add --profile' })
      const wanted: BenchOptions = {
        backend,
        prompt,
        generate,
        repeats,
        batches,
        tuning,
        onProgress: progress(options, 'bench'),
        ...(isa && { isa }),
        ...(threads && { threads }),
        ...(deterministic && { deterministic }),
        ...(pipelined !== undefined && { pipelined }),
        ...(context && { context }),
        ...(stepTokens && { stepTokens }),
      }
      const speculative = speculativeOf(options)
      if (speculative && options.profile) throw fail('USAGE', { reason: '--profile shows plain steps only' })
      if (speculative) {
        const report = await benchSpeculation(path, speculative, wanted)
        print(options, report, speculationText(report))
      } else if (options.profile) {
        const found = await profile(path, wanted)
        await write(options, options.svg, () => profileSvg(found))
        await write(options, options.html, () => profileHtml(found))
        print(options, found, profileText(found))
      } else {
        const report = await bench(path, wanted)
        print(options, report, benchText(report, options))
      }
      return true
    }),
  )
