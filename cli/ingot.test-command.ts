/** The command as a shell sees it, for tests: runs the built dist/. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../abi/native.ts'

/** What runs `ingot ...args` in a folder. */
export const ingotIn =
  (cwd: string) =>
  (...args: string[]) => {
    const main = join(packageRoot(), 'dist/cli/main.js')
    const env = { ...process.env, NO_COLOR: '1' }
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', cwd, env })
    return { status, stdout, stderr, json: () => JSON.parse(stdout) }
  }
