import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { generated } from './generate.ts'
import { packageRoot } from './native.ts'

const path = (name: string) => join(packageRoot(), name)
const text = (name: string) => readFileSync(path(name), 'utf8')
// The version whose text is committed: another one formats differently.
const hasFlatc = spawnSync('flatc', ['--version'], { encoding: 'utf8' }).stdout?.trim() === 'flatc version 2.0.8'

test('the committed headers are what the definitions generate', () => {
  for (const [file, content] of Object.entries(generated())) expect(readFileSync(file, 'utf8')).toBe(content)
})

test.runIf(hasFlatc)('the committed plan reader is what flatc generates', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ingot-flatc-'))
  try {
    execFileSync('flatc', ['--ts', '--ts-flat-files', '-o', folder, path('abi/plan.fbs')])
    const fresh = readFileSync(join(folder, 'plan_generated.ts'), 'utf8')
    expect(text('abi/gen/plan_generated.ts')).toBe(fresh)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

/** { Register: { name: 4, ... } } of native/gen/plan_fields.h, without the trailing underscores. */
function nativeFields(): Record<string, Record<string, number>> {
  const namespaces = text('native/gen/plan_fields.h').matchAll(/namespace (\w+) \{ enum Field : uint16_t \{([^}]*)\}/g)
  return Object.fromEntries(
    [...namespaces].map(([, table, body]) => [
      table!,
      Object.fromEntries([...body!.matchAll(/(\w+)_ = (\d+)/g)].map(([, field, offset]) => [field!, Number(offset)])),
    ]),
  )
}

/** The same of the reader that flatc generated: vtable offsets of tables, byte offsets of structs. */
function readerFields(): Record<string, Record<string, number>> {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  const classes = text('abi/gen/plan_generated.ts')
    .split(/^export class /m)
    .slice(1)
  return Object.fromEntries(
    classes.map((body) => {
      const table = body.match(/^\w+/)![0]
      const methods = [...body.matchAll(/^(?:static )?(\w+)\(.*\{\n\s*(.*)$/gm)].flatMap(([, name, line]) => {
        const vtable = line!.match(/__offset\(this\.bb_pos, (\d+)\)/)
        const struct = line!.match(/^return this\.bb!\.read\w+\(this\.bb_pos(?: \+ (\d+))?\)/)
        const offset = vtable?.[1] ?? (struct ? (struct[1] ?? '0') : undefined)
        return offset === undefined || /(Length|Array)$/.test(name!) ? [] : [[snake(name!), Number(offset)] as const]
      })
      return [table, Object.fromEntries(methods)]
    }),
  )
}

test('both languages read the fields of a plan at the same offsets', () => {
  const [native, reader] = [nativeFields(), readerFields()]
  expect(Object.keys(native).toSorted()).toEqual(Object.keys(reader).toSorted())
  expect(native.Plan).toHaveProperty('params')
  for (const [table, fields] of Object.entries(native)) expect({ [table]: reader[table] }).toEqual({ [table]: fields })
})
