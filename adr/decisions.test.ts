/** Every decision of ADR 0001 names a status, the file that holds it and the test that fails when it is broken. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'

const root = packageRoot()
const text = readFileSync(join(root, 'adr/0001-phase-0-alignment.md'), 'utf8')
const sections = text
  .split(/^## /m)
  .slice(1)
  .filter((section) => /^\d+\./.test(section))

const pathsOf = (section: string, field: string) =>
  [...(section.match(new RegExp(`^- ${field}: (.*)$`, 'm'))?.[1] ?? '').matchAll(/`([^`]+)`/g)].map(([, path]) => path!)

describe('ADR 0001', () => {
  it('has fifteen decisions in order', () => {
    expect(sections.map((section) => Number.parseInt(section, 10))).toEqual(Array.from({ length: 15 }, (_, i) => i + 1))
  })
  it.each(sections.map((section) => [section.split('\n')[0]!, section] as const))('%s', (_, section) => {
    expect(section).toMatch(/^- Status: (held|held on the CPU|agreed, built with .+)$/m)
    for (const field of ['Held by', 'Proved by']) {
      const paths = pathsOf(section, field)
      expect(paths.length, field).toBeGreaterThan(0)
      expect(paths.filter((path) => !existsSync(join(root, path)))).toEqual([])
    }
  })
})
