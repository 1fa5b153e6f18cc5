import { basename } from 'node:path'
import { Command } from 'commander'
import { readPackage } from '../models/package.ts'
import { type FoundTuning, readTuning, type TuningEntry } from '../models/tuning.ts'
import { printPlan } from '../plans/print.ts'
import { planReport } from '../plans/report.ts'
import { finish, print, type Shared, write } from './terminal.ts'

interface Options extends Shared {
  readonly html?: string
}

/** "1-8 stream, 16-128 tile (rule blas)": rows whose choice is the same are one piece. */
function runs(entries: readonly TuningEntry[]): string {
  const sorted = [...entries].sort((a, b) => a.rows - b.rows)
  const word = ({ chosen, rule }: TuningEntry) => (chosen === rule ? chosen : `${chosen} (rule ${rule})`)
  const pieces: { from: number; to: number; text: string }[] = []
  for (const entry of sorted) {
    const last = pieces.at(-1)
    if (last?.text === word(entry)) last.to = entry.rows
    else pieces.push({ from: entry.rows, to: entry.rows, text: word(entry) })
  }
  return pieces.map(({ from, to, text }) => `${from === to ? from : `${from}-${to}`} ${text}`).join(', ')
}

/** A tuning file with its choices by rows, one line for what shares them; or why it cannot be read. */
export function tuningLines(found: FoundTuning): string[] {
  const file = basename(found.path)
  if ('error' in found) return [`tuning ${file}: unreadable: ${found.error.message}`]
  const { device, driver, kernels, measured, contextTokens, entries } = found.tuning
  const groups = new Map<string, TuningEntry[]>()
  for (const entry of entries) {
    const { opcode, dtype, shape, deterministic, instructions } = entry
    const name = `${deterministic ? 'deterministic' : 'default'} ${opcode} ${dtype} ${shape} x ${instructions}`
    groups.set(name, [...(groups.get(name) ?? []), entry])
  }
  return [
    `tuning ${file}: ${entries.length} choices for ${device}, ${driver}, kernels ${kernels.slice(0, 12)}, at ${contextTokens} positions, ${measured}`,
    ...[...groups].map(([name, entries]) => `  ${name}: ${runs(entries)}`),
  ]
}

export const inspectCommand = new Command('inspect')
  .description('show opcodes, registers over time, memory, state, bytes and measured choices of kernels of a package')
  .argument('<package>')
  .option('--html <file>', 'write a self-contained page with the memory map')
  .action((path: string, options: Options) =>
    finish(async () => {
      const pkg = await readPackage(path, { integrity: 'structure' })
      const { plan, planHash } = pkg
      const found = await readTuning(pkg.path)
      const listing = printPlan(plan)
      await write(options, options.html, () => planReport(plan, planHash, listing))
      const tuning = found.map((file) => {
        const { path, ...rest } =
          'error' in file ? { path: file.path, error: file.error.message } : { path: file.path, ...file.tuning }
        return { file: basename(path), ...rest }
      })
      const lines = [`plan ${planHash}`, listing.trimEnd(), ...found.flatMap(tuningLines)]
      print(options, { planHash, ...plan, tuning }, lines.join('\n'))
      return true
    }),
  )
