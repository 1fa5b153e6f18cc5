/**
 * Mutation scores. `npm run mutants:verifier`: of the load-time verifier. stdout is the score, text or with --json,
 * stderr the progress, which --quiet leaves out. Exit 0: pass, 1: a mutant lives, 2: wrong usage.
 */
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { packageRoot } from '../../abi/native.ts'
import { compileCheckpoint } from '../../models/compile/index.ts'
import type { Quantization } from '../../models/compile/quantize.ts'
import type { NamedPlan } from './plans.ts'
import { MIN_PLANS_PER_SECOND, printVerifierScore, scoreVerifier } from './verifier.ts'

interface Options {
  readonly json: boolean
  readonly quiet: boolean
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

const commands: Readonly<Record<string, (options: Options) => Promise<Outcome>>> = { verifier }

const usage = `usage: run.js ${Object.keys(commands).join(' | ')} [--json] [--quiet]\n`

/** What was asked for; undefined where that is no command. */
function parsed(): { name: string; options: Options } | undefined {
  try {
    const flags = { json: { type: 'boolean', default: false }, quiet: { type: 'boolean', default: false } } as const
    const { positionals, values } = parseArgs({ options: flags, allowPositionals: true })
    const [name = '', ...more] = positionals
    return Object.hasOwn(commands, name) && !more.length ? { name, options: values } : undefined
  } catch {
    return undefined
  }
}

const asked = parsed()
if (!asked) {
  process.stderr.write(usage)
  process.exitCode = 2
} else {
  const { pass, value, text } = await commands[asked.name]!(asked.options)
  process.stdout.write(`${asked.options.json ? JSON.stringify(value, undefined, 2) : text}\n`)
  process.exitCode = pass ? 0 : 1
}
