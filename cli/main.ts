#!/usr/bin/env node
/** The `ingot` command: one file a subcommand. Exit 0: done; 1: a check failed; 2: wrong usage. */
import { Command, CommanderError } from 'commander'
import { packageVersion } from '../abi/native.ts'
import { fail } from '../errors.ts'
import { exits, refuse } from './terminal.ts'

/** Commands by name, in the order of the help. Each is loaded when it is asked for: to load all takes longer than most. */
const commands: Readonly<Record<string, () => Promise<Command>>> = {
  compile: async () => (await import('./compile.ts')).compileCommand,
  inspect: async () => (await import('./inspect.ts')).inspectCommand,
  diff: async () => (await import('./diff.ts')).diffCommand,
  verify: async () => (await import('./verify.ts')).verifyCommand,
  run: async () => (await import('./run.ts')).runCommand,
  parity: async () => (await import('./parity.ts')).parityCommand,
  replay: async () => (await import('./replay.ts')).replayCommand,
  bench: async () => (await import('./bench.ts')).benchCommand,
  tune: async () => (await import('./tune.ts')).tuneCommand,
  signoff: async () => (await import('./signoff.ts')).signoffCommand,
  rollback: async () => (await import('./rollback.ts')).rollbackCommand,
  doctor: async () => (await import('./doctor.ts')).doctorCommand,
}

const program = new Command('ingot')
  .description('Compile a model checkpoint into a verifiable plan and run it inside Node.js.')
  .version(packageVersion())
  .showHelpAfterError()
  .enablePositionalOptions()
  .exitOverride()

const named = process.argv[2] ?? ''
for (const load of Object.hasOwn(commands, named) ? [commands[named]!] : Object.values(commands)) {
  const subcommand = (await load())
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
