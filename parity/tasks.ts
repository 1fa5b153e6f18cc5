/**
 * Real work with a right answer: prompts of tasks.json (checkpoints/README.md), answered greedily and compared exactly.
 * It measures what a quantisation or a kernel costs in quality.
 */
import { z } from 'zod'
import { fail } from '../errors.ts'
import { readJson } from '../models/files.ts'

const schema = z.array(z.object({ prompt: z.string().min(1), answer: z.string() })).min(1)

/** What a run needs of an opened model; a turn ends where the model's own end-of-turn tokens say. */
export interface TaskModel {
  generate(
    prompt: string,
    options: { readonly maxTokens: number; readonly temperature: 0 },
  ): { result(): Promise<{ readonly text: string }> }
}

export interface TaskReport {
  readonly correct: number
  readonly total: number
  /** Every task that was answered wrong, in the order of the file. */
  readonly wrong: readonly { readonly index: number; readonly answer: string; readonly got: string }[]
}

export interface TaskOptions {
  /** Requests in flight. */
  readonly batch?: number
  readonly maxTokens?: number
  /** Only the first tasks of the file. */
  readonly limit?: number
  readonly onProgress?: (done: number, total: number, what: string) => void
}

/** Throws FILE_MISSING, JSON_INVALID or CONFIG_INVALID when `path` is not a task file. */
async function readTasks(path: string): Promise<z.infer<typeof schema>> {
  const parsed = schema.safeParse(await readJson(path, 'a task file'))
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  const expected = 'a list of { prompt, answer }'
  throw fail('CONFIG_INVALID', { path, field: issue.path.join('.') || 'the document', expected, got: issue.message })
}

/** Answers every task of the file at `path`, `batch` at a time, and counts the exact answers. */
export async function runTasks(model: TaskModel, path: string, options: TaskOptions = {}): Promise<TaskReport> {
  const { batch = 32, maxTokens = 128, limit, onProgress } = options
  const tasks = (await readTasks(path)).slice(0, limit)
  const answers: string[] = []
  let [next, done] = [0, 0]
  const worker = async () => {
    while (next < tasks.length) {
      const index = next++
      const { text } = await model.generate(tasks[index]!.prompt, { maxTokens, temperature: 0 }).result()
      answers[index] = text
      onProgress?.(++done, tasks.length, `task ${index}`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(batch, tasks.length) }, worker))
  const wrong = tasks.flatMap(({ answer }, index) =>
    answers[index] === answer ? [] : [{ index, answer, got: answers[index]! }],
  )
  return { correct: tasks.length - wrong.length, total: tasks.length, wrong }
}
