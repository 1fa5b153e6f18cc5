import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['{abi,adr,plans,models,compute,inference,parity,cli,bench}/**/*.test.ts', '*.test.ts'],
    testTimeout: 60_000,
    pool: 'forks',
    maxWorkers: 2,
  },
})
