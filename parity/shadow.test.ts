/** The dual path over real backends and packages: agreement to the bit, within tolerance, and what happens without either. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon, packageRoot } from '../abi/native.ts'
import { compile, type Model, type OpenOptions, open, type ShadowEvent, type ShadowOptions } from '../index.ts'

let folder: string
const paths = { small: '', q8: '', large: '', other: '' }
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-shadow-'))
  const make = async (name: keyof typeof paths, checkpoint: string, quantize: 'none' | 'q8' = 'none') => {
    const { path } = await compile(join(packageRoot(), checkpoint), { out: join(folder, `${name}.ingot`), quantize })
    paths[name] = path
  }
  await make('small', 'checkpoints/storyteller-1m')
  await make('q8', 'checkpoints/storyteller-1m', 'q8')
  await make('large', 'checkpoints/storyteller-7m')
  await make('other', 'parity/goldens/llama')
}, 60_000)
afterAll(() => rm(folder, { recursive: true }))

const until = '2999-12-31'
const prompts = ['Once upon a time', 'The fox said to the crow: "', 'A long way to the castle there was a', 'Bread']
const tell = (model: Model, maxTokens = 40) =>
  Promise.all(
    prompts.map(async (prompt, i) => {
      const options = { maxTokens, seed: i, temperature: i % 2 ? 0.8 : 0, ignoreEos: true }
      return (await model.generate(prompt, options).result()).text
    }),
  )

/** Stories as they are without a shadow, and with one, twice; and what it says once it has been idle after both. */
async function shadowed(path: string, shadow: Omit<ShadowOptions, 'until'>, sizes: OpenOptions = {}, maxTokens = 40) {
  const options = { maxSlots: 4, contextTokens: 128, ...sizes }
  const events: ShadowEvent[] = []
  const onEvent = (event: ShadowEvent) => events.push(event)
  const plain = await withModel(path, options, (model) => tell(model, maxTokens))
  return await withModel(path, { ...options, shadow: { until, onEvent, ...shadow } }, async (model) => {
    const told = async () => {
      const stories = await tell(model, maxTokens)
      while (model.stats().shadow!.comparing) await new Promise((resolve) => setImmediate(resolve))
      return stories
    }
    const stories = await told()
    return { plain, stories, again: await told(), stats: model.stats(), events }
  })
}
async function withModel<T>(path: string, options: OpenOptions, work: (model: Model) => Promise<T>): Promise<T> {
  await using model = await open(path, options)
  return await work(model)
}

it.each(addon().machine().available)('%s has the bits of portable code in every compared step', async (isa) => {
  const shadow = { sample: 1, isa: 'portable' }
  const { plain, stories, stats } = await shadowed(paths.small, shadow, { isa, preemptEvery: 9, prefillChunk: 5 })
  expect(stories).toEqual(plain)
  expect(stats.shadow).toMatchObject({ backend: 'cpu', isa: 'portable', divergences: 0, ties: 0, worst: 0, allowed: 0 })
  expect(stats.shadow!.compared).toBeGreaterThan(1)
})

it('the reference, and other weights of the same model, agree within what they round', async () => {
  for (const shadow of [{ backend: 'reference' }, { package: paths.q8 }]) {
    const { plain, stories, stats } = await shadowed(paths.small, { sample: 1, ...shadow }, {}, 12)
    expect(stories).toEqual(plain)
    const { compared, divergences, worst, allowed } = stats.shadow!
    expect([compared > 0, divergences]).toEqual([true, 0])
    expect(worst).toBeGreaterThan(0)
    expect(worst).toBeLessThan(allowed / 2)
    expect(allowed).toBeLessThan(2.5)
  }
})

describe('a model that is not the one that is trusted', () => {
  it('is demoted, and new requests get what the trusted one says', async () => {
    const { plain, stories, again, stats, events } = await shadowed(paths.large, { sample: 1, package: paths.small })
    expect(stories).toEqual(plain)
    expect(stats.shadow).toMatchObject({ demoted: true, ended: { code: 'divergences_exceeded' } })
    expect(events.map(({ type }) => type)).toEqual(['divergence', 'demoted'])
    expect(again).toEqual(await withModel(paths.small, { maxSlots: 4, contextTokens: 128 }, tell))
    expect(again).not.toEqual(plain)
    expect(stats.trusted!.sampledTokens).toBe(160)
  })

  it('is refused when it is opened: another vocabulary, a date that has passed, more than an option may be', async () => {
    const ask = (shadow: object) => open(paths.small, { contextTokens: 64, shadow: { until, ...shadow } })
    await expect(ask({ package: paths.other })).rejects.toMatchObject({ code: 'SHADOW_MISMATCH' })
    await expect(ask({ package: join(folder, 'none') })).rejects.toMatchObject({ code: 'FILE_MISSING' })
    await expect(ask({ until: '2026-01-31' })).rejects.toMatchObject({ code: 'SHADOW_EXPIRED' })
    await expect(ask({ backend: 'abacus' })).rejects.toMatchObject({ code: 'BACKEND_UNKNOWN' })
    await expect(ask({ isa: 'abacus' })).rejects.toMatchObject({ code: 'ISA_UNAVAILABLE' })
    await expect(ask({ sample: 2 })).rejects.toMatchObject({ code: 'OPTION_INVALID', details: { option: 'shadow' } })
  })
})
