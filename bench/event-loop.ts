/**
 * How long the event loop is held while 16 requests generate: the delay of a 1 ms timer beyond its millisecond.
 * `npm run bench:event-loop [package]`; prints one JSON object, beside a control without requests in the same process.
 */
import { open } from '../index.ts'
import { quantile, randomPrompts } from './measure.ts'
import { storyteller } from './storyteller.ts'

async function timerDelays(until: Promise<unknown>): Promise<number[]> {
  const delays: number[] = []
  let running = true
  const stop = () => {
    running = false
  }
  until.then(stop, stop)
  while (running) {
    const start = performance.now()
    await new Promise((resolve) => setTimeout(resolve, 1))
    delays.push(Math.max(0, performance.now() - start - 1))
  }
  return delays
}

const summary = (delays: readonly number[]) => ({
  samples: delays.length,
  p50: quantile(delays, 0.5),
  p99: quantile(delays, 0.99),
  max: quantile(delays, 1),
})

await using model = await open(process.argv[2] ?? (await storyteller()), { maxSlots: 16 })
const idle = await timerDelays(new Promise((resolve) => setTimeout(resolve, 2000)))
const requests = randomPrompts(16, 200, model.info.vocab).map((ids) =>
  model.generate(ids, { maxTokens: 400, temperature: 0.8, seed: 1, ignoreEos: true }).result(),
)
const busy = await timerDelays(Promise.all(requests))
process.stdout.write(
  `${JSON.stringify({ unit: 'ms', idle: summary(idle), generating: summary(busy) }, undefined, 2)}\n`,
)
