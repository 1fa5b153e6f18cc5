import { Command } from 'commander'
import { readPackage, weightsHash } from '../models/package.ts'
import { printDivergence } from '../parity/divergence.ts'
import { assertRecordOf, type ReplayReport, readRecord, replayAgainst, replayRecord } from '../parity/replay.ts'
import { backendRow } from '../parity/steps.ts'
import { finish, print, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly backend: string
  readonly isa?: string
  readonly against?: string
  readonly bisect?: boolean
}

function text(report: ReplayReport): string {
  const { pass, expected, actual, rows, differingRows, differingTokens, units, differingUnits, divergence } = report
  const bits = report.sameArithmetic ? 'the same arithmetic: every bit must agree' : 'other arithmetic: bits may differ'
  const states = differingUnits.map(({ state, unit }) => `${state} unit ${unit}`)
  return [
    `${pass ? 'pass' : 'FAIL'}: ${actual} against ${expected}, ${bits}`,
    `  ${differingRows.length} of ${rows} rows differ${differingRows.length ? ` (${differingRows.slice(0, 8)}), ${differingTokens.length} in the token` : ''}`,
    ...(units
      ? [`  ${differingUnits.length} of ${units} units of state differ ${states.slice(0, 4).join(', ')}`.trimEnd()]
      : []),
    ...(divergence ? [printDivergence(divergence)] : []),
  ].join('\n')
}

export const replayCommand = new Command('replay')
  .description('run a recorded step again (open({ record })); exit 1 when bits differ that must not')
  .argument('<record>', 'step-<index>.json')
  .argument('<package>')
  .option('--backend <name[:isa]>', 'cpu, reference, cpu:avx2 ...', 'cpu')
  .option('--isa <name>', 'instruction set; see "ingot doctor"')
  .option('--against <name[:isa]>', 'compare with this backend instead of the record')
  .option('--bisect', 'name the first instruction where the two part; against the reference by default')
  .action((path: string, folder: string, options: Options) =>
    finish(async () => {
      const row = backendRow(options.backend, options.isa)
      const against = options.against ?? (options.bisect ? 'reference' : undefined)
      const expected = against === undefined ? undefined : backendRow(against)
      const record = await readRecord(path)
      const opened = await readPackage(folder, { integrity: 'auto' })
      const pkg = { ...opened, weightsHash: weightsHash(opened) }
      assertRecordOf(record, pkg, path)
      const report = expected
        ? await replayAgainst(record, pkg, expected, row, options.bisect ?? false)
        : await replayRecord(record, pkg, row)
      print(options, report, text(report))
      return report.pass
    }),
  )
