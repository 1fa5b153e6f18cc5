import { Command } from 'commander'
import { rollback } from '../parity/signoff/releases.ts'
import { finish, print, type Shared } from './terminal.ts'

export const rollbackCommand = new Command('rollback')
  .description('point the name of a package at the last release that was signed off; nothing is deleted')
  .argument('<package>')
  .requiredOption('--ledger <file>', 'ledger.jsonl of "ingot signoff"')
  .action((path: string, options: Shared & { readonly ledger: string }) =>
    finish(async () => {
      const done = await rollback(path, options.ledger)
      const before = done.from === null ? '' : `; what it was lies in ${done.from}`
      print(options, done, `${path} is ${done.to} now${before}`)
      return true
    }),
  )
