/**
 * Holds the peer to an instruction set. Its package has one libggml-cpu-*.so for each, and llama.cpp loads the best that
 * the machine can run of those in a folder; peer.js hands it a folder of links to some of them. `device` of an answer
 * says which one computed.
 */
import { mkdir, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'

/** By our instruction sets, the libraries that use nothing beyond them. */
const libraries: Readonly<Record<string, readonly string[]>> = {
  portable: ['x64'],
  avx2: ['haswell'],
  avx2_vnni: ['alderlake'],
  avx512: ['skylakex'],
  avx512_vnni: ['cascadelake', 'cooperlake', 'icelake', 'zen4'],
  amx: ['sapphirerapids'],
}

/** A folder under `cache` with links into `binaries`; empty without `isa`, when the peer chooses. Throws for an unknown name. */
export async function peerLibraries(cache: string, binaries: string, isa: string): Promise<string> {
  if (isa === '') return ''
  const names = libraries[isa]
  if (!names) throw new Error(`--isa ${isa}: expected one of ${Object.keys(libraries)}`)
  const folder = join(cache, `peer-${isa}`)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  for (const name of names)
    await symlink(join(binaries, `libggml-cpu-${name}.so`), join(folder, `libggml-cpu-${name}.so`))
  return folder
}
