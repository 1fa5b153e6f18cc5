/**
 * How long the event loop is held while 16 requests generate: the delay of a 1 ms timer beyond its millisecond.
 * `npm run bench:event-loop [package]`; prints one JSON object, beside a control without requests in the same process, and once
 * more with a shadow.
 */
import { type OpenOptions, open } from '../index.ts'
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

const path = process.argv[2] ?? (await storyteller())

/** Delays while 16 requests generate. */
async function generating(options: OpenOptions): Promise<number[]> {
  await using model = await open(path, { maxSlots: 16, ...options })
  const requests = randomPrompts(16, 200, model.info.vocab).map((ids) =>
    model.generate(ids, { maxTokens: 400, temperature: 0.8, seed: 1, ignoreEos: true }).result(),
  )
  return await timerDelays(Promise.all(requests))
}

const idle = await timerDelays(new Promise((resolve) => setTimeout(resolve, 2000)))
const delays = {
  idle,
  generating: await generating({}),
  /** Every step that finds the shadow idle is computed again in portable code, and compared. */
  shadowed: await generating({ shadow: { until: '2999-12-31', sample: 1, isa: 'portable' } }),
}
const summaries = Object.fromEntries(Object.entries(delays).map(([name, values]) => [name, summary(values)]))
process.stdout.write(`${JSON.stringify({ unit: 'ms', ...summaries }, undefined, 2)}\n`)
