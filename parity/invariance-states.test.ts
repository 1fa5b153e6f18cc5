/**
 * Invariance over every kind of state, recurrent ones included: bits of mixed requests under every variation. Each control
 * breaks one rule of state handling, and must be caught by the variation that is about it.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { BLOCK_TOKENS } from '../abi/state.ts'
import { type StepView, stepHeader } from '../abi/step.ts'
import type { LinkedPackage, Runner } from '../compute/device.ts'
import type { OpenOptions } from '../index.ts'
import { checkInvariance, mixedRequests, standardVariations, type Variation } from './invariance.ts'
import { openLinked, packageStates, stateCases, stateModels, VOCAB } from './states.ts'

const CONTEXT = 128
const blocksOfOne = CONTEXT / BLOCK_TOKENS
const requests = mixedRequests(32, VOCAB, 80)

let folder: string
const packages = new Map<string, LinkedPackage>()
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-invariance-'))
  for (const model of stateModels) packages.set(model.name, await packageStates(model, folder))
})
afterAll(() => rm(folder, { recursive: true }))

/** Without prefix hits where states cannot give them; without want of blocks where nobody needs a second one. */
function variationsOf(base: OpenOptions, prefixes: boolean, paged: boolean): Variation[] {
  return standardVariations(base, blocksOfOne).flatMap((variation): Variation[] => {
    if (prefixes || !variation.open.prefixCache) return [variation]
    if (variation.open.blocks === undefined || !paged) return []
    return [{ ...variation, name: 'preemption for want of blocks', open: { ...variation.open, prefixCache: false } }]
  })
}

it.each(stateCases)('$name on $backend', async ({ name, backend, rewinds }) => {
  const pkg = packages.get(name)!
  const paged = pkg.plan.states.some(({ kind }) => kind === 'paged')
  const variations = variationsOf({ backend, contextTokens: CONTEXT }, rewinds, paged)
  expect(variations.length).toBe(rewinds ? 12 : paged ? 11 : 10)
  const reports = await checkInvariance((options) => openLinked(pkg, options), requests, variations)
  expect(reports.filter(({ differing }) => differing.length > 0)).toEqual([])
  expect(reports.filter(({ happened }) => !happened)).toEqual([])
  expect(new Set(reports.map(({ launchesPerStep }) => launchesPerStep)).size).toBe(1)
})

/** `runner` as it would be if `spoil` were how steps are made. */
const broken =
  (spoil: (step: StepView, runner: Runner) => void) =>
  (runner: Runner): Runner => ({
    info: runner.info,
    step: (step, result) => {
      spoil(step, runner)
      return runner.step(step, result)
    },
    memory: () => runner.memory(),
    dispose: () => runner.dispose(),
  })
const word = stepHeader.word

describe('a control is caught', () => {
  const recurrent = ['convolution', 'ssm', 'delta rule', 'attention and recurrences']
  const paged = ['paged bf16', 'paged f32', 'paged q8', 'window of 20']
  /** Forgets the first state of sequences that go on with more of their prompt. */
  const forget = (step: StepView, runner: Runner) => {
    for (let s = 0; s < step.header[word.sequences]!; s++) {
      const count = step.sequenceStart[s + 1]! - step.sequenceStart[s]!
      const slot = step.sequenceSlot[s]!
      if (count > 1 && step.sequenceLength[s]! > count) runner.writeState!(0, slot, runner.readState!(0, slot).fill(0))
    }
  }
  const controls: [what: string, models: string[], variation: string, wrap: (runner: Runner) => Runner][] = [
    [
      'a slot that is not reset',
      recurrent.slice(0, 3),
      'batched in reverse, 7 slots',
      broken((step) => void (step.header[word.resets] = 0)),
    ],
    [
      'one slot for all',
      recurrent.slice(0, 3),
      'batched',
      broken((step) => void step.sequenceSlot.fill(1, 0, step.header[word.sequences])),
    ],
    [
      'state that is lost between the chunks of a prompt',
      recurrent.slice(0, 3),
      'prompts in chunks of 7',
      broken(forget),
    ],
    [
      'blocks that are swapped between sequences',
      [...paged, 'attention and recurrences'],
      'batched',
      broken((step) => {
        const width = step.header[word.blocks_per_sequence]!
        if (step.header[word.sequences]! > 1) step.blockTable.copyWithin(0, width, 2 * width)
      }),
    ],
  ]
  it.each(
    controls.flatMap(([what, models, variation, wrap]) => models.map((name) => ({ what, name, variation, wrap }))),
  )('$what, $name', async ({ name, variation, wrap }) => {
    const { backends, rewinds } = stateModels.find((model) => model.name === name)!
    const pkg = packages.get(name)!
    const all = variationsOf({ backend: backends[0], contextTokens: CONTEXT }, rewinds, false)
    const chosen = all.find((each) => each.name === variation)!
    const open = (options: OpenOptions) => openLinked(pkg, options, options === chosen.open ? wrap : (runner) => runner)
    const reports = await checkInvariance(open, requests.slice(0, 16), [all[0]!, chosen])
    expect(reports[1]!.differing.length).toBeGreaterThan(0)
  })
})
