/**
 * Whether open, generate, dispose leaks: resident memory after 100 cycles (warm) and after 1,000.
 * `npm run bench:lifecycle [cycles]`; prints one JSON object.
 */
import { open } from '../index.ts'
import { storyteller } from './storyteller.ts'

const cycles = Number(process.argv[2] ?? 1000)
const warm = Math.ceil(cycles / 10)
const path = await storyteller()

async function cycle(): Promise<void> {
  await using model = await open(path, { maxSlots: 2 })
  await model.generate('Once upon a time', { maxTokens: 4, temperature: 0 }).result()
}

function residentMegabytes(): number {
  globalThis.gc?.()
  globalThis.gc?.()
  return process.memoryUsage().rss / 1e6
}

const samples: { cycle: number; megabytes: number }[] = []
for (let index = 1; index <= cycles; index++) {
  await cycle()
  if (index % warm === 0) {
    samples.push({ cycle: index, megabytes: residentMegabytes() })
    process.stderr.write(`${index} cycles, ${residentMegabytes().toFixed(1)} MB\n`)
  }
}
const [first, last] = [samples[0]!.megabytes, samples.at(-1)!.megabytes]
process.stdout.write(`${JSON.stringify({ cycles, growth: last / first - 1, samples }, undefined, 2)}\n`)
