/**
 * Releases: packages that were signed off, each kept beside its name in `name.ingot.releases/`. The name is then a link to
 * one of them, and going back swaps the link, which a rename does at once. Nothing is deleted, whatever happens.
 */
import { randomUUID } from 'node:crypto'
import { lstat, mkdir, readlink, rename, rm, symlink } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { fail, IngotError } from '../../errors.ts'
import { codeOf } from '../../models/files.ts'
import { isPackage, readPackage } from '../../models/package.ts'
import { append, type LedgerEntry, type Release } from './ledger.ts'

const storeOf = (path: string) => `${path}.releases`

async function kindOf(path: string): Promise<'link' | 'folder' | 'nothing'> {
  try {
    return (await lstat(path)).isSymbolicLink() ? 'link' : 'folder'
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return 'nothing'
    throw error
  }
}

/** Makes `path` a link to `target`, at once; `path` is a link or nothing. */
async function pointTo(path: string, target: string): Promise<void> {
  const link = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`)
  await symlink(relative(dirname(path), target), link)
  try {
    await rename(link, path)
  } catch (error) {
    await rm(link, { force: true })
    throw error
  }
}

/**
 * Moves the folder at `path` to `place` and makes `path` a link to `target`; back again if that fails. Between the two
 * renames nothing has the name: whoever opens it then is told that it is missing.
 */
async function replaceFolder(path: string, place: string, target: string): Promise<void> {
  await mkdir(dirname(place), { recursive: true })
  await rename(path, place)
  try {
    await pointTo(path, target)
  } catch (error) {
    await rename(place, path)
    throw error
  }
}

async function writing<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    if (cause instanceof IngotError) throw cause
    throw fail('OUTPUT_UNWRITABLE', { path, reason: (cause as Error).message }, cause)
  }
}

/** What a link points to, from the folder that it lies in. */
const targetOf = async (link: string) => relative(dirname(link), resolve(dirname(link), await readlink(link)))

/**
 * Keeps the package at `path`, of this manifest, which entry `index` of the ledger signs off. Its name becomes a link to
 * where it is kept, if it is none yet.
 */
export async function keep(path: string, manifest: string, ledger: string, index: number): Promise<Release> {
  const name = resolve(path)
  return writing(name, async () => {
    if ((await kindOf(name)) === 'folder') {
      const place = join(storeOf(name), `${String(index).padStart(4, '0')}-${manifest.slice(0, 12)}`)
      await replaceFolder(name, place, place)
    }
    return { path: relative(dirname(resolve(ledger)), name), release: await targetOf(name), manifest }
  })
}

/** Releases of `name` that the ledger holds and that were not rolled back, oldest first. */
function standing(name: string, ledger: string, entries: readonly LedgerEntry[]): Release[] {
  const here = (path: string) => resolve(dirname(ledger), path) === name
  const found: Release[] = []
  for (const entry of entries) {
    if (entry.kind === 'signoff') found.push(...entry.packages.filter(({ path }) => here(path)))
    if (entry.kind === 'rollback' && here(entry.path))
      found.splice(found.findLastIndex(({ release }) => release === entry.to) + 1)
  }
  return found
}

export interface Rollback {
  readonly path: string
  /** What the name points to now, from its folder; hash of its manifest. */
  readonly to: string
  readonly manifest: string
  /** Where what had the name lies now, from its folder; null: there was nothing. */
  readonly from: string | null
}

/**
 * Points the name of a package at the last release that was signed off: the one before, where it points to that one now.
 * It is written down first: what is cut short in between is done again by the next call. Throws ROLLBACK_NONE,
 * OUTPUT_EXISTS where the name is no package's, HASH_MISMATCH and the like where the release is damaged, and
 * OUTPUT_UNWRITABLE.
 */
export async function rollback(path: string, ledger: string, now = Date.now()): Promise<Rollback> {
  const name = resolve(path)
  const kind = await kindOf(name)
  if (kind === 'folder' && !(await isPackage(name))) throw fail('OUTPUT_EXISTS', { path })
  const current = kind === 'link' ? await targetOf(name) : null
  const from = kind === 'folder' ? relative(dirname(name), join(storeOf(name), `unsigned-${randomUUID()}`)) : current
  let target: Release | undefined
  const event = async (entries: readonly LedgerEntry[]) => {
    target = releaseBefore(current, standing(name, resolve(ledger), entries), path)
    const folder = resolve(dirname(name), target.release)
    const { manifest } = await readPackage(folder, { integrity: 'full' })
    if (manifest.hash !== target.manifest)
      throw fail('HASH_MISMATCH', { path: folder, expected: target.manifest, got: manifest.hash })
    return { kind: 'rollback', path: relative(dirname(resolve(ledger)), name), to: target.release, from } as const
  }
  await append(ledger, event, now)
  const { release, manifest } = target!
  const folder = resolve(dirname(name), release)
  await writing(name, () =>
    kind === 'folder' ? replaceFolder(name, resolve(dirname(name), from!), folder) : pointTo(name, folder),
  )
  return { path, to: release, manifest, from }
}

function releaseBefore(current: string | null, releases: readonly Release[], path: string): Release {
  const last = releases.at(-1)
  if (!last) throw fail('ROLLBACK_NONE', { path, reason: 'none was signed off' })
  if (current !== last.release) return last
  const before = releases.findLast(({ release }) => release !== current)
  if (!before) throw fail('ROLLBACK_NONE', { path, reason: 'it points to the only one' })
  return before
}
