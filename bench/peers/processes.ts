/** Runs one measurement in a process of its own. */
import { spawn } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { packageRoot } from '../../abi/native.ts'
import { peersFolder } from './prepare.ts'
import type { Answer, Side, Task } from './scenarios.ts'

const programs: Readonly<Record<Side, string>> = {
  ingot: join(packageRoot(), 'dist', 'bench', 'peers', 'ours.js'),
  peer: join(peersFolder(), 'peer.js'),
}

/** Longest that one measurement may take: a context of 8,192 tokens on two slow cores. */
const TIMEOUT_MS = 15 * 60_000

/** The process's answer. Rejects with what it wrote to stderr when it fails. */
export function runTask(side: Side, task: Task): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [programs[side], JSON.stringify(task)], { timeout: TIMEOUT_MS })
    const [out, errors]: [string[], string[]] = [[], []]
    child.stdout.on('data', (data) => out.push(String(data)))
    child.stderr.on('data', (data) => errors.push(String(data)))
    child.on('error', reject)
    child.on('close', (code, signal) => {
      const text = out.join('').trim().split('\n').at(-1) ?? ''
      if (code === 0 && text.startsWith('{')) resolve(JSON.parse(text) as Answer)
      else reject(new Error(`${side} ended with ${signal ?? code}: ${errors.join('').trim().slice(-2000)}`))
    })
  })
}

/** Reads a file, or those of a folder, so that the page cache holds them: what starts next starts warm. */
export async function warm(path: string): Promise<void> {
  if ((await stat(path)).isDirectory()) {
    for (const name of await readdir(path)) await warm(join(path, name))
    return
  }
  const bytes = createReadStream(path, { highWaterMark: 2 ** 22 })
  for await (const _ of bytes);
}
