import { Command } from 'commander'
import { type GenerationResult, open } from '../index.ts'
import {
  deterministicFlag,
  draftFlag,
  guessesFlag,
  integer,
  lookupFlag,
  number,
  type SpeculativeFlags,
  speculativeOf,
  tuningFlag,
} from './arguments.ts'
import { finish, log, print, type Shared } from './terminal.ts'

interface Options extends Shared, SpeculativeFlags {
  readonly maxTokens: number
  readonly temperature?: number
  readonly seed?: number
  readonly chat?: boolean
  readonly backend: string
  readonly deterministic?: boolean
  readonly tuning: boolean
  readonly isa?: string
  readonly threads?: number
}

function guessed({ proposedTokens, acceptedTokens }: GenerationResult['usage']): string {
  return proposedTokens === undefined ? '' : ` (${acceptedTokens} of ${proposedTokens} guesses accepted)`
}

export const runCommand = new Command('run')
  .description('generate text from a prompt; the text streams to stdout')
  .argument('<package>')
  .argument('<prompt>')
  .option('--max-tokens <n>', 'most tokens to generate', integer(1), 256)
  .option('--temperature <t>', '0 is greedy; default: as the checkpoint says', number)
  .option('--seed <s>', 'seed of sampling', integer(0))
  .option('--chat', 'apply the chat template to the prompt as a user message')
  .option('--backend <name>', 'cpu, cuda, reference', 'cpu')
  .addOption(deterministicFlag)
  .addOption(tuningFlag)
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .option('--threads <n>', 'threads; default: physical cores', integer(1))
  .addOption(draftFlag)
  .addOption(lookupFlag)
  .addOption(guessesFlag)
  .action((path: string, prompt: string, options: Options) =>
    finish(async () => {
      const speculative = speculativeOf(options)
      await using model = await open(path, {
        backend: options.backend,
        maxSlots: 1,
        tuning: options.tuning,
        ...(options.deterministic && { deterministic: true }),
        ...(options.isa && { isa: options.isa }),
        ...(options.threads && { threads: options.threads }),
        ...(speculative && { speculative }),
      })
      const generation = {
        maxTokens: options.maxTokens,
        ...(options.temperature !== undefined && { temperature: options.temperature }),
        ...(options.seed !== undefined && { seed: options.seed }),
      }
      const stream = options.chat
        ? model.chat([{ role: 'user', content: prompt }], generation)
        : model.generate(prompt, generation)
      if (!options.json) for await (const { text } of stream) process.stdout.write(text)
      const { text, tokens, finishReason, usage, timings, seed } = await stream.result()
      if (!options.json) process.stdout.write('\n')
      else
        print(
          options,
          {
            text,
            tokens,
            finishReason,
            usage,
            timings,
            seed: seed.toString(),
            planHash: model.info.hash,
            device: model.device,
          },
          '',
        )
      log(
        options,
        `${finishReason}; ${usage.completionTokens} tokens${guessed(usage)}, ${timings.tokensPerSecond.toFixed(0)} tokens/s, ${model.device.description}`,
      )
      return true
    }),
  )
