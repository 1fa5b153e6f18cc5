import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { runTasks, type TaskModel } from './tasks.ts'

let folder: string
let path: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-tasks-'))
  path = join(folder, 'tasks.json')
  const tasks = Array.from({ length: 9 }, (_, i) => ({ prompt: `${i}`, answer: `${i * i}`, reference_output: '' }))
  await writeFile(path, JSON.stringify(tasks))
})
afterAll(() => rm(folder, { recursive: true }))

it('counts exact answers, a batch at a time', async () => {
  let [running, most] = [0, 0]
  const model: TaskModel = {
    generate: (prompt, options) => ({
      async result() {
        expect(options.temperature).toBe(0)
        most = Math.max(most, ++running)
        await new Promise((resolve) => setTimeout(resolve, 5 - (Number(prompt) % 5)))
        running--
        return { text: prompt === '4' ? '17' : `${Number(prompt) ** 2}` }
      },
    }),
  }
  const report = await runTasks(model, path, { batch: 3 })
  expect(report).toEqual({ correct: 8, total: 9, wrong: [{ index: 4, answer: '16', got: '17' }] })
  expect(most).toBe(3)
  expect((await runTasks(model, path, { limit: 4 })).total).toBe(4)
})

it('refuses what is not a task file', async () => {
  const other = join(folder, 'other.json')
  await writeFile(other, '[{"prompt": 3}]')
  const model: TaskModel = { generate: () => ({ result: async () => ({ text: '' }) }) }
  await expect(runTasks(model, other)).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
  await expect(runTasks(model, join(folder, 'absent'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
})
