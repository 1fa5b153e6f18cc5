/**
 * Every error that Ingot throws, in one table.
 *
 * Four classes by who must act: ConfigError (the caller), PlanError (the artifact: checkpoint, plan or package),
 * DeviceError (the machine) and CancelledError. A code never changes its meaning; `details` carries what the message
 * names. Throw with `throw fail('CODE', { ... })`: the details are typed from the placeholders of the message.
 */
export class IngotError extends Error {
  readonly code: ErrorCode
  readonly details: Readonly<Record<string, unknown>>
  constructor(code: ErrorCode, message: string, details: Record<string, unknown>, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = new.target.name
    this.code = code
    this.details = Object.freeze({ ...details })
  }
}
/** The caller passed something that cannot be done: change the call. */
export class ConfigError extends IngotError {}
/** A checkpoint, plan or package is wrong: change or rebuild the artifact. */
export class PlanError extends IngotError {}
/** The machine cannot do it now, or failed: memory, device, driver, addon. */
export class DeviceError extends IngotError {}
/** The caller, a deadline or a dispose ended the work. */
export class CancelledError extends IngotError {}

const config = <const T extends string>(message: T) => ({ type: ConfigError, message }) as const
const plan = <const T extends string>(message: T) => ({ type: PlanError, message }) as const
const device = <const T extends string>(message: T) => ({ type: DeviceError, message }) as const
const cancelled = <const T extends string>(message: T) => ({ type: CancelledError, message }) as const

