import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { codeDigest, kernelDigest } from './code.ts'

describe('the digest of the code', () => {
  it('changes with what decides a verdict, and with nothing else', async () => {
    const root = await mkdtemp(join(tmpdir(), 'ingot-code-'))
    for (const part of ['abi', 'plans', 'models', 'compute', 'inference', 'native/core', 'native/test', 'parity'])
      await mkdir(join(root, part), { recursive: true })
    for (const file of ['errors.ts', 'index.ts', 'abi/a.ts', 'native/core/b.cc', 'native/test/t.cc'])
      await writeFile(join(root, file), file)
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

  it('of kernels follows the backend and its binary', async () => {
    const root = await mkdtemp(join(tmpdir(), 'ingot-kernels-'))
    await mkdir(join(root, 'build/Release'), { recursive: true })
    await cp(join(packageRoot(), 'build/Release/ingot.node'), join(root, 'build/Release/ingot.node'))
    const cpu = await kernelDigest('cpu')
    expect(await kernelDigest('cpu', root)).toBe(cpu)
    await writeFile(join(root, 'build/Release/ingot.node'), 'other')
    expect(await kernelDigest('cpu', root)).not.toBe(cpu)
    expect(await kernelDigest('reference')).not.toBe(cpu)
    await rm(root, { recursive: true })
  })
})
