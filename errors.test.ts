import { expect, test } from 'vitest'
import { z } from 'zod'
import { ConfigError, fail, shownValue, wrongField } from './errors.ts'

test('a message is one bounded line, whatever names a file holds; the details keep them', () => {
  const tensor = 'a\n\u001b[31mb\u2028c'
  const error = fail('TENSOR_EXTRA', { path: 'x'.repeat(5000), tensor, architecture: 'Tiny' })
  expect(error.message).toContain('tensor a\\u000a\\u001b[31mb\\u2028c is not used by architecture Tiny')
  expect(error.message.length).toBeLessThan(1200)
  expect(error.details.tensor).toBe(tensor)
})

test('lists are joined, and a detail that is missing shows', () => {
  const error = fail('BACKEND_UNKNOWN', { backend: undefined, known: ['cpu', 'null'] })
  expect(error).toBeInstanceOf(ConfigError)
  expect(error.message).toBe('unknown backend "{backend}"; expected one of cpu, null')
})

test('a value from outside is shown in short, whatever it is', () => {
  const deep = JSON.parse('['.repeat(100_000) + ']'.repeat(100_000))
  const shown = [undefined, null, Number.NaN, 'a'.repeat(200), { a: [1] }, deep].map(shownValue)
  expect(shown).toEqual([
    'nothing',
    'null',
    'NaN',
    `"${'a'.repeat(76)}...`,
    '{"a":[1]}',
    'something that cannot be shown',
  ])
})

test('the first wrong field is named, with what a schema of its own words or of ours expected', () => {
  const schema = z.strictObject({ a: z.array(z.object({ b: z.int('a whole number') })), c: z.string().optional() })
  const wrong = (value: unknown) => wrongField(schema.safeParse(value).error!, value, 'the file')
  expect(wrong({ a: [{ b: 1 }, { b: 'x' }] })).toEqual({ thing: 'a.1.b', expected: 'a whole number', got: '"x"' })
  expect(wrong({ a: [], c: 1 })).toEqual({ thing: 'c', expected: 'string', got: '1' })
  expect(wrong(null)).toEqual({ thing: 'the file', expected: 'object', got: 'null' })
  expect(wrong({ a: [], d: 1 })).toMatchObject({ thing: 'the file', expected: 'no key: "d"' })
})