/** Message templates. Each says which, expected, got, and what to do. */
export const errors = {
  // the call
  OPTION_UNKNOWN: config('unknown option "{option}" of {where}; known options: {known}'),
  OPTION_INVALID: config('{option}: expected {expected}, got {got}'),
  PROMPT_EMPTY: config('the prompt has no tokens; pass at least one token'),
  PROMPT_TOO_LONG: config(
    'the prompt has {tokens} tokens, and the context holds {limit}; shorten it or open with a larger contextTokens',
  ),
  TOKEN_OUT_OF_RANGE: config('token {token} at index {index} is outside the vocabulary of {vocabulary}'),
  TOKENIZER_MISSING: config('{package} has no tokenizer; pass token ids, or compile a checkpoint with tokenizer.json'),
  CHAT_TEMPLATE_MISSING: config(
    '{package} has no chat template; pass a prompt, or compile a checkpoint with chat_template.jinja',
  ),
  CHAT_TEMPLATE_FAILED: config('the chat template of {package} refused these messages: {reason}'),
  QUEUE_FULL: config('the queue holds {limit} requests already; retry later or open with a larger queueLimit'),
  MODEL_DISPOSED: config('{package} is disposed; open it again'),
  OUTPUT_MISSING: config('{package} has no output "{output}", which {method} needs; compile a model that has it'),
  DRAFT_MISMATCH: config(
    '{draft} cannot draft: its {thing} is {got}, that of the model {expected}; choose a draft of the same vocabulary',
  ),
  SHADOW_EXPIRED: config(
    'the shadow of {package} was due to be gone after {until}; remove the second path, or give it a new date',
  ),
  SHADOW_MISMATCH: config(
    '{shadow} cannot shadow: its {thing} is {got}, that of the model {expected}; choose a package of the same model',
  ),
  SHADOW_DEMOTED: device('{package} takes no requests ({code}): {reason}; go back to the trusted backend or package'),
  BACKEND_UNKNOWN: config('unknown backend "{backend}"; expected one of {known}'),
  BACKEND_UNAVAILABLE: device('backend "{backend}" is not available here: {reason}; run "ingot doctor"'),
  TALLY_MISSING: config('backend "{backend}" does not count where its steps spend their time; use the cpu backend'),
  LIMITS_MISSING: config(
    'the limits of backend "{backend}" are not measured here, so that no profile can be compared with them; use the cpu backend',
  ),
  TRACE_MISSING: config('backend "{backend}" cannot show what its instructions write; use cpu or reference'),
  OUTPUT_EXISTS: config('{path} exists and is not an Ingot package; choose another output'),
  OUTPUT_UNWRITABLE: config('cannot write {path}: {reason}'),
  USAGE: config('{reason}'),
  // checkpoints
  FILE_MISSING: plan('{path}: no such file; expected {expected}'),
  FILE_UNREADABLE: plan('{path}: cannot be read: {reason}'),
  FILE_TRUNCATED: plan('{path}: {thing} needs {expected} bytes, the file has {got}'),
  SAFETENSORS_HEADER: plan('{path}: not a valid safetensors header: {reason}'),
  SAFETENSORS_INDEX: plan('{path}: not a valid safetensors index: {reason}'),
  CONFIG_INVALID: plan('{path}: {field}: expected {expected}, got {got}'),
  JSON_INVALID: plan('{path}: not valid JSON: {reason}'),
  ARCHITECTURE_UNSUPPORTED: plan('{path}: architecture {got} is not supported; supported: {expected}'),
  ROPE_UNSUPPORTED: plan('{path}: rope type {got} is not supported; supported: {expected}'),
  DTYPE_UNSUPPORTED: plan('{path}: {thing}: dtype {got} is not supported; supported: {expected}'),
  TENSOR_MISSING: plan('{path}: tensor {tensor} is missing; expected shape {expected}'),
  TENSOR_EXTRA: plan('{path}: tensor {tensor} is not used by architecture {architecture}; remove it or fix the config'),
  TENSOR_SHAPE: plan('{path}: tensor {tensor}: expected shape {expected}, got {got}'),
  QUANTIZE_UNSUPPORTED: config('cannot quantize to {quantize}: {reason}'),
  // plans and packages
  PLAN_INVALID: plan('{path}: the plan breaks rule {rule} at {where}: {reason}'),
  PLAN_NEWER: plan('{path}: the plan needs runtime {expected}, this is {got}; upgrade ingot'),
  PACKAGE_INVALID: plan('{path}: {thing}: expected {expected}, got {got}; compile the package again'),
  PACKAGE_NEWER: plan('{path}: package format {got} is newer than {expected}; upgrade ingot'),
  HASH_MISMATCH: plan('{path}: content hash: expected {expected}, got {got}; the file changed after it was compiled'),
  ENVELOPE_INVALID: plan('{path}: not a DSSE envelope: {thing}: expected {expected}, got {got}'),
  CERTIFICATE_MISSING: plan('{path} has no certificate; sign it off for backend "{backend}" with "ingot signoff"'),
  CERTIFICATE_INVALID: plan('{path}: not a certificate of parity: {thing}: expected {expected}, got {got}'),
  CERTIFICATE_KEY: plan('{path}: signed by {got}, none of the keys that are trusted: {expected}'),
  CERTIFICATE_SIGNATURE: plan('{path}: the signature of key {key} is not of this content; the certificate was changed'),
  CERTIFICATE_SCOPE: plan('{path}: certifies {thing} {expected}, this is {got}; sign off this one too'),
  CERTIFICATE_SUBJECT: plan('{path}: certifies {subject} of digest {expected}, this one has {got}; sign it off again'),
  CERTIFICATE_VERDICT: plan('{path}: certifies no parity: {reason}'),
  CERTIFICATE_EARLY: plan('{path}: valid from {issued}, and it is {now}; is the clock right?'),
  CERTIFICATE_EXPIRED: plan('{path}: expired at {expires}, and it is {now}; sign off again'),
  TUNING_INVALID: plan(
    '{path}: not a tuning file: {thing}: expected {expected}, got {got}; measure again with "ingot tune"',
  ),
  TUNING_MISSING: config(
    'backend "{backend}" has one kernel for each instruction, so that there is nothing to measure; tune the cuda backend',
  ),
  // sign-off
  SIGNOFF_FILE_INVALID: plan('{path}: {thing}: expected {expected}, got {got}'),
  SIGNOFF_NOT_STARTED: plan('phase {phase} has not started; fix its record with "ingot signoff start {path}"'),
  SIGNOFF_RECORD_CHANGED: plan(
    '{path} changed after phase {phase} started: its digest was {expected}, now {got}; restore it, or start another phase',
  ),
  SIGNOFF_CELL_MISSING: plan('{path} has no cell "{cell}", which the record asks for; run "ingot signoff measure"'),
  SIGNOFF_CELL_FAILED: plan('{path}: cell "{cell}" does not pass: {reason}'),
  SIGNOFF_STALE: plan(
    '{path} judges {thing} of digest {expected}, and it has {got} now; measure again with "ingot signoff measure"',
  ),
  SIGNOFF_UNSIGNED: plan('{role} ({name}) has not signed: {reason}; "ingot signoff sign --role {role}"'),
  SIGNOFF_KEY: config('{path}: this key is {got}, that of {role} in the record is {expected}'),
  SIGNOFF_OVERDUE: plan('phase {phase}: {path} was to be deleted by {date} ({milestone}); delete it'),
  SIGNOFF_LEDGER_BROKEN: plan('{path}: the chain is broken at line {line}: {reason}; restore the ledger from a copy'),
  SIGNOFF_LEDGER_BUSY: config('{path}: somebody is writing to it; if nobody is, remove {lock}'),
  ROLLBACK_NONE: plan('{path} has no release to go back to: {reason}'),
  KERNELS_UNKNOWN: device(
    'backend "{backend}" does not say what its kernels are, so that no certificate can name them',
  ),
  LINK_GAPS: plan('backend "{backend}" cannot run {path}: {gaps}'),
  RECORD_INVALID: plan('{path}: not a recorded step: {field}: expected {expected}, got {got}; record it again'),
  RECORD_NEWER: plan('{path}: the format of this record is {got}, this ingot reads {expected}; upgrade ingot'),
  RECORD_MISMATCH: plan(
    '{path} was recorded with {thing} {expected}, {package} has {got}; replay it with that package',
  ),
  MATRIX_INVALID: plan('{path}: not a parity matrix: {field}: {reason}; make it again with "ingot parity --matrix"'),
  // the machine
  ADDON_MISSING: device('the native addon is not built ({reason}); run "npm run build"'),
  ISA_UNAVAILABLE: config('instruction set "{isa}" is not available on this machine; available: {available}'),
  OUT_OF_MEMORY: device('{thing} needs {needed} bytes, {available} are available; lower maxSlots or contextTokens'),
  STEP_FAILED: device('a step failed in {where}: {reason}'),
  MUTANT_STALE: config('{file}: a mutant replaces "{find}", which stands there {got} times, expected once'),
  MUTANT_BUILD: device('the mutated kernels do not build: {reason}'),
  DEVICE_FAILED: device('the device failed in {where}: {reason}; the step took no effect, retry it'),
  DEVICE_LOST: device('{device} takes no more work: {reason}; start a new process, and run "ingot doctor" there'),
  INTERNAL: device('an error that ingot does not know: {reason}; if the machine is sound, report it with what follows'),
  WORKER_FAILED: device('a worker thread failed: {reason}'),
  // cancellation
  ABORTED: cancelled('the request was aborted by its signal'),
  DEADLINE_EXCEEDED: cancelled('the request passed its deadline of {milliseconds} ms'),
  DISPOSED: cancelled('the model was disposed while the request was running'),
} as const

