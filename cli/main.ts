#!/usr/bin/env node
/** The `ingot` command: one file a subcommand. Exit 0: done; 1: a check failed; 2: wrong usage. */
import { Command, CommanderError } from 'commander'
import { packageVersion } from '../abi/native.ts'
import { fail } from '../errors.ts'
import { benchCommand } from './bench.ts'
import { compileCommand } from './compile.ts'
import { diffCommand } from './diff.ts'
import { doctorCommand } from './doctor.ts'
import { inspectCommand } from './inspect.ts'
import { parityCommand } from './parity.ts'
import { replayCommand } from './replay.ts'
import { rollbackCommand } from './rollback.ts'
import { runCommand } from './run.ts'
import { signoffCommand } from './signoff.ts'
import { exits, refuse } from './terminal.ts'
import { verifyCommand } from './verify.ts'

const program = new Command('ingot')
  .description('Compile a model checkpoint into a verifiable plan and run it inside Node.js.')
  .version(packageVersion())
  .showHelpAfterError()
  .enablePositionalOptions()
  .exitOverride()

for (const command of [
  compileCommand,
  inspectCommand,
  diffCommand,
  verifyCommand,
  runCommand,
  parityCommand,
  replayCommand,
  benchCommand,
  signoffCommand,
  rollbackCommand,
  doctorCommand,
]) {
  const subcommand = command
    .option('--json', 'print data as JSON on stdout')
    .option('--quiet', 'no progress and no logs on stderr')
  program.addCommand(subcommand.exitOverride())
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(exits.done)
  process.exit(refuse(fail('OUTPUT_UNWRITABLE', { path: 'the standard output', reason: error.message }, error)))
})
process.on('uncaughtException', (error) => process.exit(refuse(error)))
// Progress that nobody can read does not stop the work.
process.stderr.on('error', () => {})

try {
  await program.parseAsync()
} catch (error) {
  if (!(error instanceof CommanderError)) throw error
  process.exitCode = error.exitCode === 0 ? exits.done : exits.usage
}
