import { existsSync } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { Command, InvalidArgumentError, Option } from 'commander'
import { addon, packageRoot } from '../abi/native.ts'
import { readPerformance } from '../bench/performance-part.ts'
import { backendOf } from '../compute/backends.ts'
import { fail } from '../errors.ts'
import { compile, open } from '../index.ts'
import { temporaryFolder } from '../models/files.ts'
import { readPackage } from '../models/package.ts'
import { printParity, runGolden } from '../parity/golden.ts'
import { type MatrixModel, parityMatrix, readMatrix } from '../parity/matrix.ts'
import type { MatrixReport } from '../parity/matrix-report.ts'
import { type Precision, packageAt, precisionNames } from '../parity/precisions.ts'
import { printMatrix } from '../parity/print-matrix.ts'
import { renderReport } from '../parity/report.ts'
import { backendRow } from '../parity/steps.ts'
import { deterministicFlag } from './arguments.ts'
import { finish, print, progress, type Shared, write } from './terminal.ts'

interface Options extends Shared {
  readonly golden?: string
  readonly matrix?: boolean
  readonly ops?: boolean
  readonly quick?: boolean
  readonly backend: string
  readonly deterministic?: boolean
  readonly isa?: string
  readonly quantize: 'none' | 'q8' | 'q4' | 'fp8'
  readonly state: 'checkpoint' | 'q8'
  readonly backends?: readonly string[]
  readonly precisions: readonly Precision[]
  readonly out?: string
  readonly html?: string
  readonly from?: string
  readonly bench?: string
}

const isPackage = (path: string) => existsSync(join(path, 'manifest.json'))

