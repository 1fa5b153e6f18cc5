/**
 * Mutation score of the load-time verifier: mutants of every rule and single-byte flips of plans. A mutant that it
 * accepts is run by the oracle; one that the oracle then finds unsound is a false accept. Besides: how many valid plans
 * it refuses, and how fast it is.
 */
import { ByteBuffer } from 'flatbuffers'
import { addon } from '../../abi/native.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { decodePlan } from '../../plans/read.ts'
import { writePlan } from '../../plans/write.ts'
import { Dice } from './bytes.ts'
import type { BreachKind } from './memory.ts'
import { judge } from './oracle.ts'
import { type NamedPlan, randomPlans, topologyPlans } from './plans.ts'
import { mutators } from './rules.ts'

/** The rule that refuses plan bytes; undefined: they are accepted. */
export type Verdict = (bytes: Uint8Array) => string | undefined
export const verifierVerdict: Verdict = (bytes) => addon().verifyPlan(bytes)?.rule

export interface VerifierScoreOptions {
  /** Mutants a rule, and flips a plan. */
  readonly perRule: number
  readonly perPlan: number
  /** Valid plans that must be accepted. */
  readonly valid: number
  /** Refused mutants a rule that the oracle judges as well, to show what it sees. */
  readonly judged: number
  readonly verdict?: Verdict
  /** Rules to mutate; all, and the flips, where absent. */
  readonly rules?: readonly string[]
  readonly onProgress?: (done: number, total: number, what: string) => void
}

export interface FalseAccept {
  readonly breach: BreachKind
  readonly reason: string
}

export interface Row {
  /** Rule that the mutants break, or plan whose bytes were flipped. */
  readonly name: string
  readonly mutants: number
  readonly refused: number
  /** Refused by the rule that the mutant was made to break; an earlier one may see it first. */
  readonly byName: number
  /** Accepted, and the same plan but for its names. */
  readonly same: number
  /** Accepted, and another plan that the oracle runs without a breach. */
  readonly sound: number
  readonly falseAccepts: readonly FalseAccept[]
  /** Of `judged` refused mutants, those in which the oracle finds a breach too. */
  readonly judged: number
  readonly breached: number
}

export interface VerifierScore {
  readonly pass: boolean
  readonly mutants: number
  readonly falseAccepts: number
  readonly rules: readonly Row[]
  readonly flips: readonly Row[]
  readonly valid: {
    readonly plans: number
    readonly falseRejects: readonly string[]
    /** Valid plans that the oracle judged, and in which it found a breach. */
    readonly judged: number
    readonly breached: number
  }
  /** Median over the valid plans. */
  readonly plansPerSecond: number
}

export const MIN_PLANS_PER_SECOND = 5000

/** What a plan says but for names, which mean nothing to a run. */
function meaning(bytes: Uint8Array): string {
  const named = new Set(['name', 'label', 'model'])
  return JSON.stringify(decodePlan(new ByteBuffer(bytes)), (key, value) => (named.has(key) ? '' : value))
}

/** Sums up mutants of one kind. */
class Tally {
  readonly #name: string
  readonly #verdict: Verdict
  readonly #judgedMost: number
  readonly #counts = { mutants: 0, refused: 0, byName: 0, same: 0, sound: 0, judged: 0, breached: 0 }
  readonly #falseAccepts: FalseAccept[] = []

  constructor(name: string, verdict: Verdict, judgedMost: number) {
    this.#name = name
    this.#verdict = verdict
    this.#judgedMost = judgedMost
  }

  /** `original`: the meaning of the plan that the mutant was made from. */
  add(mutant: Uint8Array, original: string): void {
    this.#counts.mutants++
    const rule = this.#verdict(mutant)
    if (rule === undefined) this.#accepted(mutant, original)
    else this.#refused(mutant, rule)
  }

  #refused(mutant: Uint8Array, rule: string): void {
    const counts = this.#counts
    counts.refused++
    if (rule === this.#name) counts.byName++
    if (counts.judged === this.#judgedMost) return
    counts.judged++
    if (judge(mutant)) counts.breached++
  }

  #accepted(mutant: Uint8Array, original: string): void {
    let same = false
    try {
      same = meaning(mutant) === original
    } catch {
      // What cannot be read is no plan: the oracle says so.
    }
    const breach = same ? undefined : judge(mutant)
    if (same) this.#counts.same++
    else if (!breach) this.#counts.sound++
    else this.#falseAccepts.push({ breach: breach.kind, reason: breach.message })
  }

