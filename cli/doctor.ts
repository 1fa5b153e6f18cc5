import { Command } from 'commander'
import { addon } from '../abi/native.ts'
import { backends } from '../compute/backends.ts'
import { IngotError } from '../errors.ts'
import { bold, finish, print, type Shared } from './terminal.ts'

function machine() {
  try {
    return addon().machine()
  } catch (error) {
    if (!(error instanceof IngotError)) throw error
    return { error: error.message }
  }
}

export const doctorCommand = new Command('doctor')
  .description('show the machine, its instruction sets, and what each backend can do here, and why not')
  .action((options: Shared) =>
    finish(async () => {
      const here = machine()
      const rows = Object.values(backends).map((backend) => ({
        name: backend.name,
        ...(backend.unavailable() ?? { code: 'available', reason: '' }),
      }))
      const lines = [`node      ${process.version} on ${process.platform}-${process.arch}`]
      if ('error' in here) lines.push(`addon     ${here.error}`)
      else {
        lines.push(
          `cpu       ${here.cpu}, ${here.physicalCores} physical cores${here.quota ? `, time for ${here.quota}` : ''}`,
          `pinning   ${here.pinning}`,
          `chosen    ${bold(here.available[0]!)}; also ${here.available.slice(1).join(', ') || 'none'}`,
        )
        for (const { isa, reason } of here.unavailable) lines.push(`not       ${isa}: ${reason}`)
      }
      for (const { name, code, reason } of rows) lines.push(`${name.padEnd(10)}${code}${reason ? `: ${reason}` : ''}`)
      print(
        options,
        { node: process.version, platform: process.platform, arch: process.arch, machine: here, backends: rows },
        lines.join('\n'),
      )
      return !('error' in here)
    }),
  )
