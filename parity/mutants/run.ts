/**
 * Mutation scores. `npm run mutants:verifier`: of the load-time verifier. `npm run mutants:gate`: of op conformance and
 * the model matrix; --only names defects. stdout is the score, text or with --json, stderr the progress, which --quiet
 * leaves out. Exit 0: pass, 1: a mutant lives, 2: wrong usage.
 */
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { packageRoot } from '../../abi/native.ts'
import { IngotError } from '../../errors.ts'
import { compileCheckpoint } from '../../models/compile/index.ts'
import type { Quantization } from '../../models/compile/quantize.ts'
import { printGateScore, scoreGate } from './gate.ts'
import type { NamedPlan } from './plans.ts'
import { MIN_PLANS_PER_SECOND, printVerifierScore, scoreVerifier } from './verifier.ts'

interface Options {
  readonly json: boolean
  readonly quiet: boolean
  readonly only?: readonly string[] | undefined
}

interface Outcome {
  readonly pass: boolean
  readonly value: unknown
  readonly text: string
}

/** One line to stderr each time that a tenth more is done. */
function progress({ quiet }: Options, title: string): (done: number, total: number, what: string) => void {
  let tenth = -1
  return (done, total, what) => {
    const now = Math.floor((10 * done) / Math.max(1, total))
    if (quiet || now === tenth) return
    tenth = now
    process.stderr.write(`${title} ${now * 10} % ${what}\n`)
  }
}

/** Shipped checkpoints, each as it is and quantised. */
async function shippedPlans(): Promise<NamedPlan[]> {
  const shipped: readonly (readonly [path: string, quantize: Quantization])[] = [
    ['parity/goldens/llama', 'none'],
    ['parity/goldens/llama_f32_yarn_sharded', 'q8'],
    ['parity/goldens/mistral', 'q4'],
    ['parity/goldens/qwen3', 'q8'],
    ['parity/goldens/qwen3_bf16_sliding_yarn', 'none'],
    ['checkpoints/storyteller-1m', 'q4'],
    ['parity/goldens/llama', 'fp8'],
  ]
  return Promise.all(
    shipped.map(async ([path, quantize]) => {
      const { plan } = await compileCheckpoint(join(packageRoot(), path), { quantize })
      return { name: `${path.split('/').at(-1)}, ${quantize}`, plan }
    }),
  )
}

async function verifier(options: Options): Promise<Outcome> {
  const onProgress = progress(options, 'verifier')
  const counts = { perRule: 200, perPlan: 500, valid: 2500, judged: 40 }
  const score = scoreVerifier({ ...counts, onProgress }, await shippedPlans())
  const pass = score.pass && score.plansPerSecond >= MIN_PLANS_PER_SECOND
  return { pass, value: { ...score, pass }, text: printVerifierScore(score) }
}

async function gate(options: Options): Promise<Outcome> {
  const score = await scoreGate({ ...(options.only && { only: options.only }), onProgress: progress(options, 'gate') })
  return { pass: score.pass, value: score, text: printGateScore(score) }
}

const commands: Readonly<Record<string, (options: Options) => Promise<Outcome>>> = { verifier, gate }

const usage = 'usage: run.js verifier [--json] [--quiet]\n       run.js gate [--only <defect>]... [--json] [--quiet]\n'

/** What was asked for; undefined where that is no command. */
function parsed(): { name: string; options: Options } | undefined {
  try {
    const flag = { type: 'boolean', default: false } as const
    const flags = { json: flag, quiet: flag, only: { type: 'string', multiple: true } } as const
    const { positionals, values } = parseArgs({ options: flags, allowPositionals: true })
    const [name = '', ...more] = positionals
    return Object.hasOwn(commands, name) && !more.length ? { name, options: values } : undefined
  } catch {
    return undefined
  }
}

/** Exit code of a command that ran, or of why it did not. */
async function ran(name: string, options: Options): Promise<number> {
  try {
    const { pass, value, text } = await commands[name]!(options)
    process.stdout.write(`${options.json ? JSON.stringify(value, undefined, 2) : text}\n`)
    return pass ? 0 : 1
  } catch (error) {
    if (!(error instanceof IngotError)) throw error
    process.stderr.write(`${error.name} ${error.code}: ${error.message}\n`)
    return error.code === 'OPTION_INVALID' ? 2 : 1
  }
}

const asked = parsed()
if (!asked) process.stderr.write(usage)
process.exitCode = asked ? await ran(asked.name, asked.options) : 2
