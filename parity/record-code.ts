/** Part of the build: writes down what dist/ was compiled from. With --check, exit 1 unless it was from what is here now. */
import { codeDigest, recordCode, recordedCode } from './code.ts'

if (!process.argv.includes('--check')) await recordCode()
else {
  const built = await recordedCode().catch((error: Error) => error.message)
  const current = await codeDigest()
  if (built !== current) {
    process.stderr.write(`dist/ was not built from these sources (${built}): run "npm run build"\n`)
    process.exitCode = 1
  }
}
