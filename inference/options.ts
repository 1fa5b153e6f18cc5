/** Validation of options objects: the same two typed errors wherever a caller passes options. */
import type { z } from 'zod'
import { fail } from '../errors.ts'

/**
 * Parses `value` by `schema`, whose fields carry what they expect in `.describe()`.
 * Throws OPTION_UNKNOWN, which lists the known options, or OPTION_INVALID; `where` names the call.
 */
export function parseOptions<S extends z.ZodObject>(schema: S, where: string, value: unknown): z.output<S> {
  const parsed = schema.safeParse(value ?? {})
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]!
  if (issue.code === 'unrecognized_keys' && issue.path.length === 0) {
    throw fail('OPTION_UNKNOWN', { option: issue.keys[0], where, known: Object.keys(schema.shape) })
  }
  const option = issue.path[0]
  if (option === undefined) throw invalid(`options of ${where}`, 'an object', value)
  const expected = (schema.shape[String(option)] as z.ZodType | undefined)?.description ?? issue.message
  throw invalid(String(option), expected, (value as Record<PropertyKey, unknown>)[option])
}

export function invalid(option: string, expected: string, got: unknown) {
  return fail('OPTION_INVALID', { option, expected, got: show(got) })
}

/** A value for an error message, short whatever it is. */
function show(value: unknown): string {
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return 'a function'
  try {
    const text = typeof value === 'number' ? String(value) : (JSON.stringify(value) ?? String(value))
    return text.length > 80 ? `${text.slice(0, 77)}...` : text
  } catch {
    return typeof value
  }
}
