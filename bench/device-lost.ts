/**
 * What a process sees whose device is lost in the middle of a step: `device-lost.js <package>`, with the library of
 * native/test/cuda/preload/lose_device.cu preloaded. Prints one JSON object, from check to what failed of it, if anything.
 * bench/device.ts runs it, and ends it where a request waits for ever.
 */
import { open } from '../index.ts'

const path = process.argv[2]!
const sequences = 16
const sizes = { maxSlots: sequences, contextTokens: 256 }

/** The code that a promise is rejected with. */
const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'no error',
    (error: unknown) => (error as { code?: string }).code ?? String(error),
  )

await using other = await open(path, { ...sizes, backend: 'cpu' })
const story = async () => (await other.generate('Once', { maxTokens: 20, seed: 1 }).result()).text
const before = await story()

const model = await open(path, { ...sizes, backend: 'cuda' })
const second = await open(path, { ...sizes, backend: 'cuda' })
const endless = { maxTokens: 250, ignoreEos: true }
const streams = Array.from({ length: 2 * sequences }, (_, seed) => model.generate('Once', { ...endless, seed }))
const ends = streams.map((stream) => codeOf(stream.result()))
await streams[0]![Symbol.asyncIterator]().next()
const { steps } = model.stats()
process.kill(process.pid, 'SIGUSR2')
const codes = await Promise.all(ends)
const late = await codeOf(model.generate('Once', endless).result())
const beside = await codeOf(second.generate('Once', endless).result())
const reopened = await codeOf(open(path, { ...sizes, backend: 'cuda' }))
await model.dispose()
await second.dispose()

const expected = (got: string, ...codes: string[]) => (codes.includes(got) ? undefined : `${got} instead of ${codes}`)
const report = {
  'a step had run': steps > 0 ? undefined : 'none',
  'requests under way and waiting': expected([...new Set(codes)].join(), 'DEVICE_LOST'),
  'a later request': expected(late, 'DEVICE_LOST'),
  'another model on the device': expected(beside, 'DEVICE_LOST'),
  'opening one there': expected(reopened, 'BACKEND_UNAVAILABLE'),
  'a model on the CPU': (await story()) === before ? undefined : 'its output changed',
}
process.stdout.write(`${JSON.stringify(report, (_, failure) => failure ?? null)}\n`)
