/** What every subcommand shares: stdout is data, stderr is progress and logs, and the exit code says how it ended. */
import { writeFile } from 'node:fs/promises'
import { fail, IngotError } from '../errors.ts'

export interface Shared {
  readonly json?: boolean
  readonly quiet?: boolean
}

/** Exit codes: done, a check failed or the work could not be done, wrong usage. */
export const exits = { done: 0, failed: 1, usage: 2 } as const

/** Prints data: `value` as JSON with --json, else `text`. */
export function print(shared: Shared, value: unknown, text: string): void {
  process.stdout.write(
    shared.json ? `${JSON.stringify(value, undefined, 2)}\n` : text.endsWith('\n') ? text : `${text}\n`,
  )
}

/** Writes a line of log to stderr, unless --quiet. */
export function log(shared: Shared, line: string): void {
  if (!shared.quiet) process.stderr.write(`${line}\n`)
}

/** Writes a file that was asked for, if one was, and logs so. Throws OUTPUT_UNWRITABLE. */
export async function write(
  shared: Shared,
  path: string | undefined,
  content: () => string | Promise<string>,
): Promise<void> {
  if (path === undefined) return
  await writeFile(path, await content()).catch((cause: Error) => {
    throw fail('OUTPUT_UNWRITABLE', { path, reason: cause.message }, cause)
  })
  log(shared, `wrote ${path}`)
}

const colours = process.stderr.isTTY && !process.env.NO_COLOR
export const dim = (text: string) => (colours ? `\x1b[2m${text}\x1b[0m` : text)
export const bold = (text: string) => (colours ? `\x1b[1m${text}\x1b[0m` : text)

/** A bar on stderr: redrawn in place on a terminal, one line a tenth elsewhere. */
export function progress(shared: Shared, title: string): (done: number, total: number, what: string) => void {
  let lastTenth = -1
  return (done, total, what) => {
    if (shared.quiet) return
    const share = total > 0 ? done / total : 1
    if (!process.stderr.isTTY) {
      const tenth = Math.floor(share * 10)
      if (tenth !== lastTenth) process.stderr.write(`${title} ${Math.round(share * 100)} % ${what}\n`)
      lastTenth = tenth
      return
    }
    const filled = Math.round(share * 24)
    const bar = `${'█'.repeat(filled)}${dim('░'.repeat(24 - filled))}`
    process.stderr.write(
      `\r\x1b[K${title} ${bar} ${`${Math.round(share * 100)}`.padStart(3)} % ${dim(what.slice(-40))}`,
    )
    if (share >= 1) process.stderr.write('\n')
  }
}

/** Says on one line of stderr why the work ended, and where, for an error that is not Ingot's; returns the exit code. */
export function refuse(error: unknown): number {
  if (!(error instanceof IngotError)) {
    const { message = String(error), stack = '' } = error instanceof Error ? error : {}
    const code = refuse(fail('INTERNAL', { reason: message }, error))
    if (stack) process.stderr.write(`${stack}\n`)
    return code
  }
  process.stderr.write(`${error.name} ${error.code}: ${error.message}\n`)
  const usage = ['USAGE', 'OPTION_UNKNOWN', 'OPTION_INVALID', 'BACKEND_UNKNOWN', 'ISA_UNAVAILABLE']
  return usage.includes(error.code) ? exits.usage : exits.failed
}

/** Aborted by the first Ctrl-C or termination, so that half-written files are removed; the second ends the process. */
export function interruption(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => controller.abort())
  return controller.signal
}

/** Runs a subcommand, turns its errors into one line on stderr and its result into the exit code. */
export async function finish(work: () => Promise<boolean | undefined>): Promise<void> {
  try {
    process.exitCode = (await work()) === false ? exits.failed : exits.done
  } catch (error) {
    process.exitCode = refuse(error)
  }
}

export const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`
