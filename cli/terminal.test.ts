import { afterEach, expect, test, vi } from 'vitest'
import { fail } from '../errors.ts'
import { exits, finish } from './terminal.ts'

/** What stands on stderr once `error` has ended the work, and the exit code. */
async function endOf(error: unknown) {
  const lines: string[] = []
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => lines.push(String(text)) > 0)
  await finish(async () => {
    throw error
  })
  return { text: lines.join(''), code: process.exitCode }
}

afterEach(() => {
  vi.restoreAllMocks()
  process.exitCode = undefined
})

test('an error of the table is one line, and wrong usage has an exit code of its own', async () => {
  const missing = fail('FILE_MISSING', { path: 'x', expected: 'a package' })
  expect(await endOf(missing)).toEqual({ text: `PlanError FILE_MISSING: ${missing.message}\n`, code: exits.failed })
  expect(await endOf(fail('USAGE', { reason: 'one of both' }))).toMatchObject({ code: exits.usage })
})

test('any other error is typed as well, and says where it was', async () => {
  const error = Object.assign(new Error("ENOENT: no such file or directory, scandir 'abi'"), { code: 'ENOENT' })
  const { text, code } = await endOf(error)
  expect(text).toMatch(/^DeviceError INTERNAL: an error that ingot does not know: ENOENT: .*\n/)
  expect(text).toContain('terminal.test.ts')
  expect(code).toBe(exits.failed)
  for (const thrown of ['a word', undefined, { strange: true }])
    expect((await endOf(thrown)).text).toMatch(/^DeviceError INTERNAL: /)
})
