import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { generated } from './generate.ts'

test('the committed kernel lists are what the tables generate', () => {
  const files = Object.entries(generated())
  expect(files.length).toBeGreaterThan(0)
  for (const [path, text] of files) expect(readFileSync(path, 'utf8')).toBe(text)
})
