import { Command } from 'commander'
import { IngotError } from '../errors.ts'
import { readPackage } from '../models/package.ts'
import { finish, log, print, type Shared } from './terminal.ts'

export const verifyCommand = new Command('verify')
  .description('check structure, hashes of every byte, and the rules of the plan')
  .argument('<package>')
  .action((path: string, options: Shared) =>
    finish(async () => {
      try {
        const { plan, planHash, manifest } = await readPackage(path, { integrity: 'full' })
        const files = manifest.files.length
        print(
          options,
          { ok: true, path, planHash, instructions: plan.instructions.length, files },
          `ok: ${path}, plan ${planHash}, ${files} files`,
        )
        return true
      } catch (error) {
        if (!(error instanceof IngotError)) throw error
        print(options, { ok: false, path, code: error.code, message: error.message }, `refused: ${error.message}`)
        log(options, error.code)
        return false
      }
    }),
  )
