/**
 * Tables and pictures (bench/device-tables.ts) of what bench/device.ts printed, and of what is kept of it.
 *
 *     node dist/bench/device-report.js bench/results/<name>.json                    draws it again
 *     node dist/bench/device-report.js bench/results/<name>.json --add run.json --version 1a2b3c4 --date 2026-11-21
 *
 * Writes <name>.md and an SVG a breakdown beside it. A new file needs --read and --bf16: what the device can do at most.
 */
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { Command } from 'commander'
import { fail, IngotError } from '../errors.ts'
import { type DeviceResults, readDocument, readResults, withWork } from './device-results.ts'
import { draw } from './device-tables.ts'

interface Options {
  readonly add: readonly string[]
  readonly version?: string
  readonly date?: string
  readonly read?: number
  readonly bf16?: number
}

async function resultsOf(path: string, { add, version, date, read, bf16 }: Options): Promise<DeviceResults> {
  const missing = (option: string, when: string) => fail('USAGE', { reason: `${option} is needed ${when}` })
  const known = existsSync(path) ? await readResults(path) : undefined
  if (!known && add.length === 0) throw fail('FILE_MISSING', { path, expected: 'results, or --add to make them' })
  if (!known && !(read! > 0 && bf16! > 0)) throw missing('--read and --bf16', 'where there are no results yet')
  const runs = known ? [...known.runs] : []
  for (const file of add) {
    if (version === undefined || date === undefined) throw missing('--version and --date', 'with --add')
    runs.push({ ...(await withWork(file, await readDocument(file))), version, date })
  }
  return { format: 'ingot device results', ceilings: known?.ceilings ?? { read: read!, bf16: bf16! * 1000 }, runs }
}

async function main(path: string, options: Options): Promise<void> {
  const results = await resultsOf(path, options)
  const drawn = draw(basename(path, '.json'), results)
  if (options.add.length > 0) await writeFile(path, `${JSON.stringify(results)}\n`)
  for (const [file, text] of drawn) await writeFile(join(dirname(path), file), text)
}

const command = new Command('device-report')
  .argument('<results.json>')
  .option(
    '--add <file>',
    'what bench/device.ts printed; may be given again',
    (file, all: string[]) => [...all, file],
    [],
  )
  .option('--version <commit>', 'of the code that ran')
  .option('--date <day>', 'of the run')
  .option('--read <n>', 'GB/s that the device reads', Number)
  .option('--bf16 <n>', 'TFLOP/s of bf16 products', Number)
  .parse()
try {
  await main(command.args[0]!, command.opts<Options>())
} catch (error) {
  if (!(error instanceof IngotError)) throw error
  process.stderr.write(`${error.name} ${error.code}: ${error.message}\n`)
  process.exitCode = error.code === 'USAGE' ? 2 : 1
}
