/**
 * The model parity matrix: every pair of backends, on every model, precision and shape. One more backend is one more row.
 *
 * The reference answers the prompts once for all shapes: its answer has no batch (compute/reference/runner.test.ts). Every
 * other row runs each shape as it is. One shape of text and one of random ids also judge every instruction alone
 * (parity/alone.ts), on the activations that it really had: an error that the logits hide still shows where it is made.
 */
import { addon, packageVersion } from '../abi/native.ts'
import { fail, IngotError } from '../errors.ts'
import { Tokenizer } from '../inference/text/tokenizer.ts'
import { type Package, weightsHash } from '../models/package.ts'
import { judgeAlone } from './alone.ts'
import { codeDigest, kernelsOf } from './code.ts'
import { corpusDigest, passages, randomPrompts, SEED, shapesOf } from './corpus.ts'
import { allowances, findDivergence } from './divergence.ts'
import { type Comparison, compareRuns } from './matrix-cell.ts'
import { passes } from './matrix-file.ts'
import {
  type Divergence,
  MATRIX_FORMAT,
  MATRIX_VERSION,
  type MatrixCell,
  type MatrixModelInfo,
  type MatrixReport,
  type MatrixRow,
  type MatrixShape,
  type OpErrors,
} from './matrix-report.ts'
import { layersOf, type Run, runShape } from './matrix-run.ts'
import { type BackendRow, sameArithmetic } from './steps.ts'
import { aloneTolerances, matrixTolerances, weightsClass } from './tolerances.ts'

export { missingCells, parseMatrix, readMatrix } from './matrix-file.ts'
export type { MatrixReport } from './matrix-report.ts'
export type { BackendRow } from './steps.ts'

export interface MatrixModel {
  readonly name: string
  readonly precision: string
  readonly pkg: Package
}

export interface MatrixOptions {
  readonly seed?: number
  /** Names of the shapes to run (parity/corpus.ts); default: all. What is left out is missing (missingCells). */
  readonly shapes?: readonly string[]
  readonly onProgress?: (done: number, total: number, what: string) => void
}

/** A shape with its prompts. */
interface Work {
  readonly shape: MatrixShape
  readonly prompts: readonly (readonly number[])[]
}

/** Prompts of text, where the package can read text. */
async function textPrompts(pkg: Package): Promise<number[][]> {
  const { vocabulary, tokenizerPath, tokenizerJson, tokenizerConfigJson: config, chatTemplate } = pkg
  const source = vocabulary && tokenizerPath !== undefined ? { path: tokenizerPath, vocabulary } : tokenizerJson
  if (source === undefined) return []
  const tokenizer = new Tokenizer({ tokenizer: source, config, chatTemplate }, pkg.path)
  try {
    const ids = await Promise.all(passages.map(({ text }) => tokenizer.encode(text)))
    return ids.map((each, i) => [...each.subarray(0, passages[i]!.tokens)])
  } finally {
    await tokenizer.dispose()
  }
}

async function workOf({ pkg }: MatrixModel, { seed = SEED, shapes }: MatrixOptions): Promise<Work[]> {
  const kinds = { text: await textPrompts(pkg), random: randomPrompts(pkg.plan.vocab, seed) }
  return Object.entries(kinds).flatMap(([kind, prompts]) => {
    if (prompts.length === 0) return []
    const lengths = prompts.map((ids) => ids.length)
    const all = shapesOf(kind as MatrixShape['kind'], lengths)
    return all.filter(({ name }) => shapes?.includes(name) ?? true).map((shape) => ({ shape, prompts }))
  })
}

const isOracle = ({ backend }: BackendRow) => backend.name === 'reference'
/** As the reference runs it: whole prompts, with the longest continuation that a shape of them asks for. */
const canonical = (shape: MatrixShape, generate: number): MatrixShape => ({
  ...shape,
  batch: shape.prompts.length,
  chunk: Number.MAX_SAFE_INTEGER,
  generate,
})

