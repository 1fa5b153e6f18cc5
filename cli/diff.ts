import { Command } from 'commander'
import { readPackage } from '../models/package.ts'
import { diffPlans, printDiff } from '../plans/diff.ts'
import { finish, print, type Shared } from './terminal.ts'

export const diffCommand = new Command('diff')
  .description('compare the plans of two packages; exit 1 when they differ')
  .argument('<package-a>')
  .argument('<package-b>')
  .action((a: string, b: string, options: Shared) =>
    finish(async () => {
      const [left, right] = await Promise.all([a, b].map((path) => readPackage(path, { integrity: 'structure' })))
      const same = left!.planHash === right!.planHash
      const difference = diffPlans(left!.plan, right!.plan)
      print(
        options,
        { same, a: left!.planHash, b: right!.planHash, ...difference },
        same ? `same plan ${left!.planHash}` : printDiff(difference),
      )
      return same
    }),
  )
