import { writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { Command, Option } from 'commander'
import { performanceMatrix } from '../bench/matrix.ts'
import { fail } from '../errors.ts'
import { shapeNames } from '../parity/corpus.ts'
import { renderReport } from '../parity/report.ts'
import { readPackages } from '../parity/signoff/evidence.ts'
import { generateKeys, readPrivateKey, readPublicKey } from '../parity/signoff/keys.ts'
import { measureConformance, measureParity, writeEvidence } from '../parity/signoff/measure.ts'
import { draftRecord, type Phase, phaseFiles, type Role, readPhase, roles } from '../parity/signoff/phase.ts'
import { phaseReport } from '../parity/signoff/report.ts'
import { assertFixed, type Check, check, close, sign, start } from '../parity/signoff/signoff.ts'
import { finish, log, print, progress, type Shared, write } from './terminal.ts'

const kinds = ['parity', 'conformance', 'performance'] as const

const keygen = new Command('keygen')
  .description('make a pair of Ed25519 keys: <path>.key, to be kept secret, and <path>.pub')
  .argument('<path>')
  .action((path: string, options: Shared) =>
    finish(async () => {
      const keys = await generateKeys(path)
      print(options, keys, `${keys.publicPath}: key ${keys.keyId}`)
      return true
    }),
  )

interface DraftOptions extends Shared {
  readonly package: string
  readonly keys: string
  readonly thin?: boolean
}

/** Public keys of the owners, each in a file named after the role. */
async function ownersIn(folder: string) {
  const owner = async (role: Role) => {
    const key = (await readPublicKey(join(folder, `${role}.pub`))).export({ type: 'spki', format: 'pem' }).toString()
    return [role, { name: role, key }] as const
  }
  return Object.fromEntries(await Promise.all(roles.map(owner))) as Record<Role, { name: string; key: string }>
}

const draft = new Command('draft')
  .description('write a record to be edited: exit criteria, rows, thresholds, owners')
  .argument('<record.json>')
  .requiredOption('--package <path>', 'the package to be judged')
  .requiredOption('--keys <folder>', 'where models.pub, inference.pub and compute.pub lie')
  .option('--thin', 'ask for a sixth of the op cases only')
  .action((path: string, options: DraftOptions) =>
    finish(async () => {
      const subject = { name: basename(options.package).replace(/\.ingot$/, ''), path: options.package }
      const shapes = [...shapeNames('text'), ...shapeNames('random')]
      const record = draftRecord(path, subject, await ownersIn(options.keys), shapes, options.thin ? 'thin' : 'full')
      await writeFile(path, `${JSON.stringify(record, undefined, 2)}\n`, { flag: 'wx' }).catch((cause: Error) => {
        throw fail('OUTPUT_UNWRITABLE', { path, reason: cause.message }, cause)
      })
      print(options, record, `${path}: edit it, then fix it with "ingot signoff start ${path}"`)
      return true
    }),
  )

const startCommand = new Command('start')
  .description('fix the record: its digest becomes the first entry of the phase in the ledger')
  .argument('<record.json>')
  .action((path: string, options: Shared) =>
    finish(async () => {
      const phase = await readPhase(path)
      const entry = await start(phase)
      print(options, entry, `${phase.name} started at ${entry.time} with record ${phase.sha256}`)
      return true
    }),
  )

interface MeasureOptions extends Shared {
  readonly only?: (typeof kinds)[number][]
  readonly peers?: string
}

async function measure(phase: Phase, kind: (typeof kinds)[number], options: MeasureOptions): Promise<object> {
  const onProgress = progress(options, kind)
  if (kind === 'conformance') return measureConformance(phase, onProgress)
  const packages = await readPackages(phase)
  if (kind === 'parity') return measureParity(phase, packages, onProgress)
  return performanceMatrix(phase, packages, {
    onProgress,
    ...(options.peers !== undefined && { peers: options.peers }),
  })
}

const measureCommand = new Command('measure')
  .description(
    'run the gates, and write the parity matrix, op conformance and the performance matrix beside the record',
  )
  .argument('<record.json>')
  .addOption(new Option('--only <kinds...>', 'some of them').choices(kinds))
  .option('--peers <file>', 'take cells of "npm run bench:peers" (its JSON) into the performance matrix')
  .action((path: string, options: MeasureOptions) =>
    finish(async () => {
      const phase = await readPhase(path)
      await assertFixed(phase)
      const files = phaseFiles(phase)
      for (const kind of options.only ?? kinds) {
        await writeEvidence(files[kind], await measure(phase, kind, options))
        log(options, `wrote ${files[kind]}`)
      }
      return report(phase, options)
    }),
  )

function checkText({ record, name }: Phase, { refusals, signed }: Check): string {
  const owners = roles.map((role) => `${role} (${record.owners[role].name}): ${signed[role] ? 'signed' : 'not signed'}`)
  const verdict = refusals.length
    ? `refused: ${refusals.length} reasons`
    : 'every cell passes, and all owners have signed'
  return [
    `${name}: ${record.title}`,
    ...owners,
    ...refusals.map((each) => `${each.code}: ${each.message}`),
    verdict,
  ].join('\n')
}

interface ReportOptions extends Shared {
  readonly html?: string
}
const htmlFlag = () => new Option('--html <file>', 'write all of it as one page')

const writePage = (phase: Phase, found: Check, options: ReportOptions): Promise<void> =>
  write(options, options.html, async () => renderReport(await phaseReport(phase, found)))

/** Prints what keeps the phase from ending; a missing signature alone is no failure before `close`. */
async function report(phase: Phase, options: ReportOptions): Promise<boolean> {
  const found = await check(phase)
  await writePage(phase, found, options)
  const refusals = found.refusals.map(({ code, message }) => ({ code, message }))
  print(
    options,
    { phase: phase.name, ready: refusals.length === 0, signed: found.signed, refusals },
    checkText(phase, found),
  )
  return refusals.every(({ code }) => code === 'SIGNOFF_UNSIGNED')
}

const checkCommand = new Command('check')
  .description('say what keeps the phase from ending; exit 1 unless only signatures are missing')
  .argument('<record.json>')
  .addOption(htmlFlag())
  .action((path: string, options: ReportOptions) => finish(async () => report(await readPhase(path), options)))

const signCommand = new Command('sign')
  .description('sign the digests of record and evidence as one of the owners')
  .argument('<record.json>')
  .addOption(new Option('--role <role>', 'whose signature it is').choices(roles).makeOptionMandatory())
  .requiredOption('--key <file>', 'private key of that owner')
  .action((path: string, options: Shared & { readonly role: Role; readonly key: string }) =>
    finish(async () => {
      const phase = await readPhase(path)
      const entry = await sign(phase, options.role, await readPrivateKey(options.key))
      print(options, entry, `${options.role} signed ${phase.name}: entry ${entry.index} of ${phaseFiles(phase).ledger}`)
      return true
    }),
  )

const closeCommand = new Command('close')
  .description('end the phase: check everything, issue certificates into the packages, keep them as releases')
  .argument('<record.json>')
  .requiredOption('--key <file...>', 'private keys of owners, which sign the certificates')
  .addOption(htmlFlag())
  .action((path: string, options: ReportOptions & { readonly key: string[] }) =>
    finish(async () => {
      const phase = await readPhase(path)
      const closed = await close(phase, await Promise.all(options.key.map(readPrivateKey)))
      const { entry, certificates } = closed
      if (options.html !== undefined) await writePage(phase, await check(phase), options)
      print(
        options,
        closed,
        [`${phase.name} is signed off: entry ${entry.index} of the ledger`, ...certificates].join('\n'),
      )
      return true
    }),
  )

const help = `
A phase is signed off by files alone: its record (exit criteria, rollback, fallback, dual path, owners with their keys), the
evidence beside it, and ledger.jsonl, which chains what happened.

  keygen, draft   once: keys of the three owners, and a record to be edited
  start           fixes the record, before the work starts
  measure         writes the evidence; it counts for the code, kernels and packages that it judged, and no others
  check           says which cells are missing, stale or failing, and who has not signed
  sign            by each owner: models, inference, compute
  close           refuses as check does; else issues the certificates that open({ certificates: 'require' }) reads

Going back: ingot rollback <package> --ledger <ledger.jsonl>`

export const signoffCommand = new Command('signoff')
  .description('judge, sign and certify what a backend computes; see "ingot signoff --help"')
  // Options after a subcommand are its own.
  .enablePositionalOptions()
  .addHelpText('after', help)

for (const command of [keygen, draft, startCommand, measureCommand, checkCommand, signCommand, closeCommand])
  signoffCommand.addCommand(
    command
      .option('--json', 'print data as JSON on stdout')
      .option('--quiet', 'no progress and no logs on stderr')
      .exitOverride(),
  )
