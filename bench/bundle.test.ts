/** The offline bundle, without node's own binary: unpacked elsewhere, it runs with nothing around it. Needs a build. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile } from '../index.ts'
import { codeDigest } from '../parity/code.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-bundle-'))
const script = join(packageRoot(), 'bench', 'bundle.sh')
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function bundle(...args: string[]) {
  const env = { ...process.env, INGOT_BUNDLE_NODE: 'none' }
  return execFileSync(script, args, { cwd: folder, env, stdio: 'pipe' })
}

it('holds all that a host without network needs, and knows the code that it was built from', async () => {
  await compile(join(packageRoot(), 'parity/goldens/llama'), { out: join(folder, 'llama.ingot') })
  bundle('app.tar', 'llama.ingot')
  execFileSync('tar', ['-xf', 'app.tar'], { cwd: folder })
  const app = join(folder, 'ingot')
  const run = (...args: string[]) => execFileSync(process.execPath, args, { cwd: app, env: {}, encoding: 'utf8' })
  const golden = 'parity/goldens/llama/golden.safetensors'
  const report = run('dist/cli/main.js', 'parity', 'models/llama.ingot', '--golden', golden, '--json', '--quiet')
  expect(JSON.parse(report)).toMatchObject({ pass: true, backend: 'cpu' })
  const code = pathToFileURL(join(app, 'dist/parity/code.js')).href
  expect(run('-p', `import('${code}').then(({ codeDigest }) => codeDigest()).then(console.log), ''`).trim()).toBe(
    await codeDigest(),
  )
  expect(readdirSync(app)).not.toContain('errors.ts')
  expect(readdirSync(join(app, 'bench', 'peers'))).toEqual(['pytorch.py'])
})

it('is refused where something is missing', () => {
  const refusal = (...args: string[]) => {
    try {
      return String(bundle(...args))
    } catch (error) {
      const { status, stderr } = error as { status: number; stderr: Buffer }
      return `${status} ${stderr}`
    }
  }
  expect(refusal()).toMatch(/^2 usage: /)
  expect(refusal('other.tar', 'nowhere.ingot')).toMatch(/^2 nowhere.ingot is no package/)
  expect(readdirSync(folder)).not.toContain('other.tar')
})
