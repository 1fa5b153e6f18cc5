/**
 * What one step costs on the host: scheduling, packing, hand-over and delivery at 32 slots on the `null` backend, which
 * computes nothing. `npm run bench:host-overhead`; prints one JSON object.
 */
import { open } from '../index.ts'
import { randomPrompts, spread } from './measure.ts'
import { storyteller } from './storyteller.ts'

const slots = 32
const tokens = 500
await using model = await open(await storyteller(), { backend: 'null', maxSlots: slots })

async function microsecondsPerStep(): Promise<number> {
  const before = model.stats().steps
  const start = performance.now()
  await Promise.all(
    randomPrompts(slots, 4, model.info.vocab).map((ids) =>
      model.generate(ids, { maxTokens: tokens, temperature: 0, ignoreEos: true }).result(),
    ),
  )
  return ((performance.now() - start) * 1000) / (model.stats().steps - before)
}

await microsecondsPerStep()
const samples: number[] = []
for (let repeat = 0; repeat < 9; repeat++) samples.push(await microsecondsPerStep())
process.stdout.write(`${JSON.stringify({ unit: 'microseconds per step', slots, ...spread(samples) }, undefined, 2)}\n`)