/** What running a shape on a row came to: a run, or why there is none. */
type Outcome = Run | { readonly reason: string }
const ran = (outcome: Outcome): outcome is Run => 'digest' in outcome

/** A row that lacks a kernel, or cannot run here, says so; any other failure is a failed matrix. */
async function attempt(row: BackendRow, run: () => Promise<Run>): Promise<Outcome> {
  const why = row.backend.unavailable()
  if (why) return { reason: why.reason }
  try {
    return await run()
  } catch (error) {
    if (error instanceof IngotError && error.code === 'LINK_GAPS') return { reason: error.message }
    throw error
  }
}

interface Alone {
  readonly operations: readonly OpErrors[]
  readonly failures: readonly string[]
}

/** Judges every instruction of a run alone. */
async function judge(model: MatrixModel, row: BackendRow, shape: MatrixShape, run: Run): Promise<Alone> {
  const { plan } = model.pkg
  const worst = plan.instructions.map(() => ({ error: 0, allowed: 0, share: -1 }))
  const allowed = run.steps.map((batch) => allowances(plan, batch, row.backend))
  await judgeAlone(model.pkg, row, run.steps, ({ index, worst: { error } }, step) => {
    const limit = allowed[step]![index]!
    const share = error === 0 ? 0 : error / limit
    if (share > worst[index]!.share) worst[index] = { error, allowed: limit, share }
    return undefined
  })
  const first = worst.findIndex(({ error, allowed: limit }) => !(error <= limit))
  const ops = [...new Set(plan.instructions.map(({ op }) => op))]
  const operations = ops.map((op): OpErrors => {
    const of = worst.filter((_, index) => plan.instructions[index]!.op === op)
    const { name, precision } = model
    const limit = of.reduce((most, each) => Math.max(most, each.allowed), 0)
    return {
      row: row.name,
      model: name,
      precision,
      kind: shape.kind,
      op,
      errors: of.map(({ error }) => error),
      allowed: limit,
    }
  })
  if (first < 0) return { operations, failures: [] }
  const { error, allowed: limit } = worst[first]!
  const { op, label } = plan.instructions[first]!
  const failure = `instruction ${first}, ${op} "${label}", alone errs by ${error.toExponential(2)} of its row, allowed is ${limit.toExponential(2)}`
  return { operations, failures: [failure] }
}

/** Runs all rows on one model and compares every pair. */
class ModelMatrix {
  readonly cells: MatrixCell[] = []
  readonly operations: OpErrors[] = []
  readonly devices = new Map<string, Run['device']>()
  readonly #rows: readonly BackendRow[]
  readonly #model: MatrixModel
  readonly #generate: number
  /** By shape and digest: runs of the same bits are judged once. */
  readonly #compared = new Map<string, Comparison>()
  readonly #judged = new Map<string, Promise<Alone>>()
  readonly #divergences = new Map<string, Promise<Pick<MatrixCell, 'divergence' | 'divergenceReason'>>>()
  readonly #oracles = new Map<string, Outcome>()

  /** `generate`: the most tokens that a shape generates. */
  constructor(rows: readonly BackendRow[], model: MatrixModel, generate: number) {
    this.#rows = rows
    this.#model = model
    this.#generate = generate
  }

