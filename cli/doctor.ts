import { Command } from 'commander'
import { addon } from '../abi/native.ts'
import { type Ceilings, ceilings } from '../bench/ceilings.ts'
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

/** Limits on one line. */
export function ceilingsText({ read, units, isa, threads }: Ceilings): string {
  const rates = Object.entries(units).map(([name, { median }]) => `${name} ${median.toFixed(0)}`)
  return `limits    ${isa}, ${threads} threads: read ${read.median.toFixed(1)} GB/s; ${rates.join(', ')} GOP/s`
}

interface Options extends Shared {
  readonly probe?: boolean
}

export const doctorCommand = new Command('doctor')
  .description('show the machine, its instruction sets, and what each backend can do here, and why not')
  .option('--probe', 'measure read bandwidth and matrix peak; takes some seconds')
  .action((options: Options) =>
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
      const limits = options.probe ? await ceilings() : undefined
      if (limits) lines.push(ceilingsText(limits))
      const { version, platform, arch } = process
      print(
        options,
        { node: version, platform, arch, machine: here, backends: rows, ...(limits && { limits }) },
        lines.join('\n'),
      )
      return !('error' in here)
    }),
  )
