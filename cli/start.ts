/** The first run: compiles the shipped checkpoint, tells a story, and says what ran. `npm start ["prompt"]`. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { packageRoot } from '../abi/native.ts'
import { compile, open } from '../index.ts'
import { bold, dim, finish, mebibytes, progress } from './terminal.ts'

await finish(async () => {
  const checkpoint = join(packageRoot(), 'checkpoints', 'storyteller-7m')
  const out = join(packageRoot(), 'build', 'storyteller-7m.ingot')
  await mkdir(join(out, '..'), { recursive: true })
  const bar = progress({}, 'compile checkpoints/storyteller-7m')
  await compile(checkpoint, { out, onProgress: ({ done, total, what }) => bar(done, total, what) })

  await using model = await open(out, { maxSlots: 1 })
  const prompt = process.argv[2] ?? 'Once upon a time'
  process.stdout.write(`\n${bold(prompt)}`)
  const story = model.generate(prompt, { maxTokens: 300, temperature: 0.7, topP: 0.95, seed: 7 })
  for await (const { text } of story) process.stdout.write(text)
  const { usage, timings } = await story.result()

  const facts = {
    plan: model.info.hash,
    backend: `${model.device.backend}, ${model.device.description}`,
    speed: `${timings.tokensPerSecond.toFixed(0)} tokens/s (${usage.completionTokens} tokens, first after ${timings.firstTokenMs.toFixed(0)} ms)`,
    memory: `${mebibytes(process.resourceUsage().maxRSS * 1024)} at its peak`,
  }
  process.stdout.write(
    `\n\n${Object.entries(facts)
      .map(([name, value]) => `${dim(name.padEnd(8))} ${value}`)
      .join('\n')}\n`,
  )
  return true
})
