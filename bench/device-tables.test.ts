/** Results of a device: what stands in bench/results is what the command draws of the file beside it. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { stepBytes, stepShape } from '../compute/work.ts'
import { barTable } from './device-bars.ts'
import { type DeviceResults, readDocument, readResults, withWork } from './device-results.ts'
import { draw } from './device-tables.ts'
import { planOf } from './device-work.ts'

const folder = join(packageRoot(), 'bench', 'results')
const names = readdirSync(folder)
  .filter((file) => /^cuda-.*\.json$/.test(file))
  .map((file) => file.replace(/\.json$/, ''))
const results = await readResults(join(folder, `${names[0]}.json`))

it.each(names)('%s is as the command draws it', async (name) => {
  const drawn = draw(name, await readResults(join(folder, `${name}.json`)))
  expect(drawn.size).toBeGreaterThan(1)
  for (const [file, text] of drawn) {
    expect(readFileSync(join(folder, file), 'utf8'), `${file}: run node dist/bench/device-report.js`).toBe(text)
    expect(text.replaceAll('http://www.w3.org/2000/svg', '')).not.toMatch(/https?:|NaN|Infinity|undefined/)
  }
})

describe('a plan without its weights', () => {
  const found = () =>
    results.runs.flatMap(({ bench }) => bench).findLast((row) => row.shape === 'Llama-3.2-1B' && row.steps)!

  it('says what the steps that were measured had to do', async () => {
    const row = found()
    const plan = await planOf(row.shape, 'none')
    const measured = results.runs
      .flatMap(({ bench }) => bench)
      .find(({ shape, quantize }) => shape === row.shape && quantize === 'none')!
    const { bytesPerStep, context, batch } = measured.report!.decode[0]!
    expect(stepBytes(plan, stepShape(batch, 1, context))).toBe(bytesPerStep)
    expect(readdirSync(tmpdir()).filter((file) => file.startsWith('ingot-shape-'))).toEqual([])
  })

  it('refuses a breakdown of other instructions', async () => {
    const row = { ...found(), steps: [{ batch: 1, wall: 1, host: 1, opcodes: { 'linear 1->2': 1 } }] }
    const document = { ...results.runs[0]!, bench: [row] }
    await expect(withWork('x.json', document)).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      details: { got: '"linear 1->2"' },
    })
  })
})

describe('the bars', () => {
  const bests = (speed: number | undefined, launches: number[], memory: number, gain = 1) =>
    barTable({
      speed: (_, quantize) => speed && (quantize === 'fp8' ? gain : 1) * speed,
      launches: () => launches,
      memory: () => memory,
    }).split('\n')
  it('are met, missed, or not measured', () => {
    expect(bests(1e9, [85, 85], 0.01, 1.7).filter((line) => /missed/.test(line))).toEqual([])
    expect(bests(1, [85, 134], 0.1).filter((line) => /\*\*missed\*\*/.test(line)).length).toBe(11)
    expect(bests(1e9, [85], 0, 1.456)).toContain(
      '| Llama-3.1-8B fp8 over bf16, 1 and 128 sequences | 1.46, 1.46 | - | - | - | 1.6, 1.3 | - | **missed** |',
    )
    expect(bests(undefined, [], 0).filter((line) => /not measured/.test(line)).length).toBe(12)
  })
})

describe('results', () => {
  it('keep the last of what several runs measured', async () => {
    const [run] = results.runs.filter(({ bench }) => bench.some(({ report }) => (report?.decode.length ?? 0) > 1))
    const twice = structuredClone(run!)
    for (const { report } of twice.bench) for (const cell of report?.decode ?? []) cell.tokensPerSecond = 77_777
    const both: DeviceResults = { ...results, runs: [run!, { ...twice, version: 'later' }] }
    const text = draw('x', both).get('x.md')!
    expect(text).toMatch(/decode, 128 sequences at 544 \| 77,777 .*later/)
    expect(text).not.toMatch(new RegExp(`decode, .*${run!.version} \\|$`, 'm'))
  })

  it('say how many checks passed', () => {
    const check = { quantize: 'none' as const, name: 'requests', pass: true }
    const checked = { ...results.runs[0]!, choices: [check, { ...check, pass: false }], faults: [] }
    expect(draw('x', { ...results, runs: [checked] }).get('x.md')).toMatch(
      /\| random choices \|(.*\n){2}.*\| 1 of 2 \|/,
    )
  })

  it('are refused where they are something else', async () => {
    const path = join(tmpdir(), `ingot-results-${process.pid}.json`)
    writeFileSync(path, '{"device": 1}')
    await expect(readDocument(path)).rejects.toMatchObject({ code: 'CONFIG_INVALID', details: { field: 'device' } })
    await expect(readResults(`${path}.none`)).rejects.toMatchObject({ code: 'FILE_MISSING' })
    rmSync(path)
  })
})
