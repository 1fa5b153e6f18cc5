import { expect, test } from 'vitest'
import { ConfigError, fail } from './errors.ts'

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
