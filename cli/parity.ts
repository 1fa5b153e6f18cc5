import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { backendOf } from '../compute/backends.ts'
import { fail } from '../errors.ts'
import { compile, open } from '../index.ts'
import { printParity, runGolden } from '../parity/golden.ts'
import { finish, print, progress, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly golden?: string
  readonly ops?: true
  readonly quick?: true
  readonly backend: string
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

/** Op conformance of one backend. The cases are made when they are imported, so not before they are asked for. */
async function judgeOps(options: Options): Promise<boolean> {
  const { conformance, printConformance } = await import('../parity/conformance.ts')
  const row = { name: options.backend, backend: backendOf(options.backend), isa: options.isa }
  const report = await conformance(row, {
    slice: options.quick ? 'thin' : 'full',
    onProgress: progress(options, 'ops'),
  })
  print(options, report, printConformance(report))
  return report.pass
}

/** Both, or a usage error. */
function goldenOf(path: string | undefined, { golden }: Options): { path: string; golden: string } {
  if (path && golden) return { path, golden }
  throw fail('USAGE', { reason: 'pass a package or checkpoint and --golden <file>, or --ops' })
}

export const parityCommand = new Command('parity')
  .description('compare a backend with reference outputs; exit 1 when it fails')
  .argument('[package|checkpoint]')
  .option('--golden <file>', 'safetensors of reference outputs')
  .option('--ops', 'judge the backend opcode by opcode on generated cases; takes no package')
  .option('--quick', 'with --ops: a sixth of the cases')
  .option('--backend <name>', 'cpu, reference', 'cpu')
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
  .action((given: string | undefined, options: Options) =>
    finish(() => {
      if (options.ops) return judgeOps(options)
      const { path, golden } = goldenOf(given, options)
      return packageOf(path, options, async (compiled) => {
        await using model = await open(compiled, { backend: options.backend, ...(options.isa && { isa: options.isa }) })
        const bar = progress(options, 'parity')
        const report = await runGolden(model, golden, { onProgress: bar })
        print(options, report, printParity(report))
        return report.pass
      })
    }),
  )
