import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { backends } from '../compute/backends.ts'
import type { Backend } from '../compute/device.ts'
import { kernelDigest } from '../compute/kernels.ts'
import { codeDigest, kernelsOf, recordCode, recordedCode } from './code.ts'

describe('the digest of the code', () => {
  /** Sources, and what tsc made of them. */
  async function checkout(): Promise<string> {
    const root = await mkdtemp(join(tmpdir(), 'ingot-code-'))
    const folders = ['abi', 'plans', 'models', 'compute', 'inference', 'parity']
    for (const part of [...folders, 'native/core', 'native/test', ...folders.map((name) => `dist/${name}`)])
      await mkdir(join(root, part), { recursive: true })
    for (const file of ['errors.ts', 'index.ts', 'abi/a.ts', 'native/core/b.cc', 'native/test/t.cc'])
      await writeFile(join(root, file), file)
    for (const file of ['errors.js', 'index.js', 'abi/a.js', 'abi/a.test.js'])
      await writeFile(join(root, 'dist', file), file)
    return root
  }

  it('changes with what decides a verdict, and with nothing else', async () => {
    const root = await checkout()
    const first = await codeDigest(root)
    const change = async (file: string, text: string) => {
      await writeFile(join(root, file), text)
      return codeDigest(root)
    }
    expect(first).toMatch(/^[0-9a-f]{64}$/)
    expect(await change('native/test/t.cc', 'other')).toBe(first)
    expect(await change('parity/x.test.ts', 'other')).toBe(first)
    expect(await change('abi/README.md', 'other')).toBe(first)
    const second = await change('native/core/b.cc', 'other')
    expect(second).not.toBe(first)
    expect(await change('parity/tolerances.ts', 'looser')).not.toBe(second)
    await rm(root, { recursive: true })
    await expect(codeDigest(root)).rejects.toThrow()
  })

  it('is that of its sources in a package that has none, unless the package is not as it was built', async () => {
    const root = await checkout()
    const sources = await codeDigest(root)
    await expect(recordedCode(root)).rejects.toMatchObject({ code: 'FILE_MISSING' })
    await recordCode(root)
    for (const source of ['errors.ts', 'abi', 'native', 'dist/abi/a.test.js'])
      await rm(join(root, source), { recursive: true })
    expect(await codeDigest(root)).toBe(sources)
    await writeFile(join(root, 'dist/abi/a.js'), 'looser')
    await expect(codeDigest(root)).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
    await rm(root, { recursive: true })
  })

  it('stands for the kernels of a backend that does not say what they are', async () => {
    expect(await kernelsOf(backends.null)).toBe(await codeDigest())
    expect(await kernelsOf(backends.cpu)).toBe(await kernelDigest(backends.cpu))
  })
})

describe('the digest of kernels', () => {
  it('follows the name, the table and the bytes of the files of a backend', async () => {
    const root = await mkdtemp(join(tmpdir(), 'ingot-kernels-'))
    const file = join(root, 'kernels.so')
    await writeFile(file, 'code')
    const backend = (change: Partial<Backend> = {}): Backend => ({
      ...backends.cpu,
      kernelFiles: () => [file],
      ...change,
    })
    const first = await kernelDigest(backend())
    expect(await kernelDigest(backend())).toBe(first)
    expect(await kernelDigest(backend({ name: 'gpu' }))).not.toBe(first)
    const { sample, ...table } = backends.cpu.table!
    expect(await kernelDigest(backend({ table: { ...table, sample: { unsupported: 'none' } } }))).not.toBe(first)
    await writeFile(file, 'other')
    expect(await kernelDigest(backend())).not.toBe(first)
    await rm(root, { recursive: true })
  })
})
