/** The packed vocabulary that a package holds beside a large tokenizer.json; see abi/vocabulary.ts. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { packageRoot } from '../abi/native.ts'
import { fail } from '../errors.ts'

/** A tokenizer.json below this is parsed in less than 20 ms where it is needed. */
export const LARGE_TOKENIZER_BYTES = 2 ** 20

/** Packs the vocabulary of the tokenizer.json at `path`, off the event loop; undefined when it is not understood. */
export async function vocabularyOf(path: string): Promise<Uint8Array | undefined> {
  const script = join(packageRoot(), 'dist', 'models', 'vocabulary-worker.js')
  if (!existsSync(script)) throw fail('WORKER_FAILED', { reason: `${script} is not built; run "npm run build"` })
  const worker = new Worker(script, { workerData: path })
  try {
    return await new Promise((resolve) => {
      worker.once('message', resolve)
      // Not JSON: the tokenizer is refused where it is used.
      worker.once('error', () => resolve(undefined))
    })
  } finally {
    await worker.terminate()
  }
}