  row(): Row {
    return { name: this.#name, ...this.#counts, falseAccepts: this.#falseAccepts }
  }
}

/** Mutants of `rule` out of `plans` in turn, those with a place for it. */
function ruleRow(rule: string, seed: number, plans: readonly Base[], options: VerifierScoreOptions): Row {
  const tally = new Tally(rule, options.verdict ?? verifierVerdict, options.judged)
  const dice = new Dice(seed)
  const kinds = mutators[rule]!
  let made = 0
  for (let turn = 0; made < options.perRule && turn < 40 * options.perRule; turn++) {
    const { plan, bytes, meaning: original } = dice.pick(plans)
    const mutant = kinds[turn % kinds.length]!(plan, dice)
    if (!mutant || Buffer.compare(mutant, bytes) === 0) continue
    made++
    tally.add(mutant, original)
  }
  return tally.row()
}

/** One byte at a random place becomes another. */
function flipRow(name: string, seed: number, base: Base, options: VerifierScoreOptions): Row {
  const tally = new Tally(name, options.verdict ?? verifierVerdict, 0)
  const dice = new Dice(seed)
  for (let i = 0; i < options.perPlan; i++) {
    const at = dice.below(base.bytes.length)
    const flipped = base.bytes[at]! ^ (dice.below(2) ? 1 << dice.below(8) : dice.between(1, 255))
    tally.add(base.bytes.with(at, flipped), base.meaning)
  }
  return tally.row()
}

interface Base {
  readonly plan: ExecutionPlan
  readonly bytes: Uint8Array
  readonly meaning: string
}

function baseOf(plan: ExecutionPlan): Base {
  const bytes = writePlan(plan)
  return { plan, bytes, meaning: meaning(bytes) }
}

/** Median plans per second of `verdict` over `plans`, each verified until the clock can tell. */
function speed(plans: readonly Uint8Array[], verdict: Verdict): number {
  const rates = plans.map((bytes) => {
    const start = performance.now()
    let count = 0
    for (; performance.now() - start < 1; count++) verdict(bytes)
    return (1000 * count) / (performance.now() - start)
  })
  return rates.toSorted((a, b) => a - b)[rates.length >> 1]!
}

/** Valid plans: all must be accepted, and the oracle must find nothing in those that it judges. */
function validScore(plans: readonly ExecutionPlan[], verdict: Verdict, judged: number) {
  const falseRejects: string[] = []
  let breached = 0
  for (const [i, plan] of plans.entries()) {
    const bytes = writePlan(plan)
    const rule = verdict(bytes)
    if (rule !== undefined) falseRejects.push(`plan ${i}: ${rule}`)
    if (i < judged && judge(bytes)) breached++
  }
  return { plans: plans.length, falseRejects, judged: Math.min(judged, plans.length), breached }
}

/** `more`: plans beside those that are made up, whose bytes are flipped as well. */
export function scoreVerifier(options: VerifierScoreOptions, more: readonly NamedPlan[] = []): VerifierScore {
  const verdict = options.verdict ?? verifierVerdict
  const real = options.rules ? [] : [...topologyPlans(), ...more]
  const valid = randomPlans(options.valid, 1)
  const bases = [...valid.slice(0, 150), ...topologyPlans().map(({ plan }) => plan)].map(baseOf)
  const names = options.rules ?? Object.keys(mutators)
  const total = names.length + real.length
  const rules = names.map((rule, i) => {
    options.onProgress?.(i, total, rule)
    return ruleRow(rule, i + 1, bases, options)
  })
  const flips = real.map(({ name, plan }, i) => {
    options.onProgress?.(names.length + i, total, name)
    return flipRow(name, 1000 + i, baseOf(plan), options)
  })
  options.onProgress?.(total, total, 'valid plans')
  const validity = validScore(valid, verdict, 4 * options.judged)
  const plansPerSecond = speed(valid.slice(0, 300).map(writePlan), verdict)
  const rows = [...rules, ...flips]
  const falseAccepts = rows.reduce((sum, row) => sum + row.falseAccepts.length, 0)
  return {
    pass:
      falseAccepts === 0 && !validity.falseRejects.length && !validity.breached && rows.every(({ mutants }) => mutants),
    mutants: rows.reduce((sum, { mutants }) => sum + mutants, 0),
    falseAccepts,
    rules,
    flips,
    valid: validity,
    plansPerSecond,
  }
}

const pad = (text: string | number, width: number) => String(text).padStart(width)

/** The score as lines for people. */
export function printVerifierScore(score: VerifierScore): string {
  const { rules, flips, valid, plansPerSecond } = score
  const width = Math.max(...[...rules, ...flips].map(({ name }) => name.length)) + 2
  const line = ({ name, mutants, refused, byName, same, sound, falseAccepts, judged, breached }: Row, rule: boolean) =>
    [
      name.padEnd(width),
      pad(mutants, 8),
      pad(refused, 8),
      pad(rule ? byName : '', 8),
      pad(same, 6),
      pad(sound, 7),
      pad(falseAccepts.length, 7),
      rule ? pad(`${breached}/${judged}`, 9) : '',
    ].join('')
  const head = `${''.padEnd(width)} mutants refused by rule  same  sound  false   oracle`
  const failures = [...rules, ...flips].flatMap(({ name, falseAccepts }) =>
    falseAccepts.slice(0, 5).map(({ breach, reason }) => `FALSE ACCEPT ${name}: ${breach}: ${reason}`),
  )
  return [
    head,
    ...rules.map((row) => line(row, true)),
    '',
    'single bytes of plans',
    ...flips.map((row) => line(row, false)),
    '',
    ...failures,
    ...valid.falseRejects.slice(0, 5).map((each) => `FALSE REJECT ${each}`),
    `${score.mutants} mutants, ${score.falseAccepts} false accepts`,
    `${valid.plans} valid plans, ${valid.falseRejects.length} false rejects; the oracle breached ${valid.breached} of ${valid.judged}`,
    `${Math.round(plansPerSecond)} plans a second, the least is ${MIN_PLANS_PER_SECOND}`,
    score.pass ? 'pass' : 'FAIL',
  ].join('\n')
}
