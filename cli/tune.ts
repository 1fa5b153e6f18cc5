import { Command, Option } from 'commander'
import { tunePackage } from '../bench/tune.ts'
import { integer } from './arguments.ts'
import { tuningLines } from './inspect.ts'
import { finish, print, progress, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly backend: string
  readonly mode: 'default' | 'deterministic' | 'both'
  readonly slots: number
  readonly context?: number
  readonly stepTokens: number
  readonly rounds: number
}

const modes = { default: [false], deterministic: [true], both: [false, true] } as const

export const tuneCommand = new Command('tune')
  .description('measure which kernels are fastest here, and write that into the package')
  .argument('<package>')
  .option('--backend <name>', 'what has kernels to choose from', 'cuda')
  .addOption(new Option('--mode <mode>', 'of open()').choices(Object.keys(modes)).default('both'))
  .option('--slots <n>', 'most sequences that decode at once', integer(1), 128)
  .option('--context <n>', 'positions that they have; default: 512, or what the model allows', integer(1))
  .option('--step-tokens <n>', 'most tokens of prompts in one step', integer(1), 2048)
  .option('--rounds <n>', 'times that each kernel runs each step', integer(3), 9)
  .action((path: string, options: Options) =>
    finish(async () => {
      const { backend, mode, slots, context, stepTokens, rounds } = options
      const written = await tunePackage(path, {
        backend,
        deterministic: modes[mode],
        maxSlots: slots,
        contextTokens: context,
        stepTokens,
        rounds,
        onProgress: progress(options, 'tune'),
      })
      print(options, { path: written.path, ...written.tuning }, tuningLines(written).join('\n'))
      return true
    }),
  )
