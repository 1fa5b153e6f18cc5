import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../../abi/native.ts'
import type { ExecutionPlan, Register } from '../../plans/plan.ts'
import { writePlan } from '../../plans/write.ts'
import { judge } from './oracle.ts'
import { randomPlan, topologyPlans } from './plans.ts'
import { mutators } from './rules.ts'
import { printVerifierScore, scoreVerifier, type Verdict, verifierVerdict } from './verifier.ts'

const slice = { perRule: 6, perPlan: 12, valid: 50, judged: 1 }

describe('the verifier', () => {
  it('accepts no mutant that the oracle breaches, and every valid plan', () => {
    const score = scoreVerifier(slice)
    expect(score.pass, printVerifierScore(score)).toBe(true)
    expect(score.mutants).toBeGreaterThan(400)
  })

  it('accepts whatever graph the passes lower', () => {
    fc.assert(
      fc.property(randomPlan, (plan) => {
        expect(verifierVerdict(writePlan(plan))).toBeUndefined()
      }),
      { numRuns: 100 },
    )
  })

  it('is mutated in every rule of its table', () => {
    const source = readFileSync(join(packageRoot(), 'native/core/verify.cc'), 'utf8')
    const rules = [...source.matchAll(/^\/\/ {3}([a-z][a-z-]+) {2,}\S/gm)].map(([, rule]) => rule!)
    expect(new Set(Object.keys(mutators))).toEqual(new Set(rules))
  })

  // The negative control: a verifier that lacks one rule must lose its score, or the oracle sees nothing.
  it.each([
    'overlap',
    'definition',
    'liveness',
    'operand-columns',
    'operand-type',
    'tensor-bytes',
    'weight-scales',
    'state-size',
    'state-order',
    'state-capability',
  ])('fails without %s', (rule) => {
    const weakened: Verdict = (bytes) => {
      const refused = verifierVerdict(bytes)
      return refused === rule ? undefined : refused
    }
    const score = scoreVerifier({ ...slice, perPlan: 0, valid: 40, judged: 0, verdict: weakened, rules: [rule] })
    expect(score.falseAccepts).toBeGreaterThan(0)
    expect(score.pass).toBe(false)
    expect(printVerifierScore(score)).toContain(`FALSE ACCEPT ${rule}`)
  })
})

describe('the oracle', () => {
  const { plan } = topologyPlans()[0]!
  type Draft = { registers: { -readonly [K in keyof Register]: Register[K] }[] } & ExecutionPlan
  const breach = (spoil: (draft: Draft) => void) => {
    const draft = structuredClone(plan) as Draft
    spoil(draft)
    return judge(writePlan(draft))?.kind
  }
  const named = ({ registers }: Draft, name: RegExp) => registers.find((r) => name.test(r.name))!

  it('finds nothing in a sound plan', () => expect(breach(() => undefined)).toBeUndefined())
  it('sees a register that is read after it died', () => {
    expect(breach((draft) => void named(draft, /embed/).last--)).toBe('undefined')
  })
  it('sees a register that is written over', () => {
    expect(breach((draft) => void (named(draft, /0\.q/).offset = named(draft, /embed/).offset))).toBe('undefined')
  })
  it('sees an arena that ends too early', () => {
    expect(breach(({ memory }) => void ((memory.peak as number[])[0]! -= 64))).toBe('range')
  })
  it('sees rows that run into each other', () => {
    expect(breach((draft) => void (named(draft, /embed/).stride = 64))).toBe('overwritten')
  })
  it('sees a weight that is not all there', () => {
    expect(breach(({ tensors }) => void Object.assign(tensors[0]!, { bytes: 100 }))).toBe('range')
  })
  it('sees nothing but noise as unreadable', () => {
    expect(judge(new Uint8Array(64))?.kind).toBe('unreadable')
    expect(judge(new Uint8Array())?.kind).toBe('unreadable')
  })
})