  async runShape({ shape, prompts }: Work, advance: (what: string) => void): Promise<void> {
    const outcomes: Outcome[] = []
    for (const row of this.#rows) {
      advance(`${this.#model.name} ${this.#model.precision}: ${shape.name} on ${row.name}`)
      const outcome = await this.#run(row, shape, prompts)
      if (ran(outcome)) this.devices.set(row.name, outcome.device)
      outcomes.push(outcome)
    }
    for (const [i, expected] of this.#rows.entries())
      for (const [j, actual] of this.#rows.entries())
        if (i < j) this.cells.push(await this.#cell(shape, [expected, outcomes[i]!], [actual, outcomes[j]!]))
  }

  /** The reference's answers are kept from shape to shape. */
  async #run(row: BackendRow, shape: MatrixShape, prompts: Work['prompts']): Promise<Outcome> {
    const { pkg } = this.#model
    if (!isOracle(row)) return attempt(row, () => runShape(pkg, row, shape, prompts))
    const key = `${row.name} ${shape.kind}`
    const outcome =
      this.#oracles.get(key) ??
      (await attempt(row, () => runShape(pkg, row, canonical(shape, this.#generate), prompts)))
    this.#oracles.set(key, outcome)
    return outcome
  }

  async #cell(
    shape: MatrixShape,
    [expected, want]: [BackendRow, Outcome],
    [actual, got]: [BackendRow, Outcome],
  ): Promise<MatrixCell> {
    const { name, precision } = this.#model
    const place = { model: name, precision, shape: shape.name, expected: expected.name, actual: actual.name }
    for (const [row, outcome] of [
      [expected, want],
      [actual, got],
    ] as const)
      if (!ran(outcome)) return { ...place, verdict: 'skipped', reason: `${row.name}: ${outcome.reason}`, failures: [] }
    const [a, b] = [want as Run, got as Run]
    const { failures: compared, ...comparison } = this.#compare(shape, a, b)
    const failures = [...compared, ...(isOracle(expected) ? await this.#alone(shape, actual, b) : [])]
    const unseen = shape.judged && isOracle(expected) && !b.traced
    const reason = unseen && {
      reason: `${actual.name} does not show what its instructions write: none is judged alone`,
    }
    if (failures.length === 0) return { ...place, verdict: 'pass', ...reason, ...comparison, failures }
    return {
      ...place,
      verdict: 'fail',
      ...comparison,
      failures,
      ...(await this.#diverge(shape, [expected, a], [actual, b])),
    }
  }

  #compare(shape: MatrixShape, a: Run, b: Run): Comparison {
    const key = [shape.name, a.device.backend, a.digest, b.device.backend, b.digest].join(' ')
    const known = this.#compared.get(key) ?? compareRuns(this.#model.pkg.plan, a, b, shape)
    this.#compared.set(key, known)
    return known
  }

  /** What instructions do wrong alone. */
  async #alone(shape: MatrixShape, row: BackendRow, run: Run): Promise<readonly string[]> {
    if (!shape.judged || !run.traced || isOracle(row)) return []
    const key = `${shape.name} ${run.digest}`
    const known = this.#judged.get(key)
    const judged = known ?? judge(this.#model, row, shape, run)
    this.#judged.set(key, judged)
    const { operations, failures } = await judged
    if (!known) this.operations.push(...operations)
    return failures
  }

  #diverge(shape: MatrixShape, [expected, a]: [BackendRow, Run], [actual, b]: [BackendRow, Run]) {
    const key = `${shape.name} ${a.digest} ${b.digest}`
    const same = sameArithmetic(a.device, b.device)
    const known = this.#divergences.get(key) ?? this.#search(expected, actual, b, same)
    this.#divergences.set(key, known)
    return known
  }

  async #search(
    expected: BackendRow,
    actual: BackendRow,
    run: Run,
    same: boolean,
  ): Promise<{ divergence?: Divergence; divergenceReason?: string }> {
    try {
      const divergence = await findDivergence(this.#model.pkg, expected, actual, run.steps, same)
      return divergence ? { divergence } : { divergenceReason: 'the steps gave the same bits when they ran again' }
    } catch (error) {
      if (error instanceof IngotError && error.code === 'TRACE_MISSING') return { divergenceReason: error.message }
      throw error
    }
  }
}

function infoOf({ name, precision, pkg }: MatrixModel): MatrixModelInfo {
  const { plan } = pkg
  return {
    name,
    precision,
    weights: weightsClass(plan),
    state: plan.states[0]?.dtype ?? 'none',
    layers: layersOf(plan).length - 1,
    vocab: plan.vocab,
    planSha256: pkg.planHash,
    weightsSha256: weightsHash(pkg),
  }
}

async function rowInfo(row: BackendRow, device: Run['device'] | undefined): Promise<MatrixRow> {
  const { name, backend, isa = '' } = row
  const { description, deterministic } = device ?? { description: 'did not run', deterministic: false }
  return {
    name,
    backend: backend.name,
    isa: device?.isa ?? isa,
    description,
    deterministic,
    ...(device?.driver && { driver: device.driver }),
    kernels: await kernelsOf(backend),
  }
}

const reasons = (): Record<string, string> => ({
  ...Object.fromEntries(Object.entries(matrixTolerances).map(([name, { reason }]) => [name, reason])),
  ...Object.fromEntries(Object.entries(aloneTolerances).map(([op, { reason }]) => [`alone: ${op}`, reason])),
})

function assertRunnable(rows: readonly BackendRow[], models: readonly MatrixModel[]): void {
  const names = rows.map(({ name }) => name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (rows.length < 2 || twice !== undefined)
    throw fail('OPTION_INVALID', { option: 'backends', expected: 'two or more rows of different names', got: names })
  if (models.length === 0) throw fail('OPTION_INVALID', { option: 'models', expected: 'at least one', got: 'none' })
  for (const { pkg } of models)
    if (pkg.plan.outputs.logits === undefined)
      throw fail('OUTPUT_MISSING', { package: pkg.path, output: 'logits', method: 'the parity matrix' })
}

/**
 * Runs every row on every model and shape, and judges every pair. Throws OPTION_INVALID, OUTPUT_MISSING, and whatever ends
 * a step: a backend that fails in a step has no cell.
 */
export async function parityMatrix(
  given: readonly BackendRow[],
  models: readonly MatrixModel[],
  options: MatrixOptions = {},
): Promise<MatrixReport> {
  assertRunnable(given, models)
  // what judges comes first
  const rows = given.toSorted((a, b) => Number(isOracle(b)) - Number(isOracle(a)))
  const { seed = SEED, onProgress } = options
  const started = performance.now()
  const code = await codeDigest()
  const matrices: ModelMatrix[] = []
  const works: Work[][] = []
  for (const model of models) works.push(await workOf(model, options))
  const total = works.flat().length * rows.length
  let done = 0
  for (const [index, model] of models.entries()) {
    const longest = works[index]!.reduce((most, { shape }) => Math.max(most, shape.generate), 0)
    const matrix = new ModelMatrix(rows, model, longest)
    for (const work of works[index]!) await matrix.runShape(work, (what) => onProgress?.(done++, total, what))
    matrices.push(matrix)
  }
  onProgress?.(total, total, 'done')
  const cells = matrices.flatMap((matrix) => matrix.cells)
  const devices = new Map(matrices.flatMap((matrix) => [...matrix.devices]))
  const shapes = new Map(works.flat().map(({ shape }) => [shape.name, shape]))
  return {
    format: MATRIX_FORMAT,
    version: MATRIX_VERSION,
    pass: passes(cells),
    created: new Date().toISOString(),
    seconds: (performance.now() - started) / 1000,
    code,
    corpus: corpusDigest(works.flat().flatMap(({ prompts }) => prompts)),
    seed,
    machine: machine(),
    rows: await Promise.all(rows.map((row) => rowInfo(row, devices.get(row.name)))),
    models: models.map(infoOf),
    shapes: [...shapes.values()],
    cells,
    operations: matrices.flatMap((matrix) => matrix.operations),
    reasons: reasons(),
  }
}

function machine(): MatrixReport['machine'] {
  const { cpu, arch } = addon().machine()
  return { cpu, arch, node: process.version, ingot: packageVersion() }
}
