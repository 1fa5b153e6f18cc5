/** A kernel table cannot have a hole: tsc refuses a missing opcode, the linker refuses a kernel that is not written. */
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { opNames } from '../abi/ops/index.ts'
import { cpuTable } from './cpu.ts'
import { generateOps } from './generate.ts'
import type { KernelTable } from './table.ts'

describe('tsc', () => {
  const options: ts.CompilerOptions = {
    target: ts.ScriptTarget.ES2023,
    module: ts.ModuleKind.NodeNext,
    strict: true,
    noEmit: true,
    allowImportingTsExtensions: true,
    skipLibCheck: true,
    types: [],
  }

  /** Messages of the compiler for a file of this folder that does not exist on disk. */
  function compile(source: string): string[] {
    const path = join(packageRoot(), 'compute', 'table-of-a-test.ts')
    const host = ts.createCompilerHost(options)
    const { getSourceFile, fileExists } = host
    host.fileExists = (name) => name === path || fileExists(name)
    host.getSourceFile = (name, version, ...rest) =>
      name === path ? ts.createSourceFile(name, source, version) : getSourceFile(name, version, ...rest)
    const diagnostics = ts.getPreEmitDiagnostics(ts.createProgram([path], options, host))
    return diagnostics.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'))
  }

  const table = (names: readonly string[]) =>
    `import type { KernelTable } from './table.ts'
     export const table = { ${names.map((name) => `${name}: { unsupported: 'not in a test' }`).join(', ')} } as const satisfies KernelTable`

  test('accepts a table with an entry for every opcode', () => {
    expect(compile(table(opNames))).toEqual([])
  })

  test('refuses a table with a hole, and names it', () => {
    const [message, ...others] = compile(table(opNames.filter((name) => name !== 'rope')))
    expect(message).toContain('rope')
    expect(others).toEqual([])
  })

  test('refuses an opcode that does not exist', () => {
    expect(compile(table([...opNames, 'ropes'])).join()).toContain('ropes')
  })
})

describe('the linker', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'ingot-table-'))
    for (const name of ['core', 'cpu', 'gen']) {
      mkdirSync(join(folder, 'native', name), { recursive: true })
      const header = (path: string) => !path.endsWith('.cc')
      cpSync(join(packageRoot(), 'native', name), join(folder, 'native', name), { recursive: true, filter: header })
    }
    cpSync(join(packageRoot(), 'native/cpu/table.cc'), join(folder, 'native/cpu/table.cc'))
    writeFileSync(join(folder, 'native/gen/written.inc'), generateOps('cpu', cpuTable))
    // Stands for the kernels' own files: it defines what the real table declares.
    writeFileSync(
      join(folder, 'native/cpu/written.cc'),
      `#include "../core/kernel.h"
       namespace ingot::cpu::portable {
       #define KERNEL(id, name) void name(const Context&, const Call&) {}
       #include "../gen/written.inc"
       extern const KernelTable table;
       }
       int main() { return ingot::cpu::portable::table.kernels[1] ? 0 : 1; }`,
    )
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  /** Links a program against the table, as generated from `kernels`. */
  function link(kernels: KernelTable) {
    writeFileSync(join(folder, 'native/gen/cpu_ops.inc'), generateOps('cpu', kernels))
    const program = join(folder, 'program')
    const sources = ['table', 'written'].map((name) => join(folder, 'native/cpu', `${name}.cc`))
    const { status, stderr } = spawnSync(
      'g++',
      ['-std=c++20', '-DINGOT_ISA=portable', '-DINGOT_ISA_portable=1', ...sources, '-o', program],
      { encoding: 'utf8' },
    )
    return { status, stderr, program }
  }

  test('accepts the kernels that are written', () => {
    const { status, stderr, program } = link(cpuTable)
    expect(stderr).toBe('')
    expect(status).toBe(0)
    execFileSync(program)
  })

  test('refuses a kernel that is declared and not written, and names it', () => {
    const { status, stderr } = link({ ...cpuTable, moe: { symbol: 'moe_unwritten', version: 1, weights: [] } })
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/undefined reference to .*moe_unwritten/)
    expect(stderr).not.toMatch(/undefined reference to .*rms_norm/)
  })
})
