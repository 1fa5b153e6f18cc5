import { Command } from 'commander'
import { readPackage } from '../models/package.ts'
import { printPlan } from '../plans/print.ts'
import { planReport } from '../plans/report.ts'
import { finish, print, type Shared, write } from './terminal.ts'

interface Options extends Shared {
  readonly html?: string
}

export const inspectCommand = new Command('inspect')
  .description('show opcodes, registers over time, memory, state and bytes of a package')
  .argument('<package>')
  .option('--html <file>', 'write a self-contained page with the memory map')
  .action((path: string, options: Options) =>
    finish(async () => {
      const { plan, planHash } = await readPackage(path, { integrity: 'structure' })
      const listing = printPlan(plan)
      await write(options, options.html, () => planReport(plan, planHash, listing))
      print(options, { planHash, ...plan }, `plan ${planHash}\n${listing}`)
      return true
    }),
  )
