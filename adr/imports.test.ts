/** Holds the import table of ADR 0001 item 13: who may import whom, in TypeScript and in C++. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'

const root = packageRoot()

/** Folder (or root file) -> what it may import besides itself. Tests may import anything. */
const allowed: Record<string, readonly string[]> = {
  'errors.ts': [],
  abi: ['errors.ts'],
  plans: ['errors.ts', 'abi'],
  models: ['errors.ts', 'abi', 'plans'],
  compute: ['errors.ts', 'abi', 'plans'],
  inference: ['errors.ts', 'abi', 'plans', 'compute'],
  'index.ts': ['errors.ts', 'abi', 'plans', 'models', 'compute', 'inference'],
  parity: ['errors.ts', 'abi', 'plans', 'models', 'compute', 'inference', 'index.ts'],
  bench: ['errors.ts', 'abi', 'plans', 'models', 'compute', 'inference', 'index.ts', 'parity'],
  cli: ['errors.ts', 'abi', 'plans', 'models', 'compute', 'inference', 'index.ts', 'parity', 'bench'],
}

const nativeAllowed: Record<string, readonly string[]> = {
  gen: [],
  core: ['gen'],
  cpu: ['core', 'gen'],
  cuda: ['core', 'gen'],
  addon: ['core', 'gen', 'cpu'],
}

/** Names of model families that scheduling, state and execution must not know. */
const architectureNames = /\b(llama|qwen\d?|mistral|gemma\d?|gpt2|phi3|mamba2|bert)\b/i

function filesBelow(folder: string, pattern: RegExp): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && pattern.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
}

const part = (file: string) => file.split('/')[0]!

function importsOf(file: string): string[] {
  const { importedFiles } = ts.preProcessFile(readFileSync(join(root, file), 'utf8'), true, true)
  return importedFiles
    .map(({ fileName }) => fileName)
    .filter((name) => name.startsWith('.'))
    .map((name) => relative(root, join(root, dirname(file), name)))
}

function includesOf(file: string): string[] {
  const matches = readFileSync(join(root, file), 'utf8').matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)
  return [...matches].map(([, name]) => relative(root, join(root, dirname(file), name!)))
}

const sources = Object.keys(allowed).flatMap((name) =>
  name.endsWith('.ts') ? [name] : filesBelow(name, /(?<!\.test|\.d|\.test-\w+)\.ts$/),
)

describe('imports', () => {
  it('follow the table', () => {
    expect(sources.length).toBeGreaterThan(40)
    const broken = sources.flatMap((file) =>
      importsOf(file)
        .filter((target) => part(target) !== part(file) && !allowed[part(file)]!.includes(part(target)))
        .map((target) => `${file} imports ${target}`),
    )
    expect(broken).toEqual([])
  })

  it('follow the table in native code', () => {
    const native = Object.keys(nativeAllowed).flatMap((name) => filesBelow(`native/${name}`, /\.(h|cc|cu|inc)$/))
    const broken = native.flatMap((file) =>
      includesOf(file)
        .map((target) => [target, target.split('/')[1]!, file.split('/')[1]!] as const)
        .filter(([, to, from]) => to !== from && !nativeAllowed[from]!.includes(to))
        .map(([target]) => `${file} includes ${target}`),
    )
    expect(broken).toEqual([])
  })

  it('name every folder: none exists that the table does not know', () => {
    const known = new Set([...Object.keys(allowed), 'adr', 'native', 'checkpoints'])
    const folders = readdirSync(root, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && !/^(\.|node_modules$|dist$|build)/.test(entry.name))
      .map((entry) => entry.name)
    expect(folders.filter((name) => !known.has(name) && !name.endsWith('.ingot'))).toEqual([])
  })

  it('keep architectures out of scheduling, state and execution', () => {
    const generic = [
      ...filesBelow('inference', /(?<!\.test)\.ts$/),
      ...filesBelow('native/core', /\.(h|cc)$/),
      ...filesBelow('native/cpu', /\.(h|cc)$/),
      ...filesBelow('native/cuda', /\.(h|cc|cu)$/),
    ]
    const naming = generic.filter((file) => architectureNames.test(readFileSync(join(root, file), 'utf8')))
    expect(naming).toEqual([])
  })
})
