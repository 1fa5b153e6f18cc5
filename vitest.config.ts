import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['{abi,adr,plans,models,compute,inference,parity,cli,bench}/**/*.test.ts', '*.test.ts'],
    testTimeout: 60_000,
    pool: 'forks',
    maxWorkers: 2,
    // Receipts of packages that tests open stay out of the user's cache.
    env: { XDG_CACHE_HOME: join(tmpdir(), 'ingot-test-cache') },
  },
})
