import { Command } from 'commander'
import { bench } from '../bench/step.ts'
import { integer, integers } from './arguments.ts'
import { finish, mebibytes, print, progress, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly prompt: number
  readonly generate: number
  readonly batch: number[]
  readonly repeats: number
  readonly backend: string
  readonly isa?: string
  readonly threads?: number
}

export const benchCommand = new Command('bench')
  .description('measure prefill and decode')
  .argument('<package>')
  .option('--prompt <n>', 'tokens of a prompt', integer(1), 512)
  .option('--generate <n>', 'tokens to generate', integer(1), 64)
  .option('--batch <list>', 'numbers of sequences', integers, [1, 8])
  .option('--repeats <n>', 'runs a cell, after one warm-up', integer(1), 3)
  .option('--backend <name>', 'cpu, reference, null', 'cpu')
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .option('--threads <n>', 'threads; default: physical cores', integer(1))
  .action((path: string, options: Options) =>
    finish(async () => {
      const bar = progress(options, 'bench')
      const { backend, isa, threads, prompt, generate, repeats, batch: batches } = options
      const report = await bench(path, {
        backend,
        prompt,
        generate,
        repeats,
        batches,
        onProgress: bar,
        ...(isa && { isa }),
        ...(threads && { threads }),
      })
      const cell = (value: number, digits = 0) => value.toFixed(digits).padStart(9)
      const rows = report.decode.map((d, index) => {
        const p = report.prefill[index]!
        return `${cell(d.batch)}${cell(p.tokensPerSecond)}${cell(d.tokensPerSecond)}  [${d.spread.low.toFixed(0)} to ${d.spread.high.toFixed(0)}]${cell(d.msPerStep, 2)}${cell(d.gigabytesPerSecond, 1)}`
      })
      const text = [
        `${report.model} on ${report.device}: weights ${mebibytes(report.weightsBytes)}, state ${report.stateBytesPerToken} B a token, peak ${mebibytes(report.peakBytes)}`,
        `load ${report.loadMs.toFixed(0)} ms, ${report.launchesPerStep} launches a step; prompt ${prompt}, generate ${generate}, tokens/s`,
        '    batch  prefill   decode  [p10 to p90]  ms/step     GB/s',
        ...rows,
      ].join('\n')
      print(options, report, text)
      return true
    }),
  )