/** Runs `work` with a folder that is gone afterwards. */
async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await temporaryFolder('parity')
  try {
    return await work(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Compiles a checkpoint into a temporary package; a package is used as it is. */
async function packageOf(path: string, options: Options, work: (path: string) => Promise<boolean>): Promise<boolean> {
  if (isPackage(path)) return work(path)
  return inFolder(async (folder) => {
    const bar = progress(options, 'compile')
    const result = await compile(path, {
      out: join(folder, 'model.ingot'),
      quantize: options.quantize,
      state: options.state,
      onProgress: ({ done, total, what }) => bar(done, total, what),
    })
    return work(result.path)
  })
}

async function golden(path: string, options: Options): Promise<boolean> {
  return packageOf(path, options, async (compiled) => {
    await using model = await open(compiled, {
      backend: options.backend,
      ...(options.deterministic && { deterministic: true }),
      ...(options.isa && { isa: options.isa }),
    })
    const bar = progress(options, 'parity')
    const report = await runGolden(model, options.golden!, { onProgress: bar })
    print(options, report, printParity(report))
    return report.pass
  })
}

/** A package as it is; a checkpoint at every precision asked for. */
async function modelsOf(path: string, { precisions }: Options, folder: string): Promise<MatrixModel[]> {
  const name = basename(resolve(path)).replace(/\.ingot$/, '')
  if (isPackage(path)) {
    const pkg = await readPackage(path, { integrity: 'auto' })
    return [{ name, precision: pkg.manifest.quantize === 'none' ? 'as compiled' : pkg.manifest.quantize, pkg }]
  }
  await mkdir(folder, { recursive: true })
  const models: MatrixModel[] = []
  for (const precision of precisions) models.push({ name, precision, pkg: await packageAt(path, precision, folder) })
  return models
}

const everyRow = () => [
  'reference',
  ...addon()
    .machine()
    .available.map((isa) => `cpu:${isa}`),
]

function matrix(paths: readonly string[], options: Options): Promise<MatrixReport> {
  return inFolder(async (folder) => {
    const models: MatrixModel[] = []
    for (const [index, path] of paths.entries())
      models.push(...(await modelsOf(path, options, join(folder, String(index)))))
    const rows = (options.backends ?? everyRow()).map((name) => backendRow(name))
    return parityMatrix(rows, models, { onProgress: progress(options, 'parity') })
  })
}

async function page(report: MatrixReport, options: Options, command: string): Promise<string> {
  const names = [...new Set(report.models.map(({ name }) => name))].join(', ')
  return renderReport({
    title: 'Parity matrix',
    subtitle: `${report.rows.map(({ name }) => name).join(', ')} on ${names}`,
    matrix: report,
    ...(options.bench !== undefined && { performance: await readPerformance(options.bench) }),
    commands: [command],
  })
}

const shipped = () => [join(packageRoot(), 'checkpoints', 'storyteller-7m')]

async function judge(paths: readonly string[], options: Options): Promise<boolean> {
  const chosen = paths.length ? paths : shipped()
  const report = options.from === undefined ? await matrix(chosen, options) : await readMatrix(options.from)
  await write(options, options.out, () => `${JSON.stringify(report)}\n`)
  if (options.html !== undefined) {
    const backends = options.backends ? ` --backends ${options.backends.join(',')}` : ''
    const command = `npx ingot parity --matrix ${paths.join(' ')}${backends} -o matrix.json --html report.html`
    await write(options, options.html, () => page(report, options, command.replace(/ +/g, ' ')))
  }
  print(options, report, printMatrix(report))
  return report.pass
}

function precisionsOf(text: string): Precision[] {
  const names = text.split(',')
  if (names.every((name) => precisionNames.includes(name as Precision))) return names as Precision[]
  throw new InvalidArgumentError(`expected some of ${precisionNames.join(',')}.`)
}

/** Op conformance of one backend. The cases are made when they are imported, so not before they are asked for. */
async function judgeOps(options: Options): Promise<boolean> {
  const { conformance, printConformance } = await import('../parity/conformance.ts')
  const row = {
    name: options.backend,
    backend: backendOf(options.backend),
    isa: options.isa,
    options: { deterministic: options.deterministic },
  }
  const report = await conformance(row, {
    slice: options.quick ? 'thin' : 'full',
    onProgress: progress(options, 'ops'),
  })
  print(options, report, printConformance(report))
  return report.pass
}

/** Options that only some kinds of judgement read. */
const readBy = {
  backend: ['golden', 'ops'],
  deterministic: ['golden', 'ops'],
  isa: ['golden', 'ops'],
  quantize: ['golden'],
  state: ['golden'],
  quick: ['ops'],
  backends: ['matrix'],
  precisions: ['matrix'],
  out: ['matrix'],
  html: ['matrix'],
  bench: ['matrix'],
} as const satisfies Partial<Record<keyof Options, readonly string[]>>

/** Throws USAGE for an option that would be ignored. */
function assertUsed(command: Command, mode: 'golden' | 'ops' | 'matrix'): void {
  for (const [option, modes] of Object.entries(readBy))
    if (command.getOptionValueSource(option) === 'cli' && !(modes as readonly string[]).includes(mode))
      throw fail('USAGE', { reason: `--${option} goes with --${modes.join(' or --')}` })
}

export const parityCommand = new Command('parity')
  .description(
    'compare backends with reference outputs (--golden), each other (--matrix), or by opcode (--ops); exit 1 on failure',
  )
  .argument('[package|checkpoint...]', 'one with --golden; with --matrix any number, default: the shipped checkpoint')
  .option('--golden <file>', 'safetensors of reference outputs')
  .option('--ops', 'judge the backend opcode by opcode on generated cases; takes no package')
  .option('--quick', 'with --ops: a sixth of the cases')
  .option('--backend <name>', 'cpu, cuda, reference; with --golden or --ops', 'cpu')
  .addOption(deterministicFlag)
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .addOption(
    new Option('--quantize <kind>', 'weight format, when a checkpoint is given; with --golden')
      .choices(['none', 'q8', 'q4', 'fp8'])
      .default('none'),
  )
  .addOption(
    new Option('--state <kind>', 'format of keys and values, when a checkpoint is given; with --golden')
      .choices(['checkpoint', 'q8'])
      .default('checkpoint'),
  )
  .option('--matrix', 'every pair of backends on every precision and shape, with the first diverging instruction')
  .option(
    '--backends <list>',
    'rows: reference,cpu:avx2 ...; default: the reference and every instruction set',
    (text) => text.split(','),
  )
  .option('--precisions <list>', `of checkpoints; default: ${precisionNames.join(',')}`, precisionsOf, precisionNames)
  .option('--from <file>', 'show a matrix that was written before instead of making one')
  .option('-o, --out <file>', 'write the matrix as JSON')
  .option('--html <file>', 'write a self-contained page')
  .option('--bench <file>', 'results of bench:peers, for the page')
  .action((paths: string[], options: Options, command: Command) =>
    finish(async () => {
      const wantsMatrix = options.matrix || options.from !== undefined
      const modes = [options.golden !== undefined, wantsMatrix, options.ops === true]
      if (modes.filter(Boolean).length !== 1)
        throw fail('USAGE', { reason: 'give one of --golden <file>, --matrix and --ops' })
      assertUsed(command, wantsMatrix ? 'matrix' : options.ops ? 'ops' : 'golden')
      if (options.ops && paths.length > 0) throw fail('USAGE', { reason: '--ops takes no package' })
      if (options.ops) return judgeOps(options)
      if (wantsMatrix) return judge(paths, options)
      if (paths.length !== 1) throw fail('USAGE', { reason: '--golden takes one package or checkpoint' })
      return golden(paths[0]!, options)
    }),
  )