export type ErrorCode = keyof typeof errors
type Placeholders<T extends string> = T extends `${string}{${infer Name}}${infer Rest}`
  ? Name | Placeholders<Rest>
  : never
export type ErrorDetails<C extends ErrorCode> = Record<Placeholders<(typeof errors)[C]['message']>, unknown>

const MAX_DETAIL = 1000

/** A detail as it stands in a message: one bounded line, since names in files may hold terminal escapes or be vast. */
function shown(value: unknown): string {
  const text = Array.isArray(value) ? value.join(', ') : String(value)
  const short = text.length > MAX_DETAIL ? `${text.slice(0, MAX_DETAIL)}...` : text
  return short.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** Builds the error of `code`; placeholders without a detail stay visible, so that a gap shows. */
export function fail<C extends ErrorCode>(code: C, details: ErrorDetails<C>, cause?: unknown): IngotError {
  const { type: ErrorType, message } = errors[code]
  const text = message.replace(/\{(\w+)\}/g, (hole, name: string) => {
    const value = (details as Record<string, unknown>)[name]
    return value === undefined ? hole : shown(value)
  })
  return new ErrorType(code, text, details as Record<string, unknown>, cause)
}

/** A value from outside as short text for a message. */
export function shownValue(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'number') return String(value)
  const json = jsonOf(value)
  return json.length > 80 ? `${json.slice(0, 77)}...` : json
}

function jsonOf(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value)
  } catch {
    // JSON.parse reads what is nested deeper than JSON.stringify can go.
    return 'something that cannot be shown'
  }
}

/** What zod says of a value, as far as messages need it. */
interface SchemaError {
  readonly issues: readonly { readonly path: readonly PropertyKey[]; readonly message: string }[]
}

/** The first field of `value` that a schema refused; `whole` names the value. Messages of the schema say what was expected. */
export function wrongField({ issues }: SchemaError, value: unknown, whole: string) {
  const { path, message } = issues[0]!
  const at = path.reduce<unknown>(
    (inner, key) =>
      typeof inner === 'object' && inner !== null ? (inner as Record<PropertyKey, unknown>)[key] : undefined,
    value,
  )
  const expected = message
    .replace(/^Unrecognized key/, 'no key')
    .replace(/^(?:Invalid|Too)[^:]*: expected (.*?)(?:, received .*)?$/, '$1')
  return { thing: path.join('.') || whole, expected, got: shownValue(at) }
}
