import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { fail } from '../errors.ts'
import { compile, open } from '../index.ts'
import { printParity, runGolden } from '../parity/golden.ts'
import { deterministicFlag } from './arguments.ts'
import { finish, print, progress, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly golden: string
  readonly backend: string
  readonly deterministic?: boolean
  readonly isa?: string
  readonly quantize: 'none' | 'q8' | 'q4'
  readonly state: 'checkpoint' | 'q8'
}

/** Compiles a checkpoint into a temporary package; a package is used as it is. */
async function packageOf(path: string, options: Options, work: (path: string) => Promise<boolean>): Promise<boolean> {
  if (existsSync(join(path, 'manifest.json'))) return work(path)
  const folder = await mkdtemp(join(tmpdir(), 'ingot-parity-')).catch((cause: Error) => {
    throw fail('OUTPUT_UNWRITABLE', { path: tmpdir(), reason: cause.message }, cause)
  })
  try {
    const bar = progress(options, 'compile')
    const result = await compile(path, {
      out: join(folder, 'model.ingot'),
      quantize: options.quantize,
      state: options.state,
      onProgress: ({ done, total, what }) => bar(done, total, what),
    })
    return await work(result.path)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

export const parityCommand = new Command('parity')
  .description('compare a backend with reference outputs; exit 1 when it fails')
  .argument('<package|checkpoint>')
  .requiredOption('--golden <file>', 'safetensors of reference outputs')
  .option('--backend <name>', 'cpu, cuda, reference', 'cpu')
  .addOption(deterministicFlag)
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .addOption(
    new Option('--quantize <kind>', 'weight format, when a checkpoint is given')
      .choices(['none', 'q8', 'q4'])
      .default('none'),
  )
  .addOption(
    new Option('--state <kind>', 'format of keys and values, when a checkpoint is given')
      .choices(['checkpoint', 'q8'])
      .default('checkpoint'),
  )
  .action((path: string, options: Options) =>
    finish(() =>
      packageOf(path, options, async (compiled) => {
        await using model = await open(compiled, {
          backend: options.backend,
          ...(options.deterministic && { deterministic: true }),
          ...(options.isa && { isa: options.isa }),
        })
        const bar = progress(options, 'parity')
        const report = await runGolden(model, options.golden, { onProgress: bar })
        print(options, report, printParity(report))
        return report.pass
      }),
    ),
  )
