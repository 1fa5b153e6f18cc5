/** Values of JSON with something wrong in one place, for the tests of their readers. */
import fc from 'fast-check'

/** All places of a value, as paths of keys. */
function placesOf(value: unknown, path: string[] = []): string[][] {
  const inner = typeof value === 'object' && value !== null ? Object.entries(value) : []
  return [path, ...inner.flatMap(([key, each]) => placesOf(each, [...path, key]))]
}

/** One place of a value replaced by anything: other JSON, names of prototypes, paths out of a folder, bytes of no name. */
export function editOf(value: object): fc.Arbitrary<(value: object) => object> {
  const odd = fc.oneof(
    fc.jsonValue(),
    fc.nat(600),
    fc.constantFrom(2 ** 31 - 1, 2 ** 32 - 1, -1, 0.5),
    fc.constantFrom('__proto__', 'constructor', 'toString', '../..', '/', '.', '', 'a\0b', 'cpu:mmx', 'cuda', 1e300),
  )
  const places = placesOf(value).filter(({ length }) => length > 0)
  return fc.tuple(fc.constantFrom(...places), odd).map(([path, put]) => (whole) => {
    const copy = structuredClone(whole) as Record<string, never>
    const at = path.slice(0, -1).reduce((inner, key) => inner[key]!, copy)
    Object.assign(at, { [path.at(-1)!]: put })
    return copy
  })
}
