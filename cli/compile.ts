import { basename } from 'node:path'
import { Command, Option } from 'commander'
import { compile } from '../index.ts'
import { integer } from './arguments.ts'
import { finish, interruption, log, mebibytes, print, progress, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly out?: string
  readonly quantize: 'none' | 'q8' | 'q4' | 'fp8'
  readonly state: 'checkpoint' | 'q8'
  readonly threads?: number
}

export const compileCommand = new Command('compile')
  .description('compile a checkpoint folder into a package')
  .argument('<checkpoint>', 'folder with config.json and safetensors')
  .option('-o, --out <package>', 'where to write; default: <checkpoint name>.ingot')
  .addOption(new Option('--quantize <kind>', 'weight format').choices(['none', 'q8', 'q4', 'fp8']).default('none'))
  .addOption(
    new Option('--state <kind>', 'format of keys and values').choices(['checkpoint', 'q8']).default('checkpoint'),
  )
  .option('--threads <n>', 'threads; default: physical cores', integer(1))
  .action((checkpoint: string, options: Options) =>
    finish(async () => {
      const out = options.out ?? `${basename(checkpoint.replace(/\/+$/, ''))}.ingot`
      const start = performance.now()
      const bar = progress(options, 'compile')
      const result = await compile(checkpoint, {
        out,
        quantize: options.quantize,
        state: options.state,
        threads: options.threads,
        signal: interruption(),
        onProgress: ({ done, total, what }) => bar(done, total, what),
      })
      const seconds = (performance.now() - start) / 1000
      log(
        options,
        `${result.plan.instructions.length} instructions, ${mebibytes(result.weightsBytes)} of weights, ${seconds.toFixed(1)} s`,
      )
      print(
        options,
        { path: result.path, planHash: result.planHash, weightsBytes: result.weightsBytes, seconds },
        `${result.path}\nplan ${result.planHash}`,
      )
      return true
    }),
  )
